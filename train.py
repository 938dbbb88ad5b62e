"""Train an agent: ``python train.py task=goto_door fusion=bilinear``. See ``--help``."""

import shlex
import sys

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import (
        command,
        console_entry,
        limit_kernel_caches,
    )
    from mirl.configs.commands.help import train_help
    from mirl.configs.commands.words import typed_words
    from mirl.configs.compose import compose_train
    from mirl.configs.errors import reported_by_first_process
    from mirl.configs.imports import import_words


def run(argv: list[str]) -> int:
    """Train the agent that the command line describes, then evaluate its last checkpoint.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code: 0, or 130 if the run was stopped and saved.
    """
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
    evaluated = evaluate_run(result.run, result.checkpoint, config.test_evaluation)
    results, context_use, written = evaluated
    title = f"After {result.timesteps:,} timesteps, on unseen episodes"
    console.print(results_table(results, title))
    if context_use is not None:
        for line in context_use.lines():
            log(line)
    for path in written:
        log(f"Written: {path}")
    log(f"Curves:  {command('tensorboard')} --logdir {shlex.quote(str(config.runs_dir))}")
    # with every option that this evaluation had
    words = [*typed_words(config.test_evaluation), *import_words(config.model_dump())]
    log(f"Evaluate again: {command('mirl-eval')} {' '.join(words)}")
    return 0


def main() -> None:
    """Run the console script ``mirl-train``."""
    sys.exit(console_entry(run, train_help))


if __name__ == "__main__":
    main()
