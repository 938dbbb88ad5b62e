"""Train an agent: ``python train.py task=goto_door fusion=bilinear``. See ``--help``."""

import os
import sys

from mirl.configs.command_line import command, console_entry, train_help
from mirl.configs.compose import compose_train
from mirl.configs.imports import import_words

KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Capacity of torch's CPU kernel caches, which hold a kernel per matrix size and default to 1024.

A long run sees many sizes: the share of distinct observations changes as the agent learns.
"""


def run(argv: list[str]) -> int:
    """Train the agent that the command line describes, then evaluate its last checkpoint.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code: 0, or 130 if the run was stopped and saved.
    """
    config = compose_train(argv)  # before torch is imported, so that mistakes are reported at once

    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)  # before torch compiles its first kernel
    # the other imports load torch, which takes seconds
    from rich.console import Console

    from mirl.agents.evaluation import evaluate_run, results_table
    from mirl.agents.training import train
    from mirl.configs.schema import EvalConfig

    console = Console()

    def log(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    result = train(config, log)
    if not result.finished:
        log(
            f"Stopped and saved at {result.timesteps:,} timesteps; "
            "run the same command again to resume."
        )
        return 130  # as after Ctrl-C in a shell
    # test on seeds that neither the training nor its evaluations have used
    evaluation = EvalConfig(
        run=config.run_dir,
        checkpoint="last",
        backend=config.backend,
        device=config.device,
        deterministic=config.evaluation.deterministic,
        episodes=config.evaluation.test_episodes,
        context_use=config.evaluation.context_use,
        context_use_episodes=config.evaluation.context_use_episodes,
    )
    results, context_use, [report] = evaluate_run(result.run, result.checkpoint, evaluation)
    title = f"After {result.timesteps:,} timesteps, on unseen episodes"
    console.print(results_table(results, title))
    if context_use is not None:
        for line in context_use.lines():
            log(line)
    log(f"Written: {report}")
    log(f"Curves:  {command('tensorboard')} --logdir {config.runs_dir}")
    words = [f"run={config.run_dir}", "checkpoint=last", *import_words(config.model_dump())]
    log(f"Evaluate again: {command('mirl-eval')} {' '.join(words)}")
    return 0


def main() -> None:
    """Run the console script ``mirl-train``."""
    sys.exit(console_entry(run, train_help))


if __name__ == "__main__":
    main()
