"""Videos show the episode, with what is asked and what is done under it."""

import io
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.run import Run
from mirl.agents.video import (
    MAX_GIF_FPS,
    MAX_MP4_FPS,
    MAX_STEPS,
    Gif,
    Recording,
    check_mp4,
    encode_gif,
    encode_mp4,
    record_episode,
    record_outcomes,
    write_videos,
)
from mirl.agents.watch.caption import LINE, WIDTH, Note, scaled
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_env
from mirl.policies import FusionPolicy

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


def pictures(gif: Gif) -> list[np.ndarray]:
    with Image.open(io.BytesIO(gif.data)) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
    return frames


def durations(gif: Gif) -> list[int]:
    """Return the milliseconds of each frame."""
    with Image.open(io.BytesIO(gif.data)) as image:
        shown = []
        for number in range(image.n_frames):
            image.seek(number)
            shown.append(image.info["duration"])
    return shown


def recording(
    *shades: int,
    size: tuple[int, int] = (8, 8),
    fps: float = 10,
    mission: str = "go to the red door",
    outcome: str = "success",
) -> Recording:
    """Return a recording of plain frames."""
    frames = [scaled(np.full((*size, 3), shade, np.uint8)) for shade in shades]
    notes = [Note(f"step {number}", "return 0.00") for number in range(len(shades))]
    return Recording(frames, notes, mission, outcome, fps)


