"""Evaluation on unseen episodes, per task."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.builder import Policy
from mirl.agents.context_use import (
    ContextUse,
    EpisodeContexts,
    RecordedContexts,
    SwappedContexts,
)
from mirl.agents.eval_mode import eval_mode, restored_global_generators
from mirl.agents.on_policy.minibatch import pad_to_bucket
from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.atomic_files import make_folder, write_bytes, write_json
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run import Run
from mirl.agents.statistics import Episode, TaskResult, suite_result
from mirl.agents.video import record_episode
from mirl.configs.schema import EvalConfig
from mirl.configs.tasks import (
    Subset,
    SuiteConfig,
    TaskConfig,
    file_name,
    has_score_bounds,
    score_bounds,
)
from mirl.envs import SuiteVecEnv, env_seeds
from mirl.envs.success import NO_REPORT
from mirl.envs.type_aliases import Observations

SUBSETS: tuple[Subset, ...] = ("trained", "held_out")
NO_SUCCESS = "–"
"""Success in tables where it is unknown."""
SUMMARY_ROWS = ("mean", "IQM", "worst")
"""Rows of the table over several tasks, in the order of the fields of ``Aggregate``."""

HiddenState = tuple[NDArray[np.float32], ...]


# --------------------------------------------------------------------------------- playing episodes


def evaluate(
    policy: BasePolicy,
    env: SuiteVecEnv,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = False,
    subset: Subset = "trained",
    contexts: EpisodeContexts | None = None,
) -> list[TaskResult]:
    """Play a number of episodes of each active task of an environment.

    Each environment plays a number of episodes that is fixed beforehand: taking the first episodes
    to finish would favor short ones.

    Args:
        policy: the policy; its mode and torch's random state are restored.
        env: the environments; they are seeded anew.
        episodes: episodes per task.
        seed: seed of the environments and of the actions.
        deterministic: take the most probable actions.
        subset: subset of the holdout that the environments play, which marks the results.
        contexts: given the observations before the policy reads them; it may replace them.

    Returns:
        One result per active task, in the order of the suite.
    """
    # a copy, because the environments update it as episodes begin
    task_index = env.task_index.copy()
    quotas = _quotas(task_index, episodes)
    env.seed(seed)
    with eval_mode(policy, seed):
        played = _play(policy, env, quotas, deterministic, contexts)
    return _task_results(env.suite, task_index, played, subset)


def evaluate_swapped(
    policy: BasePolicy,
    env: SuiteVecEnv,
    own: Sequence[TaskResult],
    contexts: RecordedContexts,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = False,
) -> ContextUse | None:
    """Play episodes in which the policy reads the context of other episodes.

    Episodes that fail are often long. No task takes more timesteps here than with its own contexts:
    an episode is cut and fails where the longest own one of its task ended, and there are only as
    many as fit into the timesteps of the own ones, at least one.

    Args:
        policy: the policy; its mode and all global random states are restored.
        env: the environments of ``own``; they are seeded anew.
        own: results of ``evaluate``.
        contexts: contexts of the episodes of ``own``.
        episodes: maximum number of episodes per task.
        seed: seed of the environments, of the actions and of the choice of contexts.
        deterministic: take the most probable actions.

    Returns:
        The results with own and with swapped contexts; None if no two contexts differ.
    """
    if not contexts.differ:
        return None
    task_index = env.task_index.copy()
    envs_per_task = int(np.unique(task_index, return_counts=True)[1].min())
    longest = {result.task: int(result.lengths.max()) for result in own}
    max_lengths = np.array([longest[env.suite.tasks[task].name] for task in task_index])
    fitting = min(int(result.lengths.sum()) // longest[result.task] for result in own)
    episodes = min(episodes, fitting)
    # one episode per environment and round; the last would be as long with few as with all of them
    rounds = max(1, episodes // envs_per_task)
    quotas = _quotas(task_index, min(episodes, envs_per_task))
    swapped = SwappedContexts(contexts, np.random.default_rng(seed))
    played: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    # a measurement must not change what a training draws
    with restored_global_generators(), eval_mode(policy, seed):
        env.seed(seed)
        for _ in range(rounds):
            of_round = _play(policy, env, quotas, deterministic, swapped, max_lengths)
            for env_index, finished in enumerate(of_round):
                played[env_index] += finished
    return ContextUse(
        contexts.keys,
        own,
        _task_results(env.suite, task_index, played, own[0].subset),
        has_scores=all(has_score_bounds(env.suite.tasks[task]) for task in set(task_index)),
    )


def _quotas(task_index: NDArray[np.int64], episodes: int) -> NDArray[np.int64]:
    """Spread each task's episodes over its environments as evenly as possible, (n_envs,)."""
    quotas = np.zeros(len(task_index), dtype=np.int64)
    for task in np.unique(task_index):
        env_indices = np.flatnonzero(task_index == task)
        n_envs = len(env_indices)
        has_one_more = np.arange(n_envs) < episodes % n_envs
        quotas[env_indices] = episodes // n_envs + has_one_more
    return quotas


