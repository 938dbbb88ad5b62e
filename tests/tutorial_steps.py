"""Runs the blocks of a page, given as JSON, one after the other in the present folder.

One process, because torch loads slowly. A step is a pair: ``train``, ``eval`` or ``compare`` with
the arguments, which get tiny budgets here; ``torchrun`` with its own arguments and those of the
training; ``python`` with the code; ``text`` with a part of what the commands since the last text
have printed.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module

from mirl.configs.agents import OnPolicyConfig
from mirl.configs.commands.sweep import is_multirun
from mirl.configs.comparison import ComparisonConfig, parse_comparison
from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig

QUICK = (
    "evaluation.episodes=4",
    "evaluation.test_episodes=4",
    "evaluation.max_steps=20",
    "precision=fp32",
    "videos=false",
)
ON_POLICY = ("agent.n_envs=8", "agent.n_steps=16")
OFF_POLICY = ("agent.n_envs=1", "agent.learning_starts=64", "agent.train_freq=8")
DIVISOR = 1000
"""Timesteps of a page for each timestep here."""


class StepError(Exception):
    """A step that did not do what the page says."""


def with_tiny_budget(config: TrainConfig, words: Sequence[str]) -> list[str]:
    """Return the arguments of a training with small numbers in place of the page's."""
    # at most three rollouts, and more for a run that a page trains further
    timesteps = min(max(128, config.total_timesteps // DIVISOR), 384)
    tiny = [*QUICK, f"total_timesteps={timesteps}"]
    if isinstance(config.agent, OnPolicyConfig):
        tiny += ON_POLICY
        if config.agent.kind == "ppo":
            tiny.append("agent.batch_size=64")
    else:
        tiny += OFF_POLICY
    return replaced(words, tiny)


def replaced(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the arguments with others, which win."""
    names = {other.partition("=")[0] for other in others}
    return [word for word in words if word.partition("=")[0] not in names] + list(others)


def tiny_arguments(command: str, words: list[str]) -> list[str]:
    """Return the arguments of a command with small numbers in place of the page's."""
    match command:
        case "train":
            quiet = [*words, "progress=false"]
            if is_multirun(words):
                task = [word for word in words if word.startswith("task=")]
                few = ["n_trials=2"] if any("interval(" in word for word in words) else ["seed=0"]
                return replaced(with_tiny_budget(compose_train(task), quiet), few)
            return with_tiny_budget(compose_train(words), quiet)
        case "torchrun":
            end = words.index("mirl.train") + 1
            return words[:end] + tiny_arguments("train", words[end:])
        case "compare":
            config = parse_comparison(words)
            if isinstance(config, ComparisonConfig):
                setting = next(iter(config.settings))
                train = compose_train(config.words(config.tasks[0], setting))
                return replaced(with_tiny_budget(train, words), ["seeds=1"])
            return replaced(words, ["episodes=4"])
        case "eval":
            fewer = [] if "export" in " ".join(words) else ["episodes=4"]
            if any(word.startswith("adapt=") for word in words):
                fewer.append("adapt_episodes=2,4")
            return replaced(words, [*fewer, "checkpoint=last"])
        case _:
            raise StepError(f"no command {command}")


def run(command: str, words: list[str]) -> tuple[int, str]:
    """Run a command in this process, or torchrun's in processes of their own.

    Returns:
        The exit code, and the output with single spaces.
    """
    if command == "torchrun":
        launcher = [sys.executable, "-m", "torch.distributed.run"]
        finished = subprocess.run([*launcher, *words], check=False, capture_output=True, text=True)
        return finished.returncode, " ".join((finished.stdout + finished.stderr).split())
    sys.argv = [command, *words]
    output = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            import_module(f"mirl.{command}").main()
        except SystemExit as end:
            code = int(end.code or 0)
    sys.stdout.write(f"$ {' '.join(sys.argv)}\n{output.getvalue()}")
    return code, " ".join(output.getvalue().split())


def fails_by(following: Sequence[tuple[str, str]]) -> bool:
    """Return True if the page shows an error next."""
    return bool(following) and following[0][0] == "text" and following[0][1].startswith("error:")


def main() -> None:
    """Run the steps; an exception says which was not as its page says."""
    steps = json.load(sys.stdin)
    printed = ""
    for index, (kind, content) in enumerate(steps):
        if kind == "text":
            if " ".join(content.split()) not in printed:
                raise StepError(f"expected in the output:\n{content}\ngot:\n{printed}")
            printed = ""
        elif kind == "python":
            exec(compile(content, f"step {index}", "exec"), {"__name__": "__main__"})
        else:
            fails = fails_by(steps[index + 1 :])
            code, output = run(kind, content if fails else tiny_arguments(kind, content))
            printed += output
            if code != (2 if fails else 0):
                raise StepError(f"exit code {code} of {kind} {content}:\n{output}")


if __name__ == "__main__":
    main()
