"""What a split withholds never comes in training, and nothing else comes when it is asked for."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import HoldoutConfig, Subset, SuiteConfig, TaskConfig
from mirl.envs import VOCABULARY, SuiteVecEnv, mission_space, tokenize
from mirl.envs.holdout import MAX_DRAWS, EpisodeFilter

BACKENDS: tuple[BackendName, ...] = ("gymnasium", "envpool")
DOORS = SuiteConfig(
    name="doors",
    tasks=tuple(
        TaskConfig(name=s, env_id=f"MiniGrid-GoToDoor-{s}-v0") for s in ("5x5", "6x6", "8x8")
    ),
)
GOALS = SuiteConfig(name="goals", tasks=(TaskConfig(name="goal", env_id="ToyShortGoal-v0"),))
SPLIT = HoldoutConfig(name="colors", missions=("red door", "green door"))
BOX = HoldoutConfig(name="box", goal_low=(-1, -1, 0), goal_high=(1, 1, 1))


def missions_of(env: SuiteVecEnv, n_steps: int) -> list[str]:
    """The missions of all episodes, at resets and in steps, as text."""
    obs = env.reset()
    rows = list(obs["mission"])
    for _ in range(n_steps):
        obs, _, dones, _ = env.step(np.full(env.num_envs, 6))  # "done" ends every episode
        assert dones.all()
        rows += list(obs["mission"])
    return [" ".join(VOCABULARY[token - 1] for token in row if token) for row in rows]


def goals_of(env: SuiteVecEnv, n_episodes: int) -> np.ndarray:
    """The goals of all episodes, those at resets and those in steps."""
    goals = [env.reset()["desired_goal"]]
    while len(goals) < n_episodes:
        obs, _, dones, _ = env.step(np.zeros((env.num_envs, 2), np.float32))
        if dones.all():
            goals.append(obs["desired_goal"])
    return np.concatenate(goals)


def withholding(split: HoldoutConfig, subset: Subset = "trained") -> EpisodeFilter:
    space = spaces.Dict({"mission": mission_space(), "task": spaces.Discrete(3)})
    return EpisodeFilter(DOORS, split, subset, space)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("subset", ["trained", "held_out"])
def test_missions_come_on_their_own_side_only(backend: BackendName, subset: Subset) -> None:
    with closing(SuiteVecEnv(DOORS, 6, backend=backend, holdout=SPLIT, subset=subset)) as env:
        missions = missions_of(env, 20)
    withheld = ["red door" in mission or "green door" in mission for mission in missions]
    assert all(withheld) if subset == "held_out" else not any(withheld)
    assert len(set(missions)) == (2 if subset == "held_out" else 4)


@pytest.mark.parametrize("subset", ["trained", "held_out"])
@pytest.mark.parametrize("workers", [0, 2])
def test_goals_come_on_their_own_side_only(subset: Subset, workers: int) -> None:
    with closing(SuiteVecEnv(GOALS, 5, holdout=BOX, subset=subset, workers=workers)) as env:
        goals = goals_of(env, 20)
    assert ((goals[:, 2] >= 0) == (subset == "held_out")).all()
    assert len(np.unique(goals, axis=0)) == 100


def test_both_parts_together_are_all_episodes() -> None:
    found = []
    for subset in ("trained", "held_out"):
        with closing(SuiteVecEnv(DOORS, 6, holdout=SPLIT, subset=subset)) as env:
            found.append(set(missions_of(env, 20)))
    with closing(SuiteVecEnv(DOORS, 6)) as env:
        assert found[0] | found[1] == set(missions_of(env, 20))
    assert not found[0] & found[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_withheld_tasks_are_played_in_their_own_part_only_and_keep_their_index(
    backend: BackendName,
) -> None:
    split = HoldoutConfig(name="rooms", tasks=("6x6",))
    with closing(SuiteVecEnv(DOORS, 4, backend=backend, holdout=split)) as env:
        assert env.task_index.tolist() == env.reset()["task"].tolist() == [0, 0, 2, 2]
        assert env.observation_space["task"] == spaces.Discrete(3)
    with closing(SuiteVecEnv(DOORS, 4, backend=backend, holdout=split, subset="held_out")) as env:
        assert env.task_index.tolist() == env.reset()["task"].tolist() == [1, 1, 1, 1]


def test_a_withheld_task_is_accepted_whatever_it_asks() -> None:
    split = HoldoutConfig(name="both", tasks=("6x6",), missions=("red door",))
    with closing(SuiteVecEnv(DOORS, 6, holdout=split, subset="held_out")) as env:
        obs = [env.reset()] + [env.step(np.full(6, 6))[0] for _ in range(20)]
    tasks = np.concatenate([step["task"] for step in obs])
    red = np.array(
        [
            tokenize("go to the red door").tolist() == row.tolist()
            for step in obs
            for row in step["mission"]
        ]
    )
    assert red[tasks != 1].all()
    assert not red[tasks == 1].all()


def test_drawn_tasks_respect_the_split() -> None:
    split = HoldoutConfig(name="both", tasks=("6x6",), missions=("red door",))
    with closing(SuiteVecEnv(DOORS, 6, holdout=split, sampling="uniform")) as env:
        env.reset()
        for _ in range(10):
            obs, *_ = env.step(np.full(6, 6))
            assert set(obs["task"].tolist()) <= {0, 2}
            assert not any(
                np.array_equal(row, tokenize("go to the red door")) for row in obs["mission"]
            )
        np.testing.assert_allclose(env.task_probabilities, [0.5, 0, 0.5])


def test_a_split_that_withholds_nothing_changes_nothing() -> None:
    seen = []
    for withheld in (HoldoutConfig(), HoldoutConfig(name="unheard", missions=("purple maze",))):
        with closing(SuiteVecEnv(DOORS, 6, holdout=withheld)) as env:
            seen.append(
                np.stack(
                    [env.reset()["image"], *(env.step(np.full(6, 6))[0]["image"] for _ in range(5))]
                )
            )
    np.testing.assert_array_equal(*seen)


@given(
    mission=st.lists(
        st.sampled_from(["red", "green", "ball", "door", "a", "to"]), min_size=1, max_size=12
    ),
    phrase=st.lists(st.sampled_from(["red", "green", "ball", "door"]), min_size=1, max_size=3),
    subset=st.sampled_from(["trained", "held_out"]),
)
def test_a_phrase_is_a_run_of_whole_words(
    mission: list[str], phrase: list[str], subset: Part
) -> None:
    contains = f" {' '.join(phrase)} " in f" {' '.join(mission)} "
    obs = {"mission": tokenize(" ".join(mission))[None], "task": np.array([0])}
    split = HoldoutConfig(name="split", missions=(" ".join(phrase),))
    assert withholding(split, subset).wanted(obs).tolist() == [contains == (subset == "held_out")]


def test_a_phrase_is_read_like_a_mission() -> None:
    obs = {"mission": tokenize("go to the red door")[None], "task": np.array([0])}
    assert not withholding(HoldoutConfig(missions=("RED  Door",))).wanted(obs).any()


def test_a_goal_on_the_border_of_the_box_is_withheld() -> None:
    space = spaces.Dict(
        {"desired_goal": spaces.Box(-1, 1, (2,), np.float32), "task": spaces.Discrete(1)}
    )
    split = HoldoutConfig(goal_low=(0, 0), goal_high=(0.5, 0.5))
    goals = np.array([[0, 0], [0.5, 0.5], [0.5, 0.6], [-0.1, 0.2]], np.float32)
    wanted = EpisodeFilter(GOALS, split, "trained", space).wanted(
        {"desired_goal": goals, "task": np.zeros(4, int)}
    )
    assert wanted.tolist() == [False, False, True, True]


def test_only_unwanted_episodes_are_drawn_again() -> None:
    drawn: list[list[int]] = []

    def reset(rows: np.ndarray) -> dict[str, np.ndarray]:
        red_rows = {0: {1, 3}, 1: {3}}.get(len(drawn), set())  # at the first and at the second draw
        drawn.append(rows.tolist())
        missions = [
            tokenize("the red door" if row in red_rows else "the blue door")
            for row in rows.tolist()
        ]
        return {"mission": np.stack(missions), "task": np.zeros(len(rows), int)}

    obs = withholding(HoldoutConfig(missions=("red door",))).draw(reset, 5)
    assert drawn == [[0, 1, 2, 3, 4], [1, 3], [3]]
    np.testing.assert_array_equal(obs["mission"], np.stack([tokenize("the blue door")] * 5))


@pytest.mark.parametrize(
    ("suite", "split", "subset", "message"),
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
def test_an_episode_that_never_comes_is_an_error(
    suite: SuiteConfig, split: dict[str, Any], subset: Subset, message: str
) -> None:
    env = SuiteVecEnv(suite, 3, holdout=HoldoutConfig(name="hopeless", **split), subset=subset)
    name = suite.tasks[0].name
    with pytest.raises(
        ConfigError,
        match=rf"split 'hopeless', subset '{subset}': {message}.*{MAX_DRAWS}.*task '{name}'",
    ):
        env.reset()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


@pytest.mark.parametrize(
    ("suite", "split", "subset", "message"),
    [
        (
            GOALS,
            {"missions": ["red door"]},
            "trained",
            "withholds missions, and suite 'goals' has none",
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
            r"shape \(1,\), and those of .* have shape \(3,\)",
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
            "withholds every task of suite 'doors'",
        ),
        (
            DOORS,
            {},
            "held_out",
            "withholds nothing of suite 'doors': its subset 'held_out' is empty",
        ),
        (
            DOORS,
            {"missions": ["red"]},
            "heldout",
            "unknown subset 'heldout' of a split. Did you mean 'held_out'",
        ),
    ],
)
def test_a_split_that_does_not_fit_the_suite_is_an_error(
    suite: SuiteConfig, split: dict[str, Any], subset: Subset, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(suite, 3, holdout=HoldoutConfig(name="split", **split), subset=subset)


def test_slots_are_needed_for_the_played_tasks_only() -> None:
    split = HoldoutConfig(name="rooms", tasks=("6x6", "8x8"))
    with closing(SuiteVecEnv(DOORS, 1, holdout=split)) as env:
        assert env.task_index.tolist() == [0]
    with pytest.raises(ConfigError, match="at least one per task of suite 'doors', 2, got 1"):
        SuiteVecEnv(DOORS, 1, holdout=split, subset="held_out")


ROOM = "MiniGrid-GoToDoor-5x5-v0"


def colors_of_one_room(*phrases: str) -> SuiteConfig:
    """A task for each phrase, all of one environment id."""
    tasks = tuple(
        TaskConfig(name=phrase or "any", env_id=ROOM, mission=phrase) for phrase in phrases
    )
    return SuiteConfig(name="room", tasks=tasks)


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_of_one_id_play_their_own_missions_only(
    backend: BackendName, sampling: SamplingName
) -> None:
    suite = colors_of_one_room("red door", "green door", "")
    seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    with closing(SuiteVecEnv(suite, 6, backend=backend, sampling=sampling)) as env:
        obs = env.reset()
        for _ in range(25):
            for task, row in zip(obs["task"].tolist(), obs["mission"], strict=True):
                seen[task].add(" ".join(VOCABULARY[token - 1] for token in row if token))
            obs, _, dones, _ = env.step(np.full(6, 6))
            assert dones.all()
    assert seen[0] == {"go to the red door"}
    assert seen[1] == {"go to the green door"}
    assert len(seen[2]) == 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("subset", "goes_to_red"), [("trained", False), ("held_out", True)])
def test_a_tasks_mission_and_a_split_both_hold(
    backend: BackendName, subset: Subset, goes_to_red: bool
) -> None:
    suite = SuiteConfig(
        name="room", tasks=(TaskConfig(name="go", env_id="BabyAI-GoToLocal-v0", mission="ball"),)
    )
    split = HoldoutConfig(name="red", missions=("red ball", "blue key"))
    with closing(SuiteVecEnv(suite, 6, backend=backend, holdout=split, subset=subset)) as env:
        rows = list(env.reset()["mission"])
        for _ in range(64 * 2):  # an episode is cut off after 64 timesteps
            obs, _, dones, _ = env.step(np.full(6, 0))
            rows += list(obs["mission"][dones])
    missions = {" ".join(VOCABULARY[token - 1] for token in row if token) for row in rows}
    assert all(mission.endswith("ball") for mission in missions)
    assert all(("red" in mission) == goes_to_red for mission in missions)
    assert len(missions) > 1


def test_a_mission_of_an_environment_that_states_none_is_an_error() -> None:
    suite = SuiteConfig(
        name="goals", tasks=(TaskConfig(name="far", env_id="ToyShortGoal-v0", mission="red door"),)
    )
    with pytest.raises(
        ConfigError, match=r"^task 'far' asks for a mission, and ToyShortGoal-v0 states none$"
    ):
        SuiteVecEnv(suite, 2, workers=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mission_that_never_comes_names_its_task_and_its_phrase(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirl.envs.holdout.MAX_DRAWS", 50)
    env = SuiteVecEnv(colors_of_one_room("red door", "klingon ship"), 2, backend=backend)
    message = rf"no episode of a mission with 'klingon ship' came in 50 draws of task 'klingon ship' \({ROOM}\)"
    with pytest.raises(ConfigError, match=message):
        env.reset()


def test_a_mission_without_words_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match="a phrase of missions must have at least one word, got '  '"
    ):
        SuiteVecEnv(colors_of_one_room("  "), 1)
