"""Evaluate, adapt or export a checkpoint: ``python eval.py run=runs/goto_door-bilinear-ppo-seed0``. See ``--help``."""

import sys

from mirl.configs.command_line import console_entry, eval_help
from mirl.configs.compose import parse_flat
from mirl.configs.schema import EvalConfig


def run(argv: list[str]) -> int:
    """Evaluate, adapt or export as the words of the command line say; the exit code."""
    config = parse_flat(EvalConfig, argv)

    from rich.console import Console

    def say(line: str) -> None:
        Console().print(line, soft_wrap=True, highlight=False)

    if config.export:
        from mirl.agents.export import export_run

        path, parameters, of_policy, difference = export_run(config)
        size = f"{parameters:,} parameters in place of {of_policy:,}"
        say(f"Written: {path} ({size}, outputs within {difference:.0e} of the policy's)")
        return 0

    if config.adapt != "no":
        from mirl.agents.few_shot import adapt_run, curve_table

        for task, curve, path in adapt_run(config):
            title = f"{config.run.name}, {config.checkpoint} checkpoint, practicing {task} by its {config.adapt}"
            Console().print(curve_table(curve, title))
            say(f"Written: {path}")
        return 0

    from mirl.agents.evaluation import evaluate_run, results_table

    results, written = evaluate_run(config)
    title = f"{config.run.name}, {config.checkpoint} checkpoint, on unseen episodes"
    Console().print(results_table(results, title))
    for path in written:
        say(f"Written: {path}")
    return 0


def main() -> None:
    """The console script ``mirl-eval``."""
    sys.exit(console_entry(run, eval_help))


if __name__ == "__main__":
    main()