def _play(
    policy: BasePolicy,
    env: SuiteVecEnv,
    quotas: NDArray[np.int64],
    deterministic: bool,
    contexts: EpisodeContexts | None = None,
    max_lengths: NDArray[np.int64] | None = None,
) -> list[list[Episode]]:
    """Play until each environment has finished its quota (n_envs,); return its episodes.

    With ``max_lengths`` (n_envs,), the quotas are at most 1, and a longer episode is cut and fails.
    """
    played: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    observation: Observations = env.reset()
    # an environment that is deactivated finishes its present episode and starts no other
    env.deactivate(np.flatnonzero(quotas <= 1))
    env.deactivate(np.flatnonzero(quotas == 0), at_once=True)
    active = np.flatnonzero(quotas)
    if contexts is not None:
        observation = contexts.update(observation, env.task_index, active)
    hidden_state: HiddenState | None = None
    starts = np.ones(env.num_envs, np.bool_)
    returns = np.zeros(env.num_envs)
    n_steps = 0
    # environments that are done still need some valid action
    actions = np.array([env.action_space.sample()] * env.num_envs)
    while active.size:
        # few batch sizes: a kernel is compiled for each
        rows = pad_to_bucket(np.arange(len(active)), env.num_envs)
        padded = active[rows]
        chosen, hidden_state = policy.predict(
            {key: values[padded] for key, values in observation.items()},
            _take_rows(hidden_state, rows),
            starts[padded],
            deterministic,
        )
        actions[active] = chosen[: len(active)]  # without the padding
        env.step_async(actions)
        observation, rewards, starts, infos = env.step_wait()
        returns += rewards
        n_steps += 1
        # starts is True where an episode has ended and the next has begun
        for env_index in active[starts[active]].tolist():
            info = infos[env_index]
            episode = info["episode"]
            outcome = Episode(info.get("is_success"), episode["r"], episode["l"])
            played[env_index].append(outcome)
        if max_lengths is not None:
            is_cut = ~starts[active] & (n_steps >= max_lengths[active])
            for env_index in active[is_cut].tolist():
                played[env_index].append(Episode(False, float(returns[env_index]), n_steps))
            env.deactivate(active[is_cut], at_once=True)
        remaining = quotas - [len(done) for done in played]
        env.deactivate(np.flatnonzero(remaining <= 1))
        still_active = np.flatnonzero(remaining[active] > 0)
        # the padded rows are dropped here too
        hidden_state = _take_rows(hidden_state, still_active)
        active = active[still_active]
        if contexts is not None:
            observation = contexts.update(observation, env.task_index, active[starts[active]])
    return played


def _take_rows(hidden_state: HiddenState | None, rows: NDArray[np.integer]) -> HiddenState | None:
    if hidden_state is None:
        return None
    return tuple(part[rows] for part in hidden_state)


def _task_results(
    suite: SuiteConfig,
    task_index: NDArray[np.int64],
    played: Sequence[Sequence[Episode]],
    subset: Subset,
) -> list[TaskResult]:
    """Return the result of each task from the episodes of each environment."""
    results = []
    for task in np.unique(task_index).tolist():
        of_task: list[Episode] = []
        for env_index in np.flatnonzero(task_index == task).tolist():
            of_task += played[env_index]
        results.append(_result(suite.tasks[task], of_task, subset))
    return results


