"""Train an agent: ``python train.py task=goto_door fusion=bilinear``. See ``--help``."""

import sys

from mirl.configs.command_line import command, console_entry, train_help
from mirl.configs.compose import compose_train


def run(argv: list[str]) -> int:
    """Train as the words of the command line say; the exit code."""
    config = compose_train(argv)  # before torch is imported: a mistake is answered at once

    from rich.console import Console

    from mirl.agents.evaluation import evaluate_run, results_table
    from mirl.agents.training import train
    from mirl.configs.schema import EvalConfig

    console = Console()
    again = "the same command again goes on"
    console.print(f"Run {config.run_dir}: {config.total_timesteps:,} timesteps; Ctrl-C saves, {again}.", soft_wrap=True)
    outcome = train(config)
    if not outcome.finished:
        console.print(f"Stopped and saved at {outcome.timesteps:,} timesteps; {again}.")
        return 130
    evaluation = EvalConfig(run=config.run_dir, checkpoint="last", backend=config.backend, device=config.device)
    results, path = evaluate_run(evaluation)
    console.print(results_table(results, f"After {outcome.timesteps:,} timesteps, on unseen episodes"))
    console.print(f"Written: {path}", soft_wrap=True)
    console.print(f"Curves:  {command('tensorboard')} --logdir {config.runs_dir}", soft_wrap=True)
    console.print(f"Again:   {command('mirl-eval')} run={config.run_dir}", soft_wrap=True)
    return 0


def main() -> None:
    """The console script ``mirl-train``."""
    sys.exit(console_entry(run, train_help))


if __name__ == "__main__":
    main()
