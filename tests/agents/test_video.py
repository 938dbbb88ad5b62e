"""GIFs show the episode, with the mission under it."""

import io
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.video import (
    FRAMES_PER_SECOND,
    WIDTH,
    Gif,
    check_mp4,
    encode_gif,
    encode_mp4,
    record_episode,
)
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


def caption_of(gif: Gif) -> np.ndarray:
    """Return the pixels below the square image."""
    return pictures(gif)[0][WIDTH:]


FRAMES = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 90, 180)]


def test_every_frame_has_image_and_caption() -> None:
    gif = encode_gif(FRAMES, "go to the red door")
    shown = pictures(gif)
    assert len(shown) == 3
    for picture, frame in zip(shown, FRAMES, strict=True):
        assert picture.shape == (gif.height, gif.width, 3)
        assert abs(int(picture[WIDTH // 2, WIDTH // 2, 0]) - int(frame[0, 0, 0])) < 4
        assert (picture[WIDTH:] < 100).any()


@pytest.mark.parametrize(
    ("height", "width", "n_frames"),
    [(7, 8, 3), (8, 7, 2), (8, 8, 1), (1, 1, 1), (51, 20, 3)],
)
def test_mp4_plays_every_frame(height: int, width: int, n_frames: int) -> None:
    """Odd sizes are padded, and the last frame, or the only one, is shown for a second."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the encoder of MP4s is optional")
    shades = (0, 180, 90)[:n_frames]
    frames = [np.full((height, width, 3), shade, np.uint8) for shade in shades]
    data = encode_mp4(frames, "go to the red door")
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        with closing(ffmpeg.read_frames(file.name)) as reader:
            columns, rows = next(reader)["size"]
            shown = [np.frombuffer(frame, np.uint8).reshape(rows, columns, 3) for frame in reader]
    middle = round(WIDTH * height / width) // 2
    found = [int(picture[middle, WIDTH // 2, 0]) for picture in shown]
    expected = [*shades[:-1], *[shades[-1]] * FRAMES_PER_SECOND]
    np.testing.assert_allclose(found, expected, rtol=0, atol=8)


def test_missing_encoder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirl.agents.video.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="mp4=true needs imageio-ffmpeg, which is not installed"):
        check_mp4()


def test_caption_shows_the_text() -> None:
    red, blue, none = (
        caption_of(encode_gif(FRAMES, text))
        for text in ("go to the red door", "go to the blue door", "")
    )
    assert not np.array_equal(red, blue)
    assert (none > 200).all()


def test_long_caption_takes_more_lines() -> None:
    short, long = (
        encode_gif(FRAMES, "pick up"),
        encode_gif(FRAMES, "pick up the ball, then open the door " * 3),
    )
    assert long.height > short.height
    assert long.width == short.width


def test_frames_keep_their_proportions() -> None:
    gif = encode_gif([np.zeros((20, 40, 3), np.uint8)], "")
    assert pictures(gif)[0][WIDTH // 2 + 2 :].min() > 200


def test_wide_frame_keeps_a_line() -> None:
    shown = pictures(encode_gif([np.zeros((1, 5000, 3), np.uint8)], ""))
    assert shown[0][0].max() < 4
    assert shown[0][1:].min() > 200


def test_episode_is_recorded_from_start(tiny: Build, make_agent: Agents) -> None:
    """An episode is recorded from its first frame, reproducibly."""
    config = tiny()
    agent = make_agent(config)
    before = torch.get_rng_state()
    gifs = []
    for seed in (5, 5, 6):
        recording = record_episode(agent.policy, config.task, 0, seed=seed)
        assert recording is not None
        gifs.append(encode_gif(*recording))
    assert torch.equal(before, torch.get_rng_state())
    assert gifs[0] == gifs[1] != gifs[2]
    env = make_env(config.task.tasks[0], render_mode="rgb_array")
    env.reset(seed=5)
    first: Any = env.render()
    start = pictures(encode_gif([first], env.unwrapped.mission))[0]  # type: ignore[attr-defined]
    difference = np.abs(pictures(gifs[0])[0].astype(int) - start.astype(int))
    assert difference.mean() < 4  # the palettes of two GIFs differ a little
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
            recording = record_episode(policy, suite, index, seed=0)
            assert recording is not None
            assert encode_gif(*recording).data.startswith(b"GIF89a")
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
    captions: list[str] = []
    [door] = config.task.tasks
    red = door.model_copy(update={"name": "red", "mission": "red door"})
    for task in (door, red):
        for seed in range(6):
            suite = SuiteConfig(name="doors", tasks=(task,))
            recording = record_episode(policy, suite, 0, seed=seed)
            assert recording is not None
            captions.append(recording.caption)
    assert len(set(captions[:6])) > 1
    assert captions[6:] == ["go to the red door"] * 6
