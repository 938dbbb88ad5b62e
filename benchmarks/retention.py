"""Measure the retention of a learned task, for every fusion, in SB3's and MIRL's loops.

    python benchmarks/retention.py [--seeds 5] [--jobs 2]

The task has one timestep: the agent sees a ball of one of MiniGrid's six colors, its mission is
always "name the ball", and the action is right if it is the number of the color. It is easy, and an
agent that solves it can only unlearn it by steps that are too large. SB3's PPO trains
``FusionPolicy`` with a learning rate of 3e-4, MIRL's PPO with the defaults of ``train.py``. A point
is the share of right actions, sampled, in one rollout. The results are written after each run, and
runs that they contain are not repeated.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from joblib import Parallel, delayed
from machine import RESULTS, write_results
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from mirl.agents.builder import build_on_policy
from mirl.configs.agents import PPOConfig
from mirl.configs.compose import presets
from mirl.envs import ContractObservation
from mirl.policies import FusionPolicy

NAME = "retention"
LEARNED = 0.95
"""Share of right actions at which the task counts as learned."""
KEPT = 0.9
"""Share of right actions below which it counts as lost."""
FUSIONS = presets("fusion")
SB3_TIMESTEPS = 24_576
MIRL_TIMESTEPS = 65_536


class NameTheColor(gymnasium.Env[dict[str, Any], np.int64]):
    """Name the color of the ball in the view, in one timestep."""

    def __init__(self) -> None:
        codes = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), 3)
        high = np.broadcast_to(np.array(codes, np.uint8), (7, 7, 3)).copy()
        self.observation_space = spaces.Dict(
            image=spaces.Box(np.zeros_like(high), high, dtype=np.uint8),
            mission=spaces.Text(20),
        )
        self.action_space = spaces.Discrete(7)
        self.view = np.zeros((7, 7, 3), np.uint8)
        self.view[..., 0] = OBJECT_TO_IDX["empty"]
        self.view[3, 4] = OBJECT_TO_IDX["ball"], 0, STATE_TO_IDX["open"]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a color; see ``gymnasium.Env.reset``."""
        super().reset(seed=seed)
        self.view[3, 4, 1] = self.np_random.integers(len(COLOR_TO_IDX))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Reward the number of the color; see ``gymnasium.Env.step``."""
        return self._observation(), float(action == self.view[3, 4, 1]), True, False, {}

    def _observation(self) -> dict[str, Any]:
        return {"image": self.view.copy(), "mission": "name the ball"}


class RightActions(BaseCallback):
    """Record the share of right actions of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[float] = []
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        self.rewards.append(float(np.mean(self.locals["rewards"])))
        return True

    def _on_rollout_start(self) -> None:
        self.rewards.clear()

    def _on_rollout_end(self) -> None:
        self.curve.append(float(np.mean(self.rewards)))


def make_env(n_envs: int, seed: int) -> VecEnv:
    """Return vectorized environments.

    Args:
        n_envs: number of environments.
        seed: seed of the first one.
    """
    env = DummyVecEnv([lambda: ContractObservation(NameTheColor())] * n_envs)
    env.seed(seed)
    return env


def train_in_sb3(fusion: str, seed: int) -> list[float]:
    """Train with SB3's PPO and return the share of right actions per rollout.

    Args:
        fusion: the fusion.
        seed: seed of the agent and the environments.
    """
    agent = SB3PPO(
        FusionPolicy,
        make_env(16, seed),
        learning_rate=3e-4,
        n_steps=64,
        batch_size=256,
        n_epochs=4,
        policy_kwargs={"fusion": fusion},
        seed=seed,
        device="cpu",
    )
    callback = RightActions()
    agent.learn(SB3_TIMESTEPS, callback)
    return callback.curve


def train_in_mirl(fusion: str, seed: int) -> list[float]:
    """Train with MIRL's PPO and return the share of right actions per rollout.

    Args:
        fusion: the fusion.
        seed: seed of the agent and the environments.
    """
    config = PPOConfig().fit_rollout(MIRL_TIMESTEPS, n_tasks=1)
    agent = build_on_policy(
        config,
        FusionPolicy,
        {"fusion": fusion},
        make_env(config.n_envs, seed),
        total_timesteps=MIRL_TIMESTEPS,
        seed=seed,
        device="cpu",
        precision="fp32",
    )
    callback = RightActions()
    agent.learn(MIRL_TIMESTEPS, callback)
    return callback.curve


LOOPS: dict[str, Callable[[str, int], list[float]]] = {"SB3": train_in_sb3, "MIRL": train_in_mirl}


class Run(NamedTuple):
    """One training."""

    loop: str
    fusion: str
    seed: int


def train(run: Run) -> tuple[Run, list[float]]:
    """Train a run on one thread and return its curve.

    Args:
        run: the loop, fusion and seed.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return run, LOOPS[run.loop](run.fusion, run.seed)


def rollouts_to_learn(curve: list[float]) -> int | None:
    """Return the number of the first rollout in which the task counts as learned, if any does.

    Args:
        curve: share of right actions per rollout.
    """
    return next((i + 1 for i, share in enumerate(curve) if share >= LEARNED), None)


def table_row(loop: str, fusion: str, curves: list[list[float]]) -> list[str]:
    """Return a row of the table: how many seeds learned and kept the task, and how fast.

    Args:
        loop: the training loop.
        fusion: the fusion.
        curves: a curve per seed.
    """
    learned = []
    lowest = []
    for curve in curves:
        first = rollouts_to_learn(curve)
        if first is not None:
            learned.append(first)
            lowest.append(min(curve[first - 1 :]))
    kept = sum(share >= KEPT for share in lowest)
    span = f"{min(learned)} – {max(learned)}" if learned else "–"
    worst = f"{min(lowest):.0%}" if lowest else "–"
    n = len(curves)
    return [loop, fusion, f"{len(learned)} of {n}", f"{kept} of {n}", span, worst]


def main() -> None:
    """Train every loop, fusion and seed that the results file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    curves: dict[Run, list[float]] = {}
    if path.exists():
        for measured in json.loads(path.read_text(encoding="utf-8"))["measurements"]:
            run = Run(measured["loop"], measured["fusion"], measured["seed"])
            curves[run] = measured["curve"]
    runs = [
        Run(loop, fusion, seed)
        for seed in range(arguments.seeds)
        for loop in LOOPS
        for fusion in FUSIONS
    ]
    missing = [run for run in runs if run not in curves]
    parallel = Parallel(arguments.jobs, return_as="generator_unordered")
    columns = ["loop", "fusion", "learned", "and kept", "rollouts to 95 %", "lowest after that"]
    for run, curve in parallel(delayed(train)(run) for run in missing):
        curves[run] = curve
        print(*run, rollouts_to_learn(curve), flush=True)  # noqa: T201
        rows = []
        for loop in LOOPS:
            for fusion in FUSIONS:
                of_row = [curves[r] for r in runs if r[:2] == (loop, fusion) and r in curves]
                if of_row:
                    rows.append(table_row(loop, fusion, of_row))
        measurements = [
            {**each._asdict(), "curve": [round(share, 4) for share in curves[each]]}
            for each in runs
            if each in curves
        ]
        write_results(NAME, columns, rows, measurements)


if __name__ == "__main__":
    main()
