"""What random play and an expert reach, per environment id: ``python benchmarks/references.py [ids]``.

    python benchmarks/references.py                         MiniGrid's and BabyAI's ids that a preset names
    python benchmarks/references.py BabyAI-GoToObj-v0 …     these

Returns are compared on the scale between the two (``score_bounds`` in configs/tasks.py). Random play takes uniform
actions; the expert is BabyAI's bot, where the id is one of BabyAI's. The seeds are those of the ``test`` split. Results
go to ``configs/references.json`` after each id, and ids that are already there are skipped. The bot searches in Python
and is slow in large mazes: when ``--seconds`` are over, it has played as many episodes as the file says.
"""

import argparse
import json
import sys
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers BabyAI's ids)
import numpy as np
from gymnasium.vector.utils import batch_space
from machine import machine
from minigrid.utils.baby_ai_bot import BabyAIBot

from mirl.agents.files import write_json
from mirl.configs.compose import compose_train, presets
from mirl.configs.tasks import REFERENCES, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env, slot_seeds

SEED, SLOTS = 0, 128
MAX_SEARCHES = 100
"""Of the bot for one action; it seldom needs more than a few."""
FAMILIES = ("MiniGrid-", "BabyAI-")


def preset_tasks() -> list[TaskConfig]:
    """Every task of MiniGrid and BabyAI that a preset names, each id once: the greatest return there is known, 1."""
    tasks = [task for preset in presets("task") for task in compose_train([f"task={preset}"]).task.tasks]
    return list({task.env_id: task for task in tasks if task.env_id.startswith(FAMILIES)}.values())


def summary(returns: list[float], successes: list[bool]) -> dict[str, float]:
    """Mean return and success rate, and of how many episodes."""
    return {
        "return": round(float(np.mean(returns)), 4),
        "success": round(float(np.mean(successes)), 4),
        "episodes": len(returns),
    }


def random_play(env: SuiteVecEnv, episodes: int) -> dict[str, float]:
    """Uniform actions; every slot plays as many episodes, so that short ones are not favoured."""
    actions = batch_space(env.action_space, env.num_envs)
    actions.seed(SEED)
    env.reset()
    quota = -(-episodes // env.num_envs)
    played: list[list[tuple[float, bool]]] = [[] for _ in range(env.num_envs)]
    while any(len(slot) < quota for slot in played):
        _, _, dones, infos = env.step(actions.sample())
        for slot in np.flatnonzero(dones).tolist():
            played[slot].append((infos[slot]["episode"]["r"], infos[slot]["is_success"]))
    returns, successes = zip(*(episode for slot in played for episode in slot[:quota]), strict=True)
    return summary(list(returns), list(successes))


def bot_play(env_id: str, episodes: int, seconds: float) -> dict[str, float]:
    """BabyAI's bot; an episode in which it fails counts as return 0, and ``failures`` says how many those are."""
    returns, failures, deadline = list[float](), 0, time.monotonic() + seconds
    with closing(gym.make(env_id, disable_env_checker=True)) as env:
        for seed in slot_seeds(SEED, "test", 0, episodes):
            try:
                with redirect_stdout(None):  # BabyAI prints a line for each layout it rejects
                    returns.append(_bot_episode(env, seed))
            except Exception:  # it was written for one purpose, and gives up in many ways
                returns.append(0.0)
                failures += 1
            if time.monotonic() > deadline:
                break
    return {**summary(returns, [result > 0 for result in returns]), "failures": failures}


class BoundedBot(BabyAIBot):
    """Gives up where BabyAI's bot would replan for ever, which in some layouts it does."""

    def replan(self, action_taken: Any = None) -> Any:
        self.searches = 0
        return super().replan(action_taken)

    def _breadth_first_search(self, *args: Any, **kwargs: Any) -> Any:
        self.searches += 1
        if self.searches > MAX_SEARCHES:
            raise RuntimeError(f"no action after {MAX_SEARCHES} searches")
        return super()._breadth_first_search(*args, **kwargs)


def _bot_episode(env: gym.Env[Any, Any], seed: int) -> float:
    env.reset(seed=seed)
    bot, action, total, over = BoundedBot(env.unwrapped), None, 0.0, False
    while not over:
        action = bot.replan(action)
        _, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def measure(task: TaskConfig, episodes: int, seconds: float) -> dict[str, dict[str, float]]:
    """Both references of one environment id; the expert's only where there is one."""
    suite = compose_train([f"task={task.env_id}"]).task.model_copy(update={"tasks": (task,)})
    with closing(make_vec_env(suite, SLOTS, seed=SEED, split="test")) as env:
        found = {"random": random_play(env, episodes)}
    if task.env_id.startswith("BabyAI-"):
        found["expert"] = bot_play(task.env_id, episodes, seconds)
    return found


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="id")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=60, help="for the bot, per environment id")
    arguments = parser.parse_args()
    known = json.loads(REFERENCES.read_text(encoding="utf-8"))["environments"] if REFERENCES.exists() else {}
    tasks = [TaskConfig(name=env_id, env_id=env_id) for env_id in arguments.ids] or preset_tasks()
    for task in tasks:
        if task.env_id in known:
            continue
        known[task.env_id] = measure(task, arguments.episodes, arguments.seconds)
        report = {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": machine()["versions"],
            "episodes": arguments.episodes,
            "environments": dict(sorted(known.items())),
        }
        write_json(REFERENCES, report)
        print(task.env_id, known[task.env_id], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