def _result(task: TaskConfig, episodes: Sequence[Episode], subset: Subset) -> TaskResult:
    score_low, score_high = score_bounds(task)
    successes = [episode.success for episode in episodes]
    # a rate over some of the episodes would be a guess about the others
    success = None
    if None not in successes:
        success = np.array(successes)
    return TaskResult(
        task=task.name,
        success=success,
        returns=np.array([episode.episode_return for episode in episodes]),
        lengths=np.array([episode.length for episode in episodes]),
        score_low=score_low,
        score_high=score_high,
        subset=subset,
    )


# -------------------------------------------------------------------------- evaluating a checkpoint


class RunEvaluation(NamedTuple):
    """The evaluation of a checkpoint."""

    results: list[TaskResult]
    """The results, those of the trained subset before those of the held-out one."""
    context_use: ContextUse | None
    """Results of the trained subset with swapped contexts; None if they were not measured."""
    files: list[Path]
    """The written files."""


def evaluate_run(run: Run, checkpoint: Checkpoint, config: EvalConfig) -> RunEvaluation:
    """Evaluate a checkpoint on the test seeds and write the results into the run directory.

    Args:
        run: the run.
        checkpoint: one of its checkpoints.
        config: options of the evaluation; ``run`` and ``checkpoint`` are not read.

    Returns:
        The results, and the files that hold them.

    Raises:
        ConfigError: the checkpoint is damaged, or the environments cannot be created.
    """
    results: list[TaskResult] = []
    policy: Policy | None = None
    use: ContextUse | None = None
    # without a holdout there is no held-out subset to play
    subsets = SUBSETS
    if not run.config.split.holds_out_any:
        subsets = SUBSETS[:1]
    for subset in subsets:
        contexts = None
        if config.context_use and subset == "trained":
            contexts = RecordedContexts(run.config.context.keys)
        with closing(build_test_env(run, config, subset)) as env:
            # one policy for both subsets, which have the same spaces
            if policy is None:
                policy = restore_policy(run.config, checkpoint, config.device, env)
            of_subset = evaluate(
                policy,
                env,
                episodes=config.episodes,
                seed=config.seed,
                deterministic=config.deterministic,
                subset=subset,
                contexts=contexts,
            )
            results += of_subset
            if contexts is not None:
                use = evaluate_swapped(
                    policy,
                    env,
                    of_subset,
                    contexts,
                    episodes=config.context_use_episodes,
                    seed=config.seed,
                    deterministic=config.deterministic,
                )
    assert policy is not None
    stem = f"{checkpoint.name}-{env.backend}-seed{config.seed}-{config.episodes}ep"
    if config.deterministic:
        stem += "-deterministic"
    if config.success is not None:
        stem += f"-{file_name(config.success)}"
    folder = run.path / "eval"
    make_folder(folder)
    report = folder / f"{stem}.json"
    write_json(report, _report(checkpoint, env.backend, config, results, use))
    written = [report]
    if config.gif:
        written += _record_tasks(run, policy, config, folder / stem)
    return RunEvaluation(results, use, written)


