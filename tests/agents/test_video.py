"""GIFs show the episode, with the mission under it."""

import io
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from mirl.agents.algorithms import A2C, PPO
from mirl.agents.video import WIDTH, Gif, encode_gif, record_episode
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import make_env

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
    """What stands below the square picture."""
    return pictures(gif)[0][WIDTH:]


FRAMES = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 90, 180)]


def test_every_frame_has_its_picture_and_the_caption() -> None:
    gif = encode_gif(FRAMES, "go to the red door")
    shown = pictures(gif)
    assert len(shown) == 3
    for picture, frame in zip(shown, FRAMES, strict=True):
        assert picture.shape == (gif.height, gif.width, 3)
        assert abs(int(picture[WIDTH // 2, WIDTH // 2, 0]) - int(frame[0, 0, 0])) < 4
        assert (picture[WIDTH:] < 100).any()


def test_the_caption_is_the_text() -> None:
    red, blue, none = (
        caption_of(encode_gif(FRAMES, text)) for text in ("go to the red door", "go to the blue door", "")
    )
    assert not np.array_equal(red, blue)
    assert (none > 200).all()


def test_a_long_caption_takes_more_lines() -> None:
    short, long = encode_gif(FRAMES, "pick up"), encode_gif(FRAMES, "pick up the ball, then open the door " * 3)
    assert long.height > short.height
    assert long.width == short.width


def test_frames_keep_their_proportions() -> None:
    gif = encode_gif([np.zeros((20, 40, 3), np.uint8)], "")
    assert pictures(gif)[0][WIDTH // 2 + 2 :].min() > 200


def test_an_episode_is_filmed_from_its_start_to_its_end(tiny: Build, make_agent: Agents) -> None:
    config = tiny()
    agent = make_agent(config)
    before = torch.get_rng_state()
    gifs = [record_episode(agent.policy, config.task, 0, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(before, torch.get_rng_state())
    assert gifs[0] == gifs[1] != gifs[2]
    env = make_env(config.task.tasks[0], render_mode="rgb_array")
    env.reset(seed=5)
    first: Any = env.render()
    start = pictures(encode_gif([first], env.unwrapped.mission))[0]  # type: ignore[attr-defined]
    assert gifs[0] is not None
    difference = np.abs(pictures(gifs[0])[0].astype(int) - start.astype(int))
    assert difference.mean() < 4  # the palettes of two GIFs differ a little
    env.close()


class BlindEnv(gym.Env[Any, Any]):
    """Has no picture."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, True, False, {}


class TextEnv(BlindEnv):
    """Renders, but not to pixels."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> str:  # type: ignore[override]
        return "@"


@pytest.mark.parametrize("entry_point", [BlindEnv, TextEnv])
def test_an_environment_without_pictures_gives_no_gif(
    tiny: Build, make_agent: Agents, entry_point: type[gym.Env[Any, Any]]
) -> None:
    gym.register("ToyBlind-v0", entry_point=entry_point)
    suite = SuiteConfig(name="blind", tasks=(TaskConfig(name="blind", env_id="ToyBlind-v0"),))
    try:
        assert record_episode(make_agent(tiny()).policy, suite, 0, seed=0) is None
    finally:
        del gym.registry["ToyBlind-v0"]
