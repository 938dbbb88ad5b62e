"""GIFs and MP4s of an agent's episodes, with the mission as a caption."""

import base64
import io
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.eval_mode import eval_mode
from mirl.agents.watch.single_env import (
    Env,
    Frame,
    as_batch,
    first_observation,
    open_env,
    render,
    text_of,
)
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig
from mirl.envs.type_aliases import Observations

WIDTH = 256
"""Width of a GIF, in pixels."""
CAPTION_LINE = 16
"""Height of a line of the caption, in pixels."""
CAPTION_MARGIN = 8
"""Height of the caption beside its lines, in pixels."""
FRAMES_PER_SECOND = 6
LAST_FRAME_MS = 1000
"""Milliseconds that the last frame is shown."""
MAX_FRAMES = 200
"""Frames after which an episode without an end is cut."""


class Recording(NamedTuple):
    """The pictures of an episode."""

    frames: list[Frame]
    caption: str


@dataclass(frozen=True)
class Gif:
    """An encoded animation.

    Args:
        data: the content of the file.
        width: width in pixels.
        height: height in pixels, with the caption.
    """

    data: bytes
    width: int
    height: int

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        content = base64.b64encode(self.data).decode("ascii")
        return f'<img alt="an episode" src="data:image/gif;base64,{content}">'


def check_mp4() -> None:
    """Raise unless MP4s can be encoded here.

    Raises:
        ConfigError: imageio-ffmpeg, which contains the encoder, is not installed.
    """
    if find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "mp4=true needs imageio-ffmpeg, which is not installed: "
            "pip install imageio-ffmpeg, or use gif=true"
        )


def record_episode(
    policy: BasePolicy,
    suite: SuiteConfig,
    task_index: int,
    *,
    seed: int,
    deterministic: bool = False,
) -> Recording | None:
    """Play one episode of a task and record its pictures.

    Args:
        policy: the policy; its mode and torch's random state are restored.
        suite: the suite that the policy was trained on.
        task_index: index of the task in the suite.
        seed: seed of the environment and of the actions.
        deterministic: take the most probable actions.

    Returns:
        The pictures and their caption; None if the environment cannot be rendered to pixels.
    """
    env = open_env(suite, task_index)
    if env is None:
        return None
    try:
        observation = first_observation(env, suite, seed)
        caption = text_of(env, suite.tasks[task_index].name)
        frames = _play(env, policy, observation, seed, deterministic)
    finally:
        env.close()
    return Recording(frames, caption)


def _play(
    env: Env, policy: BasePolicy, observation: Observations, seed: int, deterministic: bool
) -> list[Frame]:
    """Play to the end of the episode; return its frames."""
    frames = [render(env)]
    hidden_state = None
    is_over = False
    with eval_mode(policy, seed):
        while not is_over and len(frames) < MAX_FRAMES:
            actions, hidden_state = policy.predict(
                as_batch(observation, env, policy),
                hidden_state,
                np.array([hidden_state is None]),  # True at the first timestep
                deterministic,
            )
            observation, _, terminated, truncated, _ = env.step(actions[0])
            frames.append(render(env))
            is_over = terminated or truncated
    return frames


def encode_gif(frames: Sequence[Frame], caption: str) -> Gif:
    """Encode frames as a GIF with a caption under them.

    Args:
        frames: the frames, each (H, W, 3).
        caption: text, which is wrapped.

    Returns:
        The animation; its last frame is shown for a second.
    """
    images = _with_captions(frames, caption)
    durations = [1000 // FRAMES_PER_SECOND] * (len(images) - 1) + [LAST_FRAME_MS]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    width, height = images[0].size
    return Gif(buffer.getvalue(), width, height)


def encode_mp4(frames: Sequence[Frame], caption: str) -> bytes:
    """Encode frames as an MP4 (H.264) with a caption under them.

    Args:
        frames: the frames, each (H, W, 3).
        caption: text, which is wrapped.

    Returns:
        The content of the file; its last frame is shown for a second.
    """
    # optional, so imported on use
    from imageio_ffmpeg import write_frames

    images = _with_captions(frames, caption)
    images += [images[-1]] * (FRAMES_PER_SECOND * LAST_FRAME_MS // 1000 - 1)
    width, height = images[0].size
    # H.264 stores colors at half of the size, so both sides have to be even
    size = (width + width % 2, height + height % 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        writer = write_frames(
            str(path), size, fps=FRAMES_PER_SECOND, codec="libx264", macro_block_size=2
        )
        writer.send(None)  # starts the encoder
        for image in images:
            even = Image.new("RGB", size, "white")
            even.paste(image)
            writer.send(even.tobytes())
        writer.close()
        return path.read_bytes()


def _with_captions(frames: Sequence[Frame], caption: str) -> list[Image.Image]:
    lines = textwrap.wrap(caption, width=36) or [""]  # an empty caption keeps its line
    return [_with_caption(frame, lines) for frame in frames]


def _with_caption(frame: Frame, lines: Sequence[str]) -> Image.Image:
    # a frame that is very wide keeps a line of pixels
    height = max(round(WIDTH * frame.shape[0] / frame.shape[1]), 1)
    caption_height = CAPTION_LINE * len(lines) + CAPTION_MARGIN
    image = Image.new("RGB", (WIDTH, height + caption_height), "white")
    image.paste(Image.fromarray(frame).resize((WIDTH, height)))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for number, line in enumerate(lines):
        top = height + 4 + CAPTION_LINE * number
        draw.text((6, top), line, fill="black", font=font)
    return image
