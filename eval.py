"""Evaluate a checkpoint: ``python eval.py run=runs/goto_door-bilinear-ppo-seed0``. See ``--help``."""

import sys

from mirl.configs.command_line import console_entry, eval_help
from mirl.configs.compose import parse_flat
from mirl.configs.schema import EvalConfig


def run(argv: list[str]) -> int:
    """Evaluate as the words of the command line say; the exit code."""
    config = parse_flat(EvalConfig, argv)

    from rich.console import Console

    from mirl.agents.evaluation import evaluate_run, results_table

    results, written = evaluate_run(config)
    console = Console()
    console.print(results_table(results, f"{config.run.name}, {config.checkpoint} checkpoint, on unseen episodes"))
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True, highlight=False)
    return 0


def main() -> None:
    """The console script ``mirl-eval``."""
    sys.exit(console_entry(run, eval_help))


if __name__ == "__main__":
    main()
