"""Evaluate, adapt or export a checkpoint: ``python eval.py run=runs/goto_door-ppo-seed0``.

See ``--help``.
"""

import sys
from collections.abc import Sequence

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import console_entry
    from mirl.configs.commands.help import eval_help
    from mirl.configs.compose import parse_flat
    from mirl.configs.schema import EvalConfig
    from mirl.configs.stored import load_stored


def run(argv: list[str]) -> int:
    """Evaluate, adapt or export a checkpoint as the command line specifies.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code.
    """
    # before torch is imported, so that mistakes are reported at once
    config = parse_flat(EvalConfig, argv)
    stored = load_stored(config.run)

    # imported here and below as needed, because torch takes seconds to load
    with ended_by_interrupt():
        from mirl.agents.result_tables import PlainConsole, missing_success_line, results_table
        from mirl.agents.runs.run_directory import RunDirectory
        from mirl.agents.statistics import TaskResult

    console = PlainConsole()
    log = console.log_line

    opened = RunDirectory(config.run, stored)
    checkpoint = opened.checkpoint(config.checkpoint)
    source = f"{config.run.name}, {config.checkpoint} checkpoint"

    if config.export:
        from mirl.agents.exports.export import export_run

        export = export_run(opened, checkpoint, config)
        check = export.check
        log(
            f"Written: {export.path} ({export.parameters:,} parameters of "
            f"{export.policy_parameters:,})"
        )
        log(
            f"Checked: outputs within {check.max_abs_difference:.0e} of the policy's on "
            f"{check.observations} random observations, {check.equal_actions:.1%} of the actions "
            f"equal, and all {check.episode_timesteps:,} actions of {check.episodes:,} played "
            "episodes"
        )
        return 0

    from mirl.agents.evaluation import evaluate_run

    def explain(results: Sequence[TaskResult]) -> None:
        line = missing_success_line(results)
        if line is not None:
            log(line)

    if config.adapt != "no":
        from mirl.agents.few_shot import adapt_run, curve_table

        for adaptation in adapt_run(opened, checkpoint, config):
            title = f"{source}, practicing {adaptation.task} by its {config.adapt}"
            console.print(curve_table(adaptation.curve, title))
            explain([point.result for point in adaptation.curve])
            if adaptation.path is not None:
                log(f"Written: {adaptation.path}")
        return 0

    evaluation = evaluate_run(opened, checkpoint, config)
    title = f"{source}, on unseen episodes"
    if config.task:
        title += f" of {config.task}"
    console.print(results_table(evaluation.results, title))
    explain(evaluation.results)
    if evaluation.context_use is not None:
        for line in evaluation.context_use.lines():
            log(line)
    if evaluation.inside is not None:
        for line in evaluation.inside.lines():
            log(line)
    for path in evaluation.files:
        log(f"Written: {path}")
    return 0


def main() -> None:
    """Run the console script ``mirl-eval``."""
    sys.exit(console_entry(run, eval_help))


if __name__ == "__main__":
    main()
