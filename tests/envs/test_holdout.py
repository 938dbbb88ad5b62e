"""Tests of the holdout: which tasks are active, and which episodes are rejected."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import text_envs  # noqa: F401  (registers its ids)
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from suites import BACKENDS, DONE, DOORS

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import HoldoutConfig, Subset, SuiteConfig, TaskConfig
from mirl.configs.texts import TextForm
from mirl.envs import VOCABULARY, SuiteVecEnv, mission_space, tokenize
from mirl.envs.holdout import MAX_DRAWS, EpisodeFilter
from mirl.envs.texts.codec import suite_codec

GOALS = SuiteConfig(name="goals", tasks=(TaskConfig(name="goal", env_id="ToyShortGoal-v0"),))
COLORS = HoldoutConfig(name="colors", missions=("red door", "green door"))
BOX = HoldoutConfig(name="box", goal_low=(-1, -1, 0), goal_high=(1, 1, 1))
ROOM = "MiniGrid-GoToDoor-5x5-v0"


def text_of(mission: np.ndarray) -> str:
    """Return the text of tokens (MAX_TOKENS,) that are all in the vocabulary."""
    return " ".join(VOCABULARY[token - 1] for token in mission if token)


def missions_of(env: SuiteVecEnv, n_steps: int) -> list[str]:
    """Return the missions of all episodes, at resets and in steps."""
    obs = env.reset()
    rows = list(obs["mission"])
    for _ in range(n_steps):
        obs, _, dones, _ = env.step(np.full(env.num_envs, DONE))
        assert dones.all()
        rows += list(obs["mission"])
    return [text_of(row) for row in rows]


def goals_of(env: SuiteVecEnv, n_episodes: int) -> np.ndarray:
    """Return the goals of all episodes, at resets and in steps."""
    goals = [env.reset()["desired_goal"]]
    while len(goals) < n_episodes:
        obs, _, dones, _ = env.step(np.zeros((env.num_envs, 2), np.float32))
        if dones.all():
            goals.append(obs["desired_goal"])
    return np.concatenate(goals)


def make_filter(holdout: HoldoutConfig, subset: Subset = "trained") -> EpisodeFilter:
    space = spaces.Dict({"mission": mission_space(), "task": spaces.Discrete(3)})
    return EpisodeFilter(DOORS, holdout, subset, space)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("subset", ["trained", "held_out"])
def test_missions_belong_to_their_subset(backend: BackendName, subset: Subset) -> None:
    """Held-out missions occur in the held-out subset only, the others in the trained one."""
    with closing(SuiteVecEnv(DOORS, 6, backend=backend, holdout=COLORS, subset=subset)) as env:
        missions = missions_of(env, 20)
    is_held_out = ["red door" in mission or "green door" in mission for mission in missions]
    assert all(is_held_out) if subset == "held_out" else not any(is_held_out)
    assert len(set(missions)) == (2 if subset == "held_out" else 4)


@pytest.mark.parametrize("subset", ["trained", "held_out"])
@pytest.mark.parametrize("workers", [0, 2])
def test_goals_belong_to_their_subset(subset: Subset, workers: int) -> None:
    """Held-out goals occur in the held-out subset only, the others in the trained one."""
    with closing(SuiteVecEnv(GOALS, 5, holdout=BOX, subset=subset, workers=workers)) as env:
        goals = goals_of(env, 20)
    assert ((goals[:, 2] >= 0) == (subset == "held_out")).all()
    assert len(np.unique(goals, axis=0)) == 100


def test_subsets_together_are_all_episodes() -> None:
    """The two subsets have no mission in common, and together they have all missions."""
    found = []
    for subset in ("trained", "held_out"):
        with closing(SuiteVecEnv(DOORS, 6, holdout=COLORS, subset=subset)) as env:
            found.append(set(missions_of(env, 20)))
    with closing(SuiteVecEnv(DOORS, 6)) as env:
        assert found[0] | found[1] == set(missions_of(env, 20))
    assert not found[0] & found[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_held_out_tasks_keep_their_index(backend: BackendName) -> None:
    """A held-out task is played in its own subset only, and tasks keep their index."""
    holdout = HoldoutConfig(name="rooms", tasks=("6x6",))
    with closing(SuiteVecEnv(DOORS, 4, backend=backend, holdout=holdout)) as env:
        assert env.task_index.tolist() == env.reset()["task"].tolist() == [0, 0, 2, 2]
        assert env.observation_space["task"] == spaces.Discrete(3)
    env = SuiteVecEnv(DOORS, 4, backend=backend, holdout=holdout, subset="held_out")
    with closing(env):
        assert env.task_index.tolist() == env.reset()["task"].tolist() == [1, 1, 1, 1]


def test_held_out_task_plays_every_mission() -> None:
    """A held-out task plays every mission, the other tasks only the held-out ones."""
    holdout = HoldoutConfig(name="both", tasks=("6x6",), missions=("red door",))
    with closing(SuiteVecEnv(DOORS, 6, holdout=holdout, subset="held_out")) as env:
        obs = [env.reset()]
        obs += [env.step(np.full(6, DONE))[0] for _ in range(20)]
    tasks = np.concatenate([step["task"] for step in obs])
    missions = np.concatenate([step["mission"] for step in obs])
    is_red = (missions == tokenize("go to the red door")).all(axis=1)
    assert is_red[tasks != 1].all()
    assert not is_red[tasks == 1].all()


def test_sampled_tasks_respect_the_holdout() -> None:
    """Sampled tasks and their missions are never held-out ones."""
    holdout = HoldoutConfig(name="both", tasks=("6x6",), missions=("red door",))
    with closing(SuiteVecEnv(DOORS, 6, holdout=holdout, sampling="uniform")) as env:
        env.reset()
        for _ in range(10):
            obs, *_ = env.step(np.full(6, DONE))
            assert set(obs["task"].tolist()) <= {0, 2}
            assert not any(
                np.array_equal(row, tokenize("go to the red door")) for row in obs["mission"]
            )
        np.testing.assert_allclose(env.task_probabilities, [0.5, 0, 0.5])


def test_empty_holdout_changes_nothing() -> None:
    """A holdout that no episode matches does not change the trajectory."""
    runs = []
    for holdout in (HoldoutConfig(), HoldoutConfig(name="unheard", missions=("purple maze",))):
        with closing(SuiteVecEnv(DOORS, 6, holdout=holdout)) as env:
            images = [env.reset()["image"]]
            images += [env.step(np.full(6, DONE))[0]["image"] for _ in range(5)]
            runs.append(np.stack(images))
    np.testing.assert_array_equal(*runs)


@given(
    mission=st.lists(
        st.sampled_from(["red", "green", "ball", "door", "a", "to"]), min_size=1, max_size=12
    ),
    phrase=st.lists(st.sampled_from(["red", "green", "ball", "door"]), min_size=1, max_size=3),
    subset=st.sampled_from(["trained", "held_out"]),
)
def test_phrase_matches_whole_words(mission: list[str], phrase: list[str], subset: Subset) -> None:
    """A phrase matches consecutive whole words of a mission."""
    contains = f" {' '.join(phrase)} " in f" {' '.join(mission)} "
    obs = {"mission": tokenize(" ".join(mission))[None], "task": np.array([0])}
    holdout = HoldoutConfig(name="split", missions=(" ".join(phrase),))
    accepted = make_filter(holdout, subset).accepts(obs)
    assert accepted.tolist() == [contains == (subset == "held_out")]


def test_phrase_is_tokenized_like_missions() -> None:
    """Upper case and spaces in a phrase do not matter."""
    obs = {"mission": tokenize("go to the red door")[None], "task": np.array([0])}
    assert not make_filter(HoldoutConfig(missions=("RED  Door",))).accepts(obs).any()


@pytest.mark.parametrize("text_form", ["tokens", "utf8"])
def test_phrase_is_found_under_any_key(text_form: TextForm) -> None:
    """Phrases are searched in the text that there is, with the words of the suite."""
    task = TaskConfig(
        name="says", env_id="TextSays-v0", kwargs={"texts": ("iron", "cow"), "key": "hint"}
    )
    suite = SuiteConfig(name="says", tasks=(task,), text_form=text_form)
    holdout = HoldoutConfig(name="cow", missions=("Cow",))
    drawn = {}
    for subset in ("trained", "held_out"):
        with closing(SuiteVecEnv(suite, 8, holdout=holdout, subset=subset)) as env:
            drawn[subset] = {row.tobytes() for row in env.reset()["hint"]}
            codec = suite_codec(env.suite)
    assert drawn["trained"] == {codec.encode("iron").tobytes()}
    assert drawn["held_out"] == {codec.encode("cow").tobytes()}


def test_goal_box_includes_its_border() -> None:
    """Goals on the border of the box are held out."""
    space = spaces.Dict(
        {"desired_goal": spaces.Box(-1, 1, (2,), np.float32), "task": spaces.Discrete(1)}
    )
    holdout = HoldoutConfig(goal_low=(0, 0), goal_high=(0.5, 0.5))
    goals = np.array([[0, 0], [0.5, 0.5], [0.5, 0.6], [-0.1, 0.2]], np.float32)
    obs = {"desired_goal": goals, "task": np.zeros(4, int)}
    accepted = EpisodeFilter(GOALS, holdout, "trained", space).accepts(obs)
    assert accepted.tolist() == [False, False, True, True]


def test_only_rejected_episodes_are_redrawn() -> None:
    """Only the rejected episodes are drawn again, until all are accepted."""
    drawn: list[list[int]] = []

    def reset(rows: np.ndarray) -> dict[str, np.ndarray]:
        red_rows = {0: {1, 3}, 1: {3}}.get(len(drawn), set())  # in the first and second draw
        drawn.append(rows.tolist())
        missions = [
            tokenize("the red door" if row in red_rows else "the blue door")
            for row in rows.tolist()
        ]
        return {"mission": np.stack(missions), "task": np.zeros(len(rows), int)}

    obs = make_filter(HoldoutConfig(missions=("red door",))).draw(reset, 5)
    assert drawn == [[0, 1, 2, 3, 4], [1, 3], [3]]
    np.testing.assert_array_equal(obs["mission"], np.stack([tokenize("the blue door")] * 5))


@pytest.mark.parametrize(
    ("suite", "fields", "subset", "message"),
    [
        (
            DOORS,
            {"missions": ["klingon ship"]},
            "held_out",
            r"no episode with a mission .*'klingon ship'",
        ),
        (DOORS, {"missions": ["door"]}, "trained", r"no episode without a mission .*'door'"),
        (
            GOALS,
            {"goal_low": [2] * 3, "goal_high": [3] * 3},
            "held_out",
            r"no episode with a goal .*2.0, .*3.0",
        ),
    ],
)
def test_no_matching_episode_is_an_error(
    suite: SuiteConfig, fields: dict[str, Any], subset: Subset, message: str
) -> None:
    """A subset of which no episode is ever drawn is an error that closes the environment."""
    env = SuiteVecEnv(suite, 3, holdout=HoldoutConfig(name="hopeless", **fields), subset=subset)
    name = suite.tasks[0].name
    expected = rf"split 'hopeless', subset '{subset}': {message}.*{MAX_DRAWS}.*task '{name}'"
    with pytest.raises(ConfigError, match=expected):
        env.reset()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


@pytest.mark.parametrize(
    ("suite", "fields", "subset", "message"),
    [
        (
            GOALS,
            {"missions": ["red door"]},
            "trained",
            "holds out missions, but suite 'goals' has none",
        ),
        (DOORS, {"missions": ["..red", "  "]}, "trained", "at least one word, got '  '"),
        (
            DOORS,
            {"goal_low": [0], "goal_high": [1]},
            "trained",
            "suite 'doors' has no observation 'desired_goal'",
        ),
        (
            GOALS,
            {"goal_low": [0], "goal_high": [1]},
            "held_out",
            r"shape \(1,\), but those of .* have shape \(3,\)",
        ),
        (
            DOORS,
            {"tasks": ["5x6"]},
            "trained",
            "suite 'doors' has no task '5x6'. Did you mean '6x6'",
        ),
        (
            DOORS,
            {"tasks": ["5x5", "6x6", "8x8"]},
            "trained",
            "holds out every task of suite 'doors'",
        ),
        (
            DOORS,
            {},
            "held_out",
            "holds out nothing of suite 'doors', so its subset 'held_out' is empty",
        ),
        (
            DOORS,
            {"missions": ["red"]},
            "heldout",
            "unknown subset 'heldout' of a split. Did you mean 'held_out'",
        ),
    ],
)
def test_holdout_must_fit_the_suite(
    suite: SuiteConfig, fields: dict[str, Any], subset: Subset, message: str
) -> None:
    """A holdout that does not fit the suite is an error that says in what."""
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(suite, 3, holdout=HoldoutConfig(name="split", **fields), subset=subset)


def test_only_active_tasks_need_environments() -> None:
    """One environment per active task is enough."""
    holdout = HoldoutConfig(name="rooms", tasks=("6x6", "8x8"))
    with closing(SuiteVecEnv(DOORS, 1, holdout=holdout)) as env:
        assert env.task_index.tolist() == [0]
        assert env.active_tasks == (0,)
    with pytest.raises(ConfigError, match="at least one per task of suite 'doors', 2, got 1"):
        SuiteVecEnv(DOORS, 1, holdout=holdout, subset="held_out")


def tasks_of_one_room(*phrases: str) -> SuiteConfig:
    """Return a suite with a task for each phrase, all with the same id."""
    tasks = tuple(
        TaskConfig(name=phrase or "any", env_id=ROOM, mission=phrase) for phrase in phrases
    )
    return SuiteConfig(name="room", tasks=tasks)


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_play_their_own_missions(backend: BackendName, sampling: SamplingName) -> None:
    """Tasks with the same id play only episodes with their own mission."""
    suite = tasks_of_one_room("red door", "green door", "")
    seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    with closing(SuiteVecEnv(suite, 6, backend=backend, sampling=sampling)) as env:
        obs = env.reset()
        for _ in range(25):
            for task, row in zip(obs["task"].tolist(), obs["mission"], strict=True):
                seen[task].add(text_of(row))
            obs, _, dones, _ = env.step(np.full(6, DONE))
            assert dones.all()
    assert seen[0] == {"go to the red door"}
    assert seen[1] == {"go to the green door"}
    assert len(seen[2]) == 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("subset", "goes_to_red"), [("trained", False), ("held_out", True)])
def test_mission_and_holdout_both_apply(
    backend: BackendName, subset: Subset, goes_to_red: bool
) -> None:
    """An episode needs both the mission of its task and the wanted subset."""
    suite = SuiteConfig(
        name="room", tasks=(TaskConfig(name="go", env_id="BabyAI-GoToLocal-v0", mission="ball"),)
    )
    holdout = HoldoutConfig(name="red", missions=("red ball", "blue key"))
    with closing(SuiteVecEnv(suite, 6, backend=backend, holdout=holdout, subset=subset)) as env:
        rows = list(env.reset()["mission"])
        for _ in range(64 * 2):  # an episode is truncated after 64 timesteps
            obs, _, dones, _ = env.step(np.full(6, 0))
            rows += list(obs["mission"][dones])
    missions = {text_of(row) for row in rows}
    assert all(mission.endswith("ball") for mission in missions)
    assert all(("red" in mission) == goes_to_red for mission in missions)
    assert len(missions) > 1


def test_task_mission_needs_missions() -> None:
    """A task with a mission is an error if its environment has no missions."""
    suite = SuiteConfig(
        name="goals", tasks=(TaskConfig(name="far", env_id="ToyShortGoal-v0", mission="red door"),)
    )
    message = r"^task 'far' has mission='red door', but ToyShortGoal-v0 has no missions: "
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(suite, 2, workers=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_mission_names_task_and_phrase(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mission that is never drawn is an error that names its task and its phrase."""
    monkeypatch.setattr("mirl.envs.holdout.MAX_DRAWS", 50)
    env = SuiteVecEnv(tasks_of_one_room("red door", "klingon ship"), 2, backend=backend)
    message = (
        "no episode of a mission with 'klingon ship' came in 50 draws of task 'klingon ship' "
        rf"\({ROOM}\)"
    )
    with pytest.raises(ConfigError, match=message):
        env.reset()


def test_mission_without_words_is_an_error() -> None:
    message = "a phrase of missions must have at least one word, got '  '"
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(tasks_of_one_room("  "), 1)
