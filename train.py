"""Train an agent: ``python train.py task=goto_door fusion=bilinear``. See ``--help``."""

import os
import sys

from mirl.configs.command_line import command, console_entry, train_help
from mirl.configs.compose import compose_train

KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""How many kernels torch keeps on a processor, made for one size of matrices each; it would keep 1024, and over a long
run the sizes are many: the share of distinct observations moves as the agent learns."""


def run(argv: list[str]) -> int:
    """Train as the words of the command line say; the exit code."""
    config = compose_train(argv)  # before torch is imported: a mistake is answered at once

    for name, count in KERNELS.items():
        os.environ.setdefault(name, count)  # read when torch makes its first
    from rich.console import Console

    from mirl.agents.evaluation import evaluate_run, results_table
    from mirl.agents.training import train
    from mirl.configs.schema import EvalConfig

    def say(line: str) -> None:
        Console().print(line, soft_wrap=True, highlight=False)

    outcome = train(config, say)
    if not outcome.finished:
        say(
            f"Stopped and saved at {outcome.timesteps:,} timesteps; the same command again resumes."
        )
        return 130
    evaluation = EvalConfig(
        run=config.run_dir,
        checkpoint="last",
        backend=config.backend,
        device=config.device,
        deterministic=config.evaluation.deterministic,
        episodes=config.evaluation.test_episodes,
    )
    results, written = evaluate_run(evaluation)
    Console().print(
        results_table(results, f"After {outcome.timesteps:,} timesteps, on unseen episodes")
    )
    say(f"Written: {written[0]}")
    say(f"Curves:  {command('tensorboard')} --logdir {config.runs_dir}")
    say(f"Again:   {command('mirl-eval')} run={config.run_dir} checkpoint=last")
    return 0


def main() -> None:
    """The console script ``mirl-train``."""
    sys.exit(console_entry(run, train_help))


if __name__ == "__main__":
    main()