def build_test_env(run: Run, config: EvalConfig, subset: Subset) -> SuiteVecEnv:
    """Build the test environments of a subset of a run's holdout.

    Args:
        run: the run.
        config: options of the evaluation.
        subset: subset of the run's holdout.

    Returns:
        The environments, equally many for each task.
    """
    training = run.config
    suite = training.task.with_success(config.success)
    n_tasks = len(training.split.task_indices(training.task, subset))
    # every task has as many environments as the others, and at least one
    envs_per_task = max(1, min(config.n_envs // n_tasks, config.episodes))
    return SuiteVecEnv(
        suite,
        n_tasks * envs_per_task,
        backend=config.backend,
        seed=config.seed,
        seed_split="test",
        holdout=training.split,
        subset=subset,
        max_steps=config.max_steps or training.evaluation.max_steps or "auto",
    )


def _report(
    checkpoint: Checkpoint,
    backend: str,
    config: EvalConfig,
    results: Sequence[TaskResult],
    use: ContextUse | None,
) -> dict[str, object]:
    summary = {}
    for subset, in_subset in _by_subset(results):
        summary[subset] = asdict(suite_result(in_subset))
    rule = {} if config.success is None else {"success": config.success}
    context_use = {} if use is None else {"context_use": use.summary()}
    return {
        "checkpoint": checkpoint.name,
        "backend": backend,
        "seed": config.seed,
        "deterministic": config.deterministic,
        **rule,
        "n_envs": config.n_envs,
        "tasks": [result.summary() for result in results],
        "summary": summary,
        **context_use,
    }


def _record_tasks(run: Run, policy: Policy, config: EvalConfig, stem: Path) -> list[Path]:
    """Write a GIF of one test episode per task; return the files."""
    written = []
    suite = run.config.task
    for index, task in enumerate(suite.tasks):
        [seed] = env_seeds(config.seed, "test", index, 1)
        gif = record_episode(policy, suite, index, seed=seed, deterministic=config.deterministic)
        if gif is not None:
            path = stem.with_name(f"{stem.name}-{file_name(task.name)}.gif")
            write_bytes(path, gif.data)
            written.append(path)
    return written


# ------------------------------------------------------------------------------------------- tables


def results_table(results: Sequence[TaskResult], title: str) -> Table:
    """Return a table with one row per task, and the summary of each subset with several tasks.

    Args:
        results: the results of one evaluation.
        title: title of the table.

    Returns:
        The table, for the terminal.
    """
    table = Table(title=title, title_justify="left", caption_justify="left")
    # over several lines where the terminal is narrow: cut, names with one beginning look the same
    table.add_column("task", overflow="fold")
    for column in ("episodes", "success", "95 % interval", "return", "score", "length"):
        table.add_column(column, justify="right", no_wrap=True)
    for subset, in_subset in _by_subset(results):
        for result in in_subset:
            table.add_row(*_task_cells(result))
        if len(in_subset) > 1:
            table.add_section()
            _add_summary(table, subset, in_subset)
        table.add_section()
    return table


def _add_summary(table: Table, subset: Subset, results: Sequence[TaskResult]) -> None:
    summary = suite_result(results)
    suffix = "" if subset == "trained" else " (held out)"
    rates = [NO_SUCCESS] * len(SUMMARY_ROWS)
    if summary.success is not None:
        rates = [f"{rate:.1%}" for rate in astuple(summary.success)]
    for name, rate, score in zip(SUMMARY_ROWS, rates, astuple(summary.score), strict=True):
        table.add_row(name + suffix, "", rate, "", "", f"{score:.3f}", "")
    if 0 < summary.tasks_with_success < len(results):
        note = f"over the {summary.tasks_with_success} of {len(results)} tasks that report it"
        lines = [] if table.caption is None else [str(table.caption)]
        table.caption = "\n".join([*lines, f"success{suffix}: {note}"])


def _task_cells(result: TaskResult) -> list[str]:
    return [
        result.label,
        str(result.n_episodes),
        *success_cells(result),
        f"{result.mean_return:.3f}",
        f"{result.score:.3f}",
        f"{result.mean_length:.1f}",
    ]


def success_cells(result: TaskResult) -> tuple[str, str]:
    """Return the success rate and its interval for a table.

    Args:
        result: the result of a task.

    Returns:
        Both as text, ``–`` if they are unknown.
    """
    if result.success_rate is None or result.success_interval is None:
        return NO_SUCCESS, NO_SUCCESS
    low, high = result.success_interval
    return f"{result.success_rate:.1%}", f"{low:.1%} – {high:.1%}"


def describe_missing_success(tasks: Sequence[str]) -> str:
    """Return which tasks report no success, and why it is unknown.

    Args:
        tasks: names of the tasks, at least one.

    Returns:
        The beginning of a sentence.
    """
    names = ", ".join(f"'{task}'" for task in tasks)
    if len(tasks) == 1:
        return f"task {names} reports no success ({NO_REPORT})"
    return f"tasks {names} report no success ({NO_REPORT})"


def missing_success_line(results: Sequence[TaskResult]) -> str | None:
    """Return a line that explains a table in which success is unknown.

    Args:
        results: the results in the table.

    Returns:
        The line; None if every task has a success rate.
    """
    # a task can have a result per subset
    tasks = list(dict.fromkeys(result.task for result in results if result.success is None))
    if not tasks:
        return None
    return f"{describe_missing_success(tasks)}; evaluate with 'success=return>=X' to define it"


def _by_subset(results: Sequence[TaskResult]) -> list[tuple[Subset, list[TaskResult]]]:
    """Group results by their subset; subsets without any are left out."""
    groups: list[tuple[Subset, list[TaskResult]]] = []
    for subset in SUBSETS:
        in_subset = [result for result in results if result.subset == subset]
        if in_subset:
            groups.append((subset, in_subset))
    return groups
