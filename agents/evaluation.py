"""Evaluation on unseen episodes, per task."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np
from rich.table import Table
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.builder import load_policy
from mirl.agents.eval_mode import eval_mode
from mirl.agents.on_policy.minibatch import pad_to_bucket
from mirl.agents.runs.atomic_files import write_json
from mirl.agents.runs.run import load_config
from mirl.agents.statistics import TaskResult, suite_result, wilson_interval
from mirl.agents.video import record_episode
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import Subset, TaskConfig, file_name, score_bounds
from mirl.envs import SuiteVecEnv, env_seeds

SUBSETS: tuple[Subset, ...] = ("trained", "held_out")
SUMMARY_ROWS = ("mean", "IQM", "worst")


def evaluate(
    policy: BasePolicy,
    env: SuiteVecEnv,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = False,
    subset: Subset = "trained",
) -> list[TaskResult]:
    """Play ``episodes`` episodes of each task that the environment has slots for, from the seeds of its split.

    Every slot plays a number of episodes fixed beforehand: taking the first to finish would favor short episodes.
    The actions are sampled from ``seed`` alone and leave torch's generators as they were. ``subset`` marks the results.
    """
    tasks = env.task_index
    quota = np.zeros(env.num_envs, dtype=np.int64)
    for task in np.unique(tasks):
        slots = np.flatnonzero(tasks == task)
        quota[slots] = episodes // len(slots) + (np.arange(len(slots)) < episodes % len(slots))
    played: list[list[tuple[bool, float, int]]] = [[] for _ in range(env.num_envs)]
    env.seed(seed)
    with eval_mode(policy, seed):
        observation = env.reset()
        env.deactivate(np.flatnonzero(quota <= 1))
        playing, remembered = np.flatnonzero(quota), None
        starts = np.ones(env.num_envs, np.bool_)
        actions = np.array(
            [env.action_space.sample()] * env.num_envs
        )  # of slots at rest: any that is valid
        while playing.size:
            rows = pad_to_bucket(np.arange(len(playing)), env.num_envs)
            asked = playing[rows]
            seen = {key: values[asked] for key, values in observation.items()}
            states = remembered and tuple(subset[rows] for subset in remembered)
            chosen, remembered = policy.predict(seen, states, starts[asked], deterministic)
            actions[playing] = chosen[: len(playing)]
            env.step_async(actions)
            observation, _, starts, infos = env.step_wait()
            for slot in playing[starts[playing]].tolist():
                episode = infos[slot]["episode"]
                played[slot].append((infos[slot]["is_success"], episode["r"], episode["l"]))
            left = quota - [len(done) for done in played]
            env.deactivate(np.flatnonzero(left <= 1))
            play_on = np.flatnonzero(left[playing] > 0)
            remembered = remembered and tuple(subset[play_on] for subset in remembered)
            playing = playing[play_on]
    return [
        _result(
            env.suite.tasks[i],
            [done for slot in np.flatnonzero(tasks == i) for done in played[slot]],
            subset,
        )
        for i in np.unique(tasks).tolist()
    ]


def _result(
    task: TaskConfig, episodes: Sequence[tuple[bool, float, int]], subset: Subset
) -> TaskResult:
    success, returns, lengths = (np.array(column) for column in zip(*episodes, strict=True))
    return TaskResult(task.name, success, returns, lengths, *score_bounds(task), subset=subset)


def evaluate_run(config: EvalConfig) -> tuple[list[TaskResult], list[Path]]:
    """Evaluate a run's checkpoint on the test seeds; the results, and the files that now hold them.

    Where the run's split withholds something, the results of what was trained come first, then those of what was not.

    :raises ConfigError: when there is no such run or checkpoint.
    """
    training = load_config(config.run)
    results: list[TaskResult] = []
    for subset in SUBSETS if training.split.holds_out_any else SUBSETS[:1]:
        with closing(_unseen(config, training, subset)) as env:
            policy, checkpoint = load_policy(
                config.run,
                config.checkpoint,
                env.observation_space,
                env.action_space,
                config.device,
            )
            results += evaluate(
                policy,
                env,
                episodes=config.episodes,
                seed=config.seed,
                deterministic=config.deterministic,
                subset=subset,
            )
    name = f"{checkpoint.name}-{env.backend}-seed{config.seed}-{config.episodes}ep" + (
        "-deterministic" if config.deterministic else ""
    )
    report = {
        "checkpoint": checkpoint.name,
        "backend": env.backend,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "n_envs": config.n_envs,
        "tasks": [result.summary() for result in results],
        "summary": {subset: asdict(suite_result(of_part)) for subset, of_part in _by_part(results)},
    }
    folder = config.run / "eval"
    folder.mkdir(exist_ok=True)
    written = [folder / f"{name}.json"]
    write_json(written[0], report)
    if config.gif:
        for i, task in enumerate(training.task.tasks):
            seed = env_seeds(config.seed, "test", i, 1)[0]
            gif = record_episode(
                policy, training.task, i, seed=seed, deterministic=config.deterministic
            )
            if gif is not None:
                written.append(folder / f"{name}-{file_name(task.name)}.gif")
                written[-1].write_bytes(gif.data)
    return results, written


def _unseen(config: EvalConfig, training: TrainConfig, subset: Subset) -> SuiteVecEnv:
    """The test episodes of a subset of the run's split."""
    n_tasks = len(training.split.task_indices(training.task, subset))
    slots = n_tasks * _slots_per_task(config, n_tasks)
    return SuiteVecEnv(
        training.task,
        slots,
        backend=config.backend,
        seed=config.seed,
        seed_split="test",
        holdout=training.split,
        subset=subset,
    )


def _slots_per_task(config: EvalConfig, n_tasks: int) -> int:
    return max(1, min(config.n_envs // n_tasks, config.episodes))


def _by_part(results: Sequence[TaskResult]) -> list[tuple[Subset, list[TaskResult]]]:
    """The results of each subset that has any."""
    of = [(subset, [result for result in results if result.subset == subset]) for subset in SUBSETS]
    return [(subset, of_part) for subset, of_part in of if of_part]


def results_table(results: Sequence[TaskResult], title: str) -> Table:
    """One row per task, for the terminal; under several tasks their mean, interquartile mean (IQM) and worst."""
    table = Table(title=title, title_justify="left")
    for column in ("task", "episodes", "success", "95 % interval", "return", "score", "length"):
        table.add_column(
            column, justify="left" if column == "task" else "right", no_wrap=column != "task"
        )
    for subset, of_part in _by_part(results):
        for result in of_part:
            table.add_row(*_task_cells(result))
        if len(of_part) > 1:
            together, mark = suite_result(of_part), "" if subset == "trained" else " (held out)"
            table.add_section()
            for name, success, score in zip(
                SUMMARY_ROWS, astuple(together.success), astuple(together.score), strict=True
            ):
                table.add_row(name + mark, "", f"{success:.1%}", "", "", f"{score:.3f}", "")
        table.add_section()
    return table


def _task_cells(result: TaskResult) -> list[str]:
    summary = result.summary()
    low, high = wilson_interval(int(result.success.sum()), len(result.success))
    return [
        result.label,
        str(len(result.success)),
        f"{result.success_rate:.1%}",
        f"{low:.1%} – {high:.1%}",
        f"{summary['return_mean']:.3f}",
        f"{result.score:.3f}",
        f"{summary['length_mean']:.1f}",
    ]
