"""CleanRL's ``ppo_atari_envpool.py`` with DoorKey-8x8 in Atari's place, and the CNN of MiniGrid's SB3 tutorial.

The script is CleanRL's as installed, loop, optimiser and logging included; only two names that it looks up while it
runs, its EnvPool and its network, are exchanged. 256 environments, 32 steps a rollout, 4 epochs of batches of 1,024;
all else is CleanRL's default. Timed are whole iterations, the first two left out.
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
from tutorial_cnn import extractor, head

N_ENVS, N_STEPS, N_EPOCHS, BATCH_SIZE = 256, 32, 4, 1024
WARM_UP = 2
"""Iterations that are not timed."""


class TimeIsUp(Exception):  # noqa: N818
    """Leaves CleanRL's loop between two iterations."""


class DoorKey(gym.Env):
    """EnvPool's DoorKey as the script expects EnvPool's Atari, and the clock.

    Images come channels first, episodes end by ``done``, and ``info`` has what the script reads.
    """

    def __init__(self, seconds: float, num_envs: int, seed: int) -> None:
        self.pool = envpool.make_gymnasium("MiniGrid-DoorKey-8x8-v0", num_envs=num_envs, seed=seed)
        self.observation_space = gym.spaces.Box(0, 255, (3, 7, 7), np.uint8)
        self.action_space = gym.spaces.Discrete(int(self.pool.action_space.n))
        self.lives = np.zeros(num_envs, dtype=np.int32)
        self.seconds = seconds
        self.steps = 0
        self.start = self.elapsed = 0.0

    def reset(self) -> np.ndarray:
        return self.pool.reset()[0]["image"].transpose(0, 3, 1, 2)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        iteration, step = divmod(self.steps, N_STEPS)
        if step == 0 and iteration == WARM_UP:
            self.start = time.perf_counter()
        elif step == 0 and iteration > WARM_UP:
            self.elapsed = time.perf_counter() - self.start
            if self.elapsed >= self.seconds:
                raise TimeIsUp
        self.steps += 1
        observation, reward, terminated, truncated, _ = self.pool.step(action)
        done = terminated | truncated
        info = {"reward": reward, "terminated": done, "lives": self.lives}
        return observation["image"].transpose(0, 3, 1, 2), reward, done, info


def split(path: Path) -> tuple[ast.Module, ast.Module]:
    """The script's definitions, and what it does when run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mains = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    if len(mains) != 1:
        raise ValueError(f"expected one `if __name__ == '__main__'` in {path}, found {len(mains)}")
    definitions = [node for node in tree.body if node is not mains[0]]
    return ast.Module(definitions, type_ignores=[]), ast.Module(mains[0].body, type_ignores=[])


def agent_class(names: dict[str, Any]) -> type[nn.Module]:
    """CleanRL's agent with the tutorial's network, initialised as CleanRL initialises."""
    layer_init = names["layer_init"]

    class Agent(names["Agent"]):  # type: ignore[misc]
        def __init__(self, envs: DoorKey) -> None:
            nn.Module.__init__(self)
            self.network, self.actor, self.critic = extractor(), head(envs.single_action_space.n), head(1)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer_init(layer)
            layer_init(self.actor[-1], std=0.01)
            layer_init(self.critic[-1], std=1)

    return Agent


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds

    spec = find_spec("cleanrl.ppo_atari_envpool")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("expected CleanRL's ppo_atari_envpool.py in this environment")
    definitions, loop = split(Path(spec.origin))
    names: dict[str, Any] = {"__name__": "ppo_atari_envpool", "__file__": spec.origin}
    exec(compile(definitions, spec.origin, "exec"), names)
    if missing := {"Agent", "envpool", "layer_init"} - names.keys():
        raise ValueError(f"expected {spec.origin} to define {', '.join(sorted(missing))}")

    made: list[DoorKey] = []

    def make(env_id: str, *, num_envs: int, seed: int, **_: object) -> DoorKey:
        made.append(DoorKey(seconds, num_envs, seed))
        return made[0]

    names.update(Agent=agent_class(names), envpool=SimpleNamespace(make=make))
    options = {"num-envs": N_ENVS, "num-steps": N_STEPS, "update-epochs": N_EPOCHS}
    options |= {"num-minibatches": N_ENVS * N_STEPS // BATCH_SIZE, "total-timesteps": 10**9}
    sys.argv = [spec.origin, "--cuda=False", *(f"--{key}={value}" for key, value in options.items())]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),  # the script writes its curves to ./runs
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.suppress(TimeIsUp),
    ):
        exec(compile(loop, spec.origin, "exec"), names)

    [env] = made
    report(
        "cleanrl",
        (env.steps - WARM_UP * N_STEPS) * N_ENVS,
        env.elapsed,
        ("envpool", "torch"),
        environment="MiniGrid-DoorKey-8x8-v0",
        observation="image 7 x 7 x 3",
        network="CNN of MiniGrid's SB3 tutorial",
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
