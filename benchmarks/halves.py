"""Would it pay to step half of the environments while the policy acts on the rest? ``python benchmarks/halves.py``.

Rollout steps of 256 DoorKey environments with the tutorial's network, all at once and in two halves that take turns.
"""

import argparse
import statistics
import time

import torch
from contenders import DOOR_KEY, ImageOnly, tutorial_ppo
from machine import write_results
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from mirl.agents import PPO
from mirl.agents.precision import autocast
from mirl.envs import make_vec_env

ENVIRONMENTS, STEPS = 256, 64


def environments(n_envs: int, seed: int) -> VecEnv:
    """Some environments that keep nothing but the image."""
    return ImageOnly(make_vec_env(DOOR_KEY, n_envs, backend="envpool", seed=seed))


def main() -> None:
    """Measure both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    whole, halves = environments(ENVIRONMENTS, 0), [environments(ENVIRONMENTS // 2, seed) for seed in (1, 2)]
    agent = tutorial_ppo(PPO, lambda: whole, precision="auto")

    def act(observation: NDArray[object]) -> NDArray[object]:
        with torch.no_grad(), autocast(agent.precision, agent.device):
            actions, _, _ = agent.policy(torch.as_tensor(observation, device=agent.device))
        found: NDArray[object] = actions.cpu().numpy()
        return found

    def step_whole() -> None:
        observation = whole.reset()
        for _ in range(STEPS):
            observation, *_ = whole.step(act(observation))

    def step_halves() -> None:
        first, second = halves
        one, two = first.reset(), second.reset()
        first.step_async(act(one))
        for _ in range(STEPS):
            second.step_async(act(two))
            one, *_ = first.step_wait()
            first.step_async(act(one))
            two, *_ = second.step_wait()
        first.step_wait()

    seconds: dict[str, list[float]] = {"all at once": [], "two halves in turn": []}
    for turn in range(rounds + 1):
        for taken, stepped in zip(seconds.values(), (step_whole, step_halves), strict=True):
            start = time.perf_counter()
            stepped()
            if turn:  # the first is the warm-up
                taken.append((time.perf_counter() - start) / STEPS / ENVIRONMENTS)
    rows = [
        [how, f"{1e6 * statistics.median(each):.1f} ({1e6 * min(each):.1f} – {1e6 * max(each):.1f})"]
        for how, each in seconds.items()
    ]
    write_results("halves", ["rollout", "microseconds per timestep, median (smallest – largest)"], rows, seconds)


if __name__ == "__main__":
    main()