def test_every_frame_has_image_and_caption() -> None:
    """A frame has its picture, the mission, and its own step under it."""
    gif = encode_gif(recording(0, 90, 180))
    shown = pictures(gif)
    assert len(shown) == 3
    for picture, shade in zip(shown, (0, 90, 180), strict=True):
        assert picture.shape == (gif.height, gif.width, 3)
        assert abs(int(picture[WIDTH // 2, WIDTH // 2, 0]) - shade) < 4
        assert (picture[WIDTH:] < 100).any()
    mission = slice(WIDTH + 2, WIDTH + LINE)
    np.testing.assert_array_equal(shown[0][mission], shown[1][mission])
    assert not np.array_equal(shown[0][WIDTH + LINE :], shown[1][WIDTH + LINE :])


@pytest.mark.parametrize(
    ("fps", "milliseconds"), [(4, 250), (10, 100), (25, 1000 / MAX_GIF_FPS), (125, 100)]
)
def test_gif_keeps_slow_rates(fps: float, milliseconds: int) -> None:
    """A GIF has the rate of the environment up to a limit, and holds both ends for a second."""
    shown = durations(encode_gif(recording(0, 60, 120, 180, fps=fps)))
    assert shown == [1000, milliseconds, milliseconds, 1000]


def test_palette_suits_all_frames() -> None:
    """A color that only one of the frames has is kept."""
    one = recording(0, 120, 240)
    one.pictures[1] = Image.new("RGB", one.pictures[0].size, (200, 20, 120))
    middle = pictures(encode_gif(one))[1][WIDTH // 2, WIDTH // 2]
    np.testing.assert_allclose(middle, (200, 20, 120), rtol=0, atol=4)


def decoded(data: bytes, ffmpeg: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return what an MP4 says of itself, and its frames."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        with closing(ffmpeg.read_frames(file.name)) as reader:
            about = next(reader)
            columns, rows = about["size"]
            shown = [np.frombuffer(frame, np.uint8).reshape(rows, columns, 3) for frame in reader]
    return about, shown


LEFT_OPEN = pytest.mark.filterwarnings(
    # imageio-ffmpeg leaves the pipes to its encoder to Python
    "ignore:unclosed file:ResourceWarning",
    "ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning",
)


@LEFT_OPEN
@pytest.mark.parametrize(
    ("height", "width", "n_frames"),
    [(7, 8, 3), (8, 7, 2), (8, 8, 1), (1, 1, 1), (51, 20, 3)],
)
def test_mp4_plays_every_frame(height: int, width: int, n_frames: int) -> None:
    """Odd sizes are padded, and the first and last frames, or the only one, are held."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the encoder of MP4s is optional")
    shades = (0, 180, 90)[:n_frames]
    one = recording(*shades, size=(height, width))
    _, shown = decoded(encode_mp4(one), ffmpeg)
    middle = one.pictures[0].height // 2
    found = [int(picture[middle, WIDTH // 2, 0]) for picture in shown]
    expected = [shades[0]] * 10
    if n_frames > 1:
        expected += [*shades[1:-1], *[shades[-1]] * 10]
    np.testing.assert_allclose(found, expected, rtol=0, atol=8)


@LEFT_OPEN
@pytest.mark.parametrize(("fps", "expected"), [(4, 4), (12.5, 12.5), (50, 50), (125, MAX_MP4_FPS)])
def test_mp4_has_environment_rate(fps: float, expected: float) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the encoder of MP4s is optional")
    about, _ = decoded(encode_mp4(recording(0, 90, fps=fps)), ffmpeg)
    assert about["fps"] == expected


def test_missing_encoder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirl.agents.video.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="mp4=true needs imageio-ffmpeg, which is not installed"):
        check_mp4()


def test_file_names_say_outcomes(tmp_path: Path) -> None:
    """Files of outcomes that are no longer seen are removed, and no others."""
    stem = tmp_path / "door"
    (tmp_path / "door-success.mp4").touch()
    success, failure = recording(0), recording(90, outcome="failure")
    both = write_videos(stem, "gif", [failure, success])
    assert [path.name for path in both] == ["door-success.gif", "door-failure.gif"]
    [only] = write_videos(stem, "gif", [recording(0, outcome="")])
    assert only.name == "door.gif"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["door-success.mp4", "door.gif"]


def test_episode_is_recorded_from_start(tiny: Build, make_agent: Agents) -> None:
    """An episode is recorded from its first frame, reproducibly."""
    config = tiny()
    agent = make_agent(config)
    before = torch.get_rng_state()
    gifs = []
    for seed in (5, 5, 6):
        one = record_episode(agent.policy, config.task, 0, seed=seed)
        assert one is not None
        gifs.append(encode_gif(one))
    assert torch.equal(before, torch.get_rng_state())
    assert gifs[0] == gifs[1] != gifs[2]
    env = make_env(config.task.tasks[0], render_mode="rgb_array")
    env.reset(seed=5)
    first: Any = env.render()
    shown = pictures(gifs[0])[0][:WIDTH]
    difference = np.abs(shown.astype(int) - np.asarray(scaled(first)).astype(int))
    assert difference.mean() < 4  # 256 colors
    env.close()


class BlindEnv(gym.Env[Any, Any]):
    """An environment that cannot be rendered."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = (
            spaces.Box(-1, 1, (2,), np.float32),
            spaces.Discrete(2),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, True, False, {}


class TextEnv(BlindEnv):
    """An environment that is rendered to text only."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> str:  # type: ignore[override]
        return "@"


@pytest.mark.parametrize("entry_point", [BlindEnv, TextEnv])
def test_environment_without_pixels_has_none(
    tiny: Build, make_agent: Agents, entry_point: type[gym.Env[Any, Any]]
) -> None:
    """An environment that cannot be rendered to pixels gives no GIF."""
    gym.register("ToyBlind-v0", entry_point=entry_point)
    suite = SuiteConfig(name="blind", tasks=(TaskConfig(name="blind", env_id="ToyBlind-v0"),))
    try:
        assert record_episode(make_agent(tiny()).policy, suite, 0, seed=0) is None
    finally:
        del gym.registry["ToyBlind-v0"]


class PagesEnv(gym.Env[Any, Any]):
    """An environment of ten timesteps and n actions that shows a gray image.

    ``taken`` holds the actions of all instances, by their number of actions.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    taken: ClassVar[dict[int, list[int]]] = {}

    def __init__(self, n_actions: int, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Dict({"observation": spaces.Box(-1, 1, (2,), np.float32)})
        self.action_space = spaces.Discrete(n_actions)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return {"observation": np.zeros(2, np.float32)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.setdefault(int(self.action_space.n), []).append(int(action))
        self.count += 1
        return {"observation": np.zeros(2, np.float32)}, 0.0, self.count == 10, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((8, 8, 3), 128, np.uint8)


def test_task_with_fewer_actions_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task with fewer actions is recorded with its own actions only."""
    monkeypatch.setattr(PagesEnv, "taken", {})
    gym.register("ToyPages-v0", entry_point=PagesEnv)
    try:
        tasks = tuple(
            TaskConfig(name=f"{n}", env_id="ToyPages-v0", kwargs={"n_actions": n}) for n in (2, 12)
        )
        suite = SuiteConfig(name="pages", tasks=tasks)
        with closing(SuiteVecEnv(suite, 2, workers=0)) as env:
            torch.manual_seed(0)
            policy = FusionPolicy(
                env.observation_space, env.action_space, lambda _: 0.0, context="task_id"
            )
        for index in (0, 1):
            one = record_episode(policy, suite, index, seed=0)
            assert one is not None
            assert len(one.pictures) == 11
            assert one.notes[-1].result == "return 0.00, episode over"
            assert one.outcome == ""
    finally:
        del gym.registry["ToyPages-v0"]
    # the first timestep of each is that of the check of the environment
    assert [len(taken) for taken in PagesEnv.taken.values()] == [11, 11]
    assert set(PagesEnv.taken[2]) == {0, 1}
    assert max(PagesEnv.taken[12]) > 1


def test_recorded_episode_has_task_mission(tiny: Build, make_agent: Agents) -> None:
    """The recorded episode has the mission of its task."""
    config = tiny()
    policy = make_agent(config).policy
    missions: list[str] = []
    [door] = config.task.tasks
    red = door.model_copy(update={"name": "red", "mission": "red door"})
    for task in (door, red):
        for seed in range(6):
            suite = SuiteConfig(name="doors", tasks=(task,))
            one = record_episode(policy, suite, 0, seed=seed)
            assert one is not None
            missions.append(one.mission)
    assert len(set(missions[:6])) > 1
    assert missions[6:] == ["go to the red door"] * 6


def test_notes_follow_the_episode(tiny: Build, make_agent: Agents) -> None:
    """Each note has its step and the action before it, the last one the outcome."""
    config = tiny()
    one = record_episode(make_agent(config).policy, config.task, 0, seed=0)
    assert one is not None
    assert one.notes[0].step == "step 0"
    for number, note in enumerate(one.notes[1:], start=1):
        start, _, action = note.step.partition(", action: ")
        assert start == f"step {number}"
        assert action in ("left", "right", "forward", "pickup", "drop", "toggle", "done")
    assert one.notes[-1].result.partition(", ")[2].startswith(one.outcome)
    assert {note.result for note in one.notes[:-1]} == {"return 0.00"}
    assert one.fps == 10


def test_both_outcomes_are_recorded(tiny: Build, make_agent: Agents) -> None:
    """Episodes are played until there are a success and a failure, or no seeds are left."""
    config = tiny()
    policy = make_agent(config).policy
    wanted = {"success", "failure"}
    both = record_outcomes(policy, config.task, 0, seeds=range(60), wanted=wanted)
    assert {one.outcome for one in both} == wanted
    [first] = record_outcomes(policy, config.task, 0, seeds=range(60))
    [alone] = record_outcomes(policy, config.task, 0, seeds=range(1), wanted=wanted)
    assert first.notes == alone.notes


def test_long_episode_says_it_was_cut(tiny: Build, make_agent: Agents) -> None:
    config = tiny("task.kwargs={size: 8, max_steps: 5000}")
    policy = make_agent(config).policy
    [one] = record_outcomes(policy, config.task, 0, seeds=[1], max_steps=3)
    assert (one.outcome, len(one.pictures)) == ("", 4)
    assert one.notes[-1].result == "return 0.00, cut after 3 steps"
    assert MAX_STEPS > 3


def test_marks_show_what_is_picked_out(tiny: Build, make_agent: Agents) -> None:
    """With ``inside``, the cells are marked and the caption says so; concatenation has none."""
    run = Run("pretrained:goto_local")
    policy, suite = run.policy, run.config.task
    plain = record_episode(policy, suite, 0, seed=5)
    inside = record_episode(policy, suite, 0, seed=5, inside=True)
    assert plain is not None
    assert inside is not None
    assert plain.notes == inside.notes
    assert plain.legend == ""
    assert "mission" in inside.legend
    pairs = zip(plain.pictures, inside.pictures, strict=True)
    assert any(picture.tobytes() != marked.tobytes() for picture, marked in pairs)
    config = tiny("fusion=concat", "sites=vector")
    without = record_episode(make_agent(config).policy, config.task, 0, seed=5, inside=True)
    assert without is not None
    assert without.legend == ""
