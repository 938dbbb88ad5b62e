"""Measure the reference returns of random play and of an expert.

    python benchmarks/references.py                     # all MiniGrid and BabyAI ids of the presets
    python benchmarks/references.py BabyAI-GoToObj-v0   # the given ids

Scores are returns on the scale from random play to the expert (``score_bounds`` in
``configs/tasks.py``). Random play draws uniform actions. The expert is BabyAI's bot, so only BabyAI
ids have one. The seeds are those of the ``test`` split. After each id, the results are written to
``configs/references.json``; ids that are already there are skipped. The bot is slow in large mazes:
it stops after ``--seconds``, and the file records how many episodes it has played.
"""

import argparse
import json
import time
from contextlib import closing, redirect_stdout
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers MiniGrid's and BabyAI's ids)
import numpy as np
from gymnasium.vector.utils import batch_space
from minigrid.utils.baby_ai_bot import BabyAIBot

from mirl.agents.comparison.machine import command_line, machine
from mirl.agents.runs.atomic_files import write_json
from mirl.configs.compose import compose_train, presets
from mirl.configs.tasks import REFERENCES, TaskConfig
from mirl.envs import SuiteVecEnv, env_seeds, make_vec_env

SEED = 0
N_ENVS = 128
MAX_SEARCHES = 100
"""Maximum number of searches by the bot for one action; it seldom needs more than a few."""
FAMILIES = ("MiniGrid-", "BabyAI-")
"""Prefixes of the ids to measure."""


def preset_tasks() -> list[TaskConfig]:
    """Return every MiniGrid and BabyAI task of the presets, each environment id once."""
    tasks = {}
    for preset in presets("task"):
        for task in compose_train([f"task={preset}"]).task.tasks:
            if task.env_id.startswith(FAMILIES):
                tasks[task.env_id] = task
    return list(tasks.values())


def summarize(returns: list[float], successes: list[bool]) -> dict[str, float]:
    """Return the mean return, the success rate and the number of episodes.

    Args:
        returns: The return of each episode.
        successes: Whether each episode succeeded.
    """
    return {
        "return": round(float(np.mean(returns)), 4),
        "success": round(float(np.mean(successes)), 4),
        "episodes": len(returns),
    }


def measure_random_play(env: SuiteVecEnv, episodes: int) -> dict[str, float]:
    """Play with uniform actions.

    Every environment contributes the same number of episodes. Taking the first ones to finish would
    favor short episodes.

    Args:
        env: The environments.
        episodes: Number of episodes, rounded up to a multiple of the environments.

    Returns:
        The summary of the episodes.
    """
    actions = batch_space(env.action_space, env.num_envs)
    actions.seed(SEED)
    env.reset()
    per_env = -(-episodes // env.num_envs)
    returns: list[list[float]] = [[] for _ in range(env.num_envs)]
    successes: list[list[bool]] = [[] for _ in range(env.num_envs)]
    while min(len(finished) for finished in returns) < per_env:
        _, _, dones, infos = env.step(actions.sample())
        for env_index in np.flatnonzero(dones).tolist():
            returns[env_index].append(infos[env_index]["episode"]["r"])
            successes[env_index].append(infos[env_index]["is_success"])
    return summarize(
        [value for finished in returns for value in finished[:per_env]],
        [value for finished in successes for value in finished[:per_env]],
    )


def measure_bot(env_id: str, episodes: int, seconds: float) -> dict[str, float]:
    """Play with BabyAI's bot.

    Args:
        env_id: The registered id of the environment.
        episodes: Maximum number of episodes.
        seconds: Time limit; the current episode is still finished.

    Returns:
        The summary of the episodes, and the number in which the bot failed. Those count as a return
        of 0.
    """
    returns = []
    failures = 0
    deadline = time.monotonic() + seconds
    with closing(gym.make(env_id, disable_env_checker=True)) as env:
        for seed in env_seeds(SEED, "test", 0, episodes):
            try:
                with redirect_stdout(None):  # BabyAI prints a line for each layout it rejects
                    returns.append(_play_bot_episode(env, seed))
            except Exception:  # the bot raises various errors in layouts that it cannot solve
                returns.append(0.0)
                failures += 1
            if time.monotonic() > deadline:
                break
    successes = [value > 0 for value in returns]
    return {**summarize(returns, successes), "failures": failures}


class BoundedBot(BabyAIBot):
    """BabyAI's bot with a limit on its searches: in some layouts it would replan forever."""

    def replan(self, action_taken: Any = None) -> Any:
        """Return the next action.

        Args:
            action_taken: The previous action.

        Raises:
            RuntimeError: After ``MAX_SEARCHES`` searches.
        """
        self.searches = 0
        return super().replan(action_taken)

    def _breadth_first_search(self, *args: Any, **kwargs: Any) -> Any:
        self.searches += 1
        if self.searches > MAX_SEARCHES:
            raise RuntimeError(f"expected an action within {MAX_SEARCHES} searches, got none")
        return super()._breadth_first_search(*args, **kwargs)


def _play_bot_episode(env: gym.Env[Any, Any], seed: int) -> float:
    env.reset(seed=seed)
    bot = BoundedBot(env.unwrapped)
    action = None
    episode_return = 0.0
    done = False
    while not done:
        action = bot.replan(action)
        _, reward, terminated, truncated, _ = env.step(action)
        episode_return += float(reward)
        done = terminated or truncated
    return episode_return


def measure(task: TaskConfig, episodes: int, seconds: float) -> dict[str, dict[str, float]]:
    """Measure the references of one environment id.

    Args:
        task: The task with the environment id.
        episodes: Number of episodes.
        seconds: The limit for the bot.

    Returns:
        The summary of random play and, for BabyAI ids, of the expert.
    """
    suite = compose_train([f"task={task.env_id}"]).task.model_copy(update={"tasks": (task,)})
    with closing(make_vec_env(suite, N_ENVS, seed=SEED, split="test")) as env:
        found = {"random": measure_random_play(env, episodes)}
    if task.env_id.startswith("BabyAI-"):
        found["expert"] = measure_bot(task.env_id, episodes, seconds)
    return found


def main() -> None:
    """Measure the missing ids and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", nargs="*", metavar="id")
    parser.add_argument("--episodes", type=int, default=512, help="per id")
    parser.add_argument("--seconds", type=float, default=60, help="limit for the bot, per id")
    arguments = parser.parse_args()
    known = {}
    if REFERENCES.exists():
        known = json.loads(REFERENCES.read_text(encoding="utf-8"))["environments"]
    tasks = [TaskConfig(name=env_id, env_id=env_id) for env_id in arguments.ids]
    for task in tasks or preset_tasks():
        if task.env_id in known:
            continue
        known[task.env_id] = measure(task, arguments.episodes, arguments.seconds)
        report = {
            "command": command_line(),
            "versions": machine()["versions"],
            "episodes": arguments.episodes,
            "environments": dict(sorted(known.items())),
        }
        write_json(REFERENCES, report)
        print(task.env_id, known[task.env_id], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
