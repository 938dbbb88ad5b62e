"""Train an agent: ``python train.py task=goto_door fusion=bilinear``. See ``--help``.

``python train.py --multirun fusion=film,bilinear seed=0,1,2`` trains one for each combination.
"""

import shlex
import sys
from collections.abc import Callable

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import (
        command,
        console_entry,
        limit_kernel_caches,
    )
    from mirl.configs.commands.help import train_help
    from mirl.configs.commands.sweep import SweepConfig, is_multirun, parse_sweep
    from mirl.configs.commands.words import typed_words
    from mirl.configs.compose import compose_train
    from mirl.configs.errors import RunError, reported_by_first_process
    from mirl.configs.imports import import_words


def run(argv: list[str]) -> int:
    """Train the agent that the command line describes, then evaluate its last checkpoint.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code: 0, or 130 if the run was stopped and saved.

    Raises:
        RunError: the training failed, or some runs of a sweep failed.
    """
    if is_multirun(argv):
        return run_sweep(parse_sweep(argv))
    with reported_by_first_process():
        # before torch is imported, so that mistakes are reported at once
        config = compose_train(argv)

    limit_kernel_caches()
    # the other imports load torch, which takes seconds
    with ended_by_interrupt():
        from mirl.agents.evaluation import evaluate_run
        from mirl.agents.result_tables import PlainConsole, results_table
        from mirl.agents.training import train

    console = PlainConsole()
    log = console.log_line

    result = train(config, log)
    if not result.ranks.is_first:
        return 0 if result.finished else 130
    if not result.finished:
        log(
            f"Stopped and saved at {result.timesteps:,} timesteps; "
            "run the same command again to resume."
        )
        return 130  # as after Ctrl-C in a shell
    evaluation = evaluate_run(result.run, result.checkpoint, config.test_evaluation)
    title = f"After {result.timesteps:,} timesteps, on unseen episodes"
    console.print(results_table(evaluation.results, title))
    if evaluation.context_use is not None:
        for line in evaluation.context_use.lines():
            log(line)
    for path in evaluation.files:
        log(f"Written: {path}")
    if "tensorboard" in config.logger:
        log(f"Curves:  {command('tensorboard')} --logdir {shlex.quote(str(config.runs_dir))}")
    # with every option of this evaluation
    words = [*typed_words(config.test_evaluation), *import_words(config.model_dump())]
    log(f"Evaluate again: {command('mirl-eval')} {' '.join(words)}")
    return 0


def run_sweep(config: SweepConfig) -> int:
    """Train the runs of a sweep, or search for the best values in a study.

    Args:
        config: the sweep.

    Returns:
        The exit code: 0, or 130 if the sweep was stopped.

    Raises:
        RunError: some runs failed.
    """
    limit_kernel_caches()
    with ended_by_interrupt():
        from mirl.agents.result_tables import PlainConsole
        from mirl.agents.sweeps.grid import run_grid
        from mirl.agents.sweeps.study import run_study

    console = PlainConsole()
    if config.is_study:
        study = run_study(config, console.log_line)
        console.print(study.table)
        counts = ", ".join(f"{number} {state}" for state, number in sorted(study.counts.items()))
        console.log_line(f"Trials: {counts}. Written: {study.written}")
        if study.best is not None:
            words = " ".join(map(shlex.quote, study.best))
            console.log_line(f"Train the best values with other seeds: train.py {words} seed=…")
        for name, reason in study.failures.items():
            console.log_line(f"{name} failed: {reason}")
        if study.best is None and study.failures:
            # values that cannot be trained are a valid result, unless no trial is complete
            raise RunError(f"no trial is complete; see {study.written.parent / 'logs'}")
        return _stopped_code(study.missing, console.log_line)
    grid = run_grid(config, console.log_line)
    console.print(grid.table)
    console.log_line(f"Written: {grid.written}")
    if grid.failures:
        lines = [f"{name}: {reason}" for name, reason in grid.failures.items()]
        raise RunError("runs failed; the same command tries them again\n" + "\n".join(lines))
    return _stopped_code(grid.missing, console.log_line)


def _stopped_code(missing: int, log: Callable[[str], None]) -> int:
    """Return the exit code of a sweep; it was stopped if runs are missing."""
    if not missing:
        return 0
    log(f"Stopped, {missing} runs are missing; run the same command again to go on.")
    return 130  # as after Ctrl-C in a shell


def main() -> None:
    """Run the console script ``mirl-train``."""
    sys.exit(console_entry(run, train_help))


if __name__ == "__main__":
    main()
