"""Evaluation on unseen episodes, per task."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.analysis.recording import RecordedEpisodes
from mirl.agents.analysis.report import InsideView, look_inside, write_inside
from mirl.agents.builder import Policy
from mirl.agents.context_use import (
    ContextUse,
    EpisodeContexts,
    EpisodeRecorders,
    RecordedContexts,
    SwappedContexts,
)
from mirl.agents.eval_mode import eval_mode, restored_global_generators
from mirl.agents.on_policy.minibatch import pad_to_bucket
from mirl.agents.policy_loader import check_task_fits, restore_policy
from mirl.agents.runs.atomic_files import make_folder, warn_if_unwritable, write_json
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import SUBSETS, Episode, TaskResult, by_subset, suite_result
from mirl.agents.video import check_mp4, record_outcomes, write_videos
from mirl.configs.compose import compose_suite
from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.configs.schema import EvalConfig
from mirl.configs.tasks import (
    HoldoutConfig,
    Subset,
    SuiteConfig,
    TaskConfig,
    file_name,
    has_score_bounds,
    score_bounds,
    short_file_name,
)
from mirl.envs import SuiteVecEnv, env_seeds
from mirl.envs.type_aliases import Observations

if TYPE_CHECKING:  # pandas is imported on use
    import pandas as pd

HiddenState = tuple[NDArray[np.float32], ...]
VIDEO_EPISODES = 16
"""Maximum number of episodes played per task to record a success and a failure."""
VIDEO_STEPS = 1_000
"""Timesteps after which an episode of a video is cut."""


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
    """Play the given number of episodes of each active task.

    Each environment plays a number of episodes that is fixed beforehand: taking the first episodes
    to finish would favor short ones.

    Args:
        policy: the policy; its mode and torch's random state are restored.
        env: the environments; they are reseeded.
        episodes: episodes per task.
        seed: seed of the environments and of the actions.
        deterministic: take the most probable actions.
        subset: subset of the holdout that the environments play, which labels the results.
        contexts: receives the observations before the policy does, and may replace them.

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

    Failed episodes are often long, but no task takes more timesteps here than with its own
    contexts: an episode is cut, and counts as a failure, when it is as long as the longest own
    episode of its task, and only as many are played as fit into the timesteps of the own episodes,
    but at least one.

    Args:
        policy: the policy; its mode and all global random states are restored.
        env: the environments of ``own``; they are reseeded.
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
    # one episode per environment and round; whole rounds only, as a partial one takes as long
    rounds = max(1, episodes // envs_per_task)
    quotas = _quotas(task_index, min(episodes, envs_per_task))
    swapped = SwappedContexts(contexts, np.random.default_rng(seed))
    played: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    # a measurement must not change the random numbers that training draws
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

    With ``max_lengths`` (n_envs,), the quotas are at most 1; a longer episode is cut, as a failure.
    """
    played: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    observation: Observations = env.reset()
    # a deactivated environment finishes its current episode and starts no other
    env.deactivate(np.flatnonzero(quotas <= 1))
    env.deactivate(np.flatnonzero(quotas == 0), at_once=True)
    active = np.flatnonzero(quotas)
    if contexts is not None:
        observation = contexts.update(observation, env.task_index, active, active)
    hidden_state: HiddenState | None = None
    starts = np.ones(env.num_envs, np.bool_)
    returns = np.zeros(env.num_envs)
    n_steps = 0
    # environments that are done still need some valid action
    actions = np.array([env.action_space.sample()] * env.num_envs)
    while active.size:
        # only a few batch sizes, because a kernel is compiled for each
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
            begun = active[starts[active]]
            observation = contexts.update(observation, env.task_index, begun, active)
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
    """The written files; none if the run directory cannot be written."""
    inside: InsideView | None = None
    """A look at the outputs of the policy; None if not requested."""

    def to_dataframe(self) -> "pd.DataFrame":
        """Return the results as a table.

        Returns:
            A row per task and subset, and a column for each number in ``eval/*.json``: episodes,
            success rate with its 95 % interval, return, score, length in timesteps.
        """
        import pandas as pd

        return pd.DataFrame([result.summary() for result in self.results])


class _Part(NamedTuple):
    """Episodes that one set of environments plays."""

    suite: SuiteConfig
    holdout: HoldoutConfig
    subset: Subset
    """Subset of ``holdout`` that is played."""
    label: Subset
    """Subset of the run's holdout that the results are marked with."""

    @property
    def task_indices(self) -> tuple[int, ...]:
        """Indices of the tasks that are played."""
        return self.holdout.task_indices(self.suite, self.subset)


def evaluate_run(run: RunDirectory, checkpoint: Checkpoint, config: EvalConfig) -> RunEvaluation:
    """Evaluate a checkpoint on the test seeds and write the results into the run directory.

    Args:
        run: the run.
        checkpoint: one of its checkpoints.
        config: options of the evaluation; ``run`` and ``checkpoint`` are not read.

    Returns:
        The results, and the files that hold them; if they cannot be written, a warning says so.

    Raises:
        ConfigError: the checkpoint is damaged, the environments cannot be created, another task
            does not fit the policy, or the encoder of MP4s is missing.
    """
    if config.mp4:
        check_mp4()
    parts = _own_parts(run)
    if config.task:
        parts = _other_parts(run, checkpoint, config)
    measured = _measure(run, checkpoint, config, parts)
    stem = run.results_dir / "eval" / _stem(checkpoint, measured.backend, config)
    written: list[Path] = []
    with warn_if_unwritable(stem.parent):
        make_folder(stem.parent)
        path = stem.with_name(f"{stem.name}.json")
        write_json(path, _report(checkpoint, config, measured))
        written.append(path)
        if measured.inside is not None:
            steps = checkpoint.state["num_timesteps"]
            written += write_inside(measured.inside, stem.with_name(f"{stem.name}-inside"), steps)
        if config.gif or config.mp4:
            # the run's own parts have the same tasks
            filmed = parts if config.task else parts[:1]
            written += _record_tasks(measured.policy, config, filmed, stem, measured.results)
    return RunEvaluation(measured.results, measured.context_use, written, measured.inside)


class _Measured(NamedTuple):
    """All measurements of a checkpoint, and the policy for videos."""

    results: list[TaskResult]
    context_use: ContextUse | None
    inside: InsideView | None
    policy: Policy
    backend: str


def _measure(
    run: RunDirectory, checkpoint: Checkpoint, config: EvalConfig, parts: Sequence[_Part]
) -> _Measured:
    """Play the episodes of all parts."""
    results: list[TaskResult] = []
    policy: Policy | None = None
    use: ContextUse | None = None
    inside: InsideView | None = None
    keys = run.config.context.keys
    # contexts are only swapped between episodes of the same environments
    is_single = [part.label for part in parts].count("trained") == 1
    for number, part in enumerate(parts):
        contexts = None
        if config.context_use and is_single and part.label == "trained":
            contexts = RecordedContexts(keys)
        recorded = None
        if config.inside and number == 0:
            recorded = RecordedEpisodes(part.suite, keys, seed=config.seed)
        recorders = [each for each in (contexts, recorded) if each is not None]
        with closing(_build_env(run, config, part)) as env:
            # one policy for all parts, which have the same spaces
            if policy is None:
                policy = restore_policy(run.config, checkpoint, config.device, env)
            of_part = evaluate(
                policy,
                env,
                episodes=config.episodes,
                seed=config.seed,
                deterministic=config.deterministic,
                subset=part.label,
                contexts=EpisodeRecorders(recorders) if recorders else None,
            )
            results += of_part
            if recorded is not None:
                inside = look_inside(policy, recorded)
            if contexts is not None:
                use = evaluate_swapped(
                    policy,
                    env,
                    of_part,
                    contexts,
                    episodes=config.context_use_episodes,
                    seed=config.seed,
                    deterministic=config.deterministic,
                )
    assert policy is not None
    return _Measured(results, use, inside, policy, env.backend)


def _own_parts(run: RunDirectory) -> list[_Part]:
    """Return the subsets of a run's holdout; without a holdout, none is held out."""
    training = run.config
    subsets = SUBSETS
    if not training.split.holds_out_any:
        subsets = SUBSETS[:1]
    return [_Part(training.task, training.split, subset, label=subset) for subset in subsets]


def _other_parts(run: RunDirectory, checkpoint: Checkpoint, config: EvalConfig) -> list[_Part]:
    """Return a part for each task of another suite, which replaces one of the run's own tasks.

    The number of tasks must stay the same, because the shapes of the policy depend on it, and the
    policy may read the index of the task.
    """
    training = run.config
    own_names = [task.name for task in training.task.tasks]
    reads_index = TASK_KEY in training.context.keys and len(own_names) > 1
    parts = []
    for task in compose_suite(config.task, config.config_dir).tasks:
        if reads_index and task.name not in own_names:
            raise ConfigError(
                f"the policy reads the index of its task, and {run.path} was not trained on "
                f"'{task.name}', expected a task of its own: {', '.join(own_names)}; "
                "adapt=context learns another one"
            )
        alone = training.task.model_copy(update={"tasks": (task,)})
        check_task_fits(checkpoint, alone, config.backend)
        holdout = HoldoutConfig(name="evaluation", tasks=(task.name,))
        suite = training.task.with_task(task)
        parts.append(_Part(suite, holdout, "held_out", label="trained"))
    return parts


def build_test_env(run: RunDirectory, config: EvalConfig, subset: Subset) -> SuiteVecEnv:
    """Build the test environments of a subset of a run's holdout.

    Args:
        run: the run.
        config: options of the evaluation.
        subset: subset of the run's holdout.

    Returns:
        The environments, the same number for each task.
    """
    return _build_env(run, config, _Part(run.config.task, run.config.split, subset, label=subset))


def _build_env(run: RunDirectory, config: EvalConfig, part: _Part) -> SuiteVecEnv:
    n_tasks = len(part.task_indices)
    # every task has as many environments as the others, and at least one
    envs_per_task = max(1, min(config.n_envs // n_tasks, config.episodes))
    return SuiteVecEnv(
        part.suite.with_success(config.success),
        n_tasks * envs_per_task,
        backend=config.backend,
        seed=config.seed,
        seed_split="test",
        holdout=part.holdout,
        subset=part.subset,
        max_steps=config.max_steps or run.config.evaluation.max_steps or "auto",
    )


def _stem(checkpoint: Checkpoint, backend: str, config: EvalConfig) -> str:
    """Return the name of the files, without their suffix."""
    parts = [checkpoint.name]
    if config.task:
        parts.append(short_file_name(config.task))
    parts += [backend, f"seed{config.seed}", f"{config.episodes}ep"]
    if config.deterministic:
        parts.append("deterministic")
    if config.success is not None:
        parts.append(file_name(config.success))
    return "-".join(parts)


def _report(checkpoint: Checkpoint, config: EvalConfig, measured: _Measured) -> dict[str, object]:
    use = measured.context_use
    summary = {}
    for subset, in_subset in by_subset(measured.results):
        summary[subset] = asdict(suite_result(in_subset))
    rule = {} if config.success is None else {"success": config.success}
    other = {"task": config.task} if config.task else {}
    context_use = {} if use is None else {"context_use": use.summary()}
    return {
        "checkpoint": checkpoint.name,
        **other,
        "backend": measured.backend,
        "seed": config.seed,
        "deterministic": config.deterministic,
        **rule,
        "n_envs": config.n_envs,
        "tasks": [result.summary() for result in measured.results],
        "summary": summary,
        **context_use,
    }


def _record_tasks(
    policy: Policy,
    config: EvalConfig,
    parts: Sequence[_Part],
    stem: Path,
    results: Sequence[TaskResult],
) -> list[Path]:
    """Write videos of a successful and a failed test episode per task; return the files."""
    written = []
    for part in parts:
        suite = part.suite.with_success(config.success)
        indices: Sequence[int] = part.task_indices
        if not config.task:  # the held-out tasks too
            indices = range(len(suite.tasks))
        for index in indices:
            task = suite.tasks[index].name
            recordings = record_outcomes(
                policy,
                suite,
                index,
                seeds=env_seeds(config.seed, "test", index, VIDEO_EPISODES),
                wanted=_outcomes(results, task),
                deterministic=config.deterministic,
                max_steps=VIDEO_STEPS,
                inside=config.inside,
            )
            path = stem.with_name(f"{stem.name}-{file_name(task)}")
            for suffix, is_asked in (("gif", config.gif), ("mp4", config.mp4)):
                if is_asked:
                    written += write_videos(path, suffix, recordings)
    return written


def _outcomes(results: Sequence[TaskResult], task: str) -> set[str]:
    """Return the outcomes that the episodes of a task had; none if no success is reported."""
    outcomes = set()
    for result in results:
        if result.task == task and result.success is not None:
            outcomes |= {"success" if success else "failure" for success in result.success}
    return outcomes
