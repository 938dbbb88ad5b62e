"""Measure CleanRL's ``ppo_atari_envpool.py`` on DoorKey with MiniGrid's tutorial CNN.

The script runs as installed, with its own loop, optimizer and logging. Only two names are replaced
that it looks up at run time: its EnvPool and its network. 256 environments, 32 steps per rollout, 4
epochs of minibatches of 1,024; all else is CleanRL's default, or SB3's with ``--like-sb3``. Whole
iterations are timed, after the first two; the curve has the successes of all.
"""

import argparse
import ast
import contextlib
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import envpool
import gym
import numpy as np
from report import report
from torch import nn
from tutorial_cnn import DOOR_KEY, TUTORIAL, extractor, head

N_ENVS = 256
N_STEPS = 32
N_EPOCHS = 4
BATCH_SIZE = 1024
WARM_UP = 2
"""Iterations that are not timed."""
LIKE_SB3 = {
    "learning-rate": 3e-4,
    "anneal-lr": False,
    "clip-coef": 0.2,
    "clip-vloss": False,
    "ent-coef": 0.01,
}
"""Hyperparameters of SB3 where CleanRL's defaults differ, with the entropy bonus of both."""


class TimeIsUpError(Exception):
    """Leave CleanRL's loop between two iterations."""


class DoorKey(gym.Env):
    """EnvPool's DoorKey with the interface of EnvPool's Atari; it also keeps the time.

    Images have their channels first, ``done`` ends episodes, and ``info`` has the keys that the
    script reads.

    Args:
        seconds: How long to train after the warm-up.
        task: The registered id of the task.
        num_envs: Number of environments.
        seed: Their seed.
    """

    def __init__(self, seconds: float, task: str, num_envs: int, seed: int) -> None:
        self.pool = envpool.make_gymnasium(task, num_envs=num_envs, seed=seed)
        self.observation_space = gym.spaces.Box(0, 255, (3, 7, 7), np.uint8)
        self.action_space = gym.spaces.Discrete(int(self.pool.action_space.n))
        self.lives = np.zeros(num_envs, dtype=np.int32)
        self.seconds = seconds
        self.steps = 0
        self.start = 0.0
        self.elapsed = 0.0
        self.begin = time.perf_counter()
        self.curve: list[dict[str, float]] = []
        """Seconds, timesteps, episodes and successes, a row per iteration."""
        self.episodes = 0
        self.successes = 0

    def reset(self) -> np.ndarray:
        """Reset all environments and return their images, (B, C, H, W)."""
        observation, _ = self.pool.reset()
        # (B, H, W, C) -> (B, C, H, W)
        return observation["image"].transpose(0, 3, 1, 2)

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Step all environments.

        Args:
            action: The actions, of shape (B,).

        Returns:
            Images, rewards, dones and infos.

        Raises:
            TimeIsUpError: At the end of an iteration, when the time is up.
        """
        iteration, step = divmod(self.steps, N_STEPS)
        if step == 0:
            self._add_row()
        if step == 0 and iteration == WARM_UP:
            self.start = time.perf_counter()
        elif step == 0 and iteration > WARM_UP:
            self.elapsed = time.perf_counter() - self.start
            if self.elapsed >= self.seconds:
                raise TimeIsUpError
        self.steps += 1
        observation, reward, terminated, truncated, _ = self.pool.step(action)
        done = terminated | truncated
        self.episodes += int(done.sum())
        self.successes += int((done & (reward > 0)).sum())
        info = {"reward": reward, "terminated": done, "lives": self.lives}
        # (B, H, W, C) -> (B, C, H, W)
        return observation["image"].transpose(0, 3, 1, 2), reward, done, info

    def _add_row(self) -> None:
        row = {
            "seconds": time.perf_counter() - self.begin,
            "timesteps": self.steps * N_ENVS,
            "episodes": self.episodes,
            "successes": self.successes,
        }
        self.curve.append(row)
        self.episodes = 0
        self.successes = 0


def split_script(path: Path) -> tuple[ast.Module, ast.Module]:
    """Return the definitions of a script, and the body of ``if __name__ == "__main__"``.

    Args:
        path: The script.

    Raises:
        ValueError: If the script has no such statement or several.
    """
    definitions = []
    mains = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            mains.append(node)
        else:
            definitions.append(node)
    if len(mains) != 1:
        raise ValueError(
            f"expected one `if __name__ == '__main__'` in {path}, found {len(mains)}; "
            "install the pinned version of CleanRL"
        )
    return ast.Module(definitions, type_ignores=[]), ast.Module(mains[0].body, type_ignores=[])


def tutorial_agent(names: dict[str, Any]) -> type[nn.Module]:
    """Return CleanRL's agent with the network of the tutorial and CleanRL's initialization.

    Args:
        names: The definitions of the script.
    """
    layer_init = names["layer_init"]

    class Agent(names["Agent"]):  # type: ignore[misc]
        def __init__(self, envs: DoorKey) -> None:
            # not CleanRL's __init__, which would build its own network
            nn.Module.__init__(self)
            self.network = extractor()
            self.actor = head(envs.single_action_space.n)
            self.critic = head(1)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer_init(layer)
            layer_init(self.actor[-1], std=0.01)
            layer_init(self.critic[-1], std=1)

    return Agent


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--task", default=DOOR_KEY)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--like-sb3", action="store_true", help="SB3's hyperparameters")
    arguments = parser.parse_args()

    spec = find_spec("cleanrl.ppo_atari_envpool")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "expected CleanRL's ppo_atari_envpool.py in this environment, found none; "
            "install it by python -m benchmarks.peers cleanrl --install"
        )
    definitions, loop = split_script(Path(spec.origin))
    names: dict[str, Any] = {"__name__": "ppo_atari_envpool", "__file__": spec.origin}
    exec(compile(definitions, spec.origin, "exec"), names)
    if missing := {"Agent", "envpool", "layer_init"} - names.keys():
        raise ValueError(
            f"expected {spec.origin} to define {', '.join(sorted(missing))}; "
            "install the pinned version of CleanRL"
        )

    made: list[DoorKey] = []

    def make(env_id: str, *, num_envs: int, seed: int, **_: object) -> DoorKey:
        made.append(DoorKey(arguments.seconds, arguments.task, num_envs, seed))
        return made[0]

    names.update(Agent=tutorial_agent(names), envpool=SimpleNamespace(make=make))
    options = {
        "num-envs": N_ENVS,
        "num-steps": N_STEPS,
        "update-epochs": N_EPOCHS,
        "num-minibatches": N_ENVS * N_STEPS // BATCH_SIZE,
        "total-timesteps": 10**9,
        "cuda": False,
        "seed": arguments.seed,
    }
    if arguments.like_sb3:
        options |= LIKE_SB3
    sys.argv = [spec.origin, *(f"--{key}={value}" for key, value in options.items())]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),  # the script writes its curves to ./runs
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.suppress(TimeIsUpError),
    ):
        exec(compile(loop, spec.origin, "exec"), names)

    [env] = made
    report(
        "cleanrl",
        (env.steps - WARM_UP * N_STEPS) * N_ENVS,
        env.elapsed,
        ("envpool", "torch"),
        **{**TUTORIAL, "environment": arguments.task},
        curve=env.curve,
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
