"""Evaluation on unseen episodes, per task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.acting import acting
from mirl.agents.building import load_policy
from mirl.agents.checkpoint import write_json
from mirl.agents.run_directory import read_config
from mirl.agents.statistics import TaskResult, wilson_interval
from mirl.agents.video import record_episode
from mirl.configs.schema import EvalConfig, TaskConfig, file_name
from mirl.envs import SuiteVecEnv, slot_seeds


def evaluate(
    policy: BasePolicy, env: SuiteVecEnv, *, episodes: int, seed: int, deterministic: bool = False
) -> list[TaskResult]:
    """Play ``episodes`` episodes of each task, from the seeds of the environment's split.

    Every slot plays a number of episodes fixed beforehand: taking the first to finish would favour short episodes.
    The actions are sampled from ``seed`` alone and leave torch's generators as they were.
    """
    tasks = env.task_index
    quota = np.zeros(env.num_envs, dtype=np.int64)
    for task in np.unique(tasks):
        slots = np.flatnonzero(tasks == task)
        quota[slots] = episodes // len(slots) + (np.arange(len(slots)) < episodes % len(slots))
    played: list[list[tuple[bool, float, int]]] = [[] for _ in range(env.num_envs)]
    env.seed(seed)
    with acting(policy, seed):
        observation = env.reset()
        while any(len(done) < quota[slot] for slot, done in enumerate(played)):
            actions, _ = policy.predict(observation, deterministic=deterministic)
            env.step_async(actions)
            observation, _, dones, infos = env.step_wait()
            for slot in np.flatnonzero(dones):
                if len(played[slot]) < quota[slot]:
                    episode = infos[slot]["episode"]
                    played[slot].append((infos[slot]["is_success"], episode["r"], episode["l"]))
    return [
        _result(task, [done for slot in np.flatnonzero(tasks == i) for done in played[slot]])
        for i, task in enumerate(env.suite.tasks)
    ]


def _result(task: TaskConfig, episodes: Sequence[tuple[bool, float, int]]) -> TaskResult:
    success, returns, lengths = (np.array(column) for column in zip(*episodes, strict=True))
    return TaskResult(task.name, success, returns, lengths, task.score_low, task.score_high)


def evaluate_run(config: EvalConfig) -> tuple[list[TaskResult], list[Path]]:
    """Evaluate a run's checkpoint on the test seeds; the results, and the files that now hold them.

    :raises ConfigError: when there is no such run or checkpoint.
    """
    training = read_config(config.run)
    n_envs = min(config.n_envs, config.episodes) * len(training.task.tasks)
    env = SuiteVecEnv(training.task, n_envs, backend=config.backend, seed=config.seed, split="test")
    try:
        policy, checkpoint = load_policy(
            config.run, config.checkpoint, env.observation_space, env.action_space, config.device
        )
        results = evaluate(policy, env, episodes=config.episodes, seed=config.seed, deterministic=config.deterministic)
    finally:
        env.close()
    name = f"{checkpoint.name}-{env.backend}-seed{config.seed}-{config.episodes}ep" + (
        "-deterministic" if config.deterministic else ""
    )
    report = {
        "checkpoint": checkpoint.name,
        "backend": env.backend,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "n_envs": n_envs,
        "tasks": [result.summary() for result in results],
    }
    folder = config.run / "eval"
    folder.mkdir(exist_ok=True)
    written = [folder / f"{name}.json"]
    write_json(written[0], report)
    if config.gif:
        for i, task in enumerate(training.task.tasks):
            seed = slot_seeds(config.seed, "test", i, 1)[0]
            gif = record_episode(policy, training.task, i, seed=seed, deterministic=config.deterministic)
            if gif is not None:
                written.append(folder / f"{name}-{file_name(task.name)}.gif")
                written[-1].write_bytes(gif.data)
    return results, written


def mean_success(results: Sequence[TaskResult]) -> float:
    """Success rate, averaged over tasks."""
    return float(np.mean([result.success_rate for result in results]))


def results_table(results: Sequence[TaskResult], title: str) -> Table:
    """One row per task, for the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("task", "episodes", "success", "95 % interval", "return", "length"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for result in results:
        summary = result.summary()
        low, high = wilson_interval(int(result.success.sum()), len(result.success))
        table.add_row(
            result.task,
            str(len(result.success)),
            f"{result.success_rate:.1%}",
            f"{low:.1%} – {high:.1%}",
            f"{summary['return_mean']:.3f} ± {summary['return_std']:.3f}",
            f"{summary['length_mean']:.1f}",
        )
    return table
