"""A GIF of the agent at work, with its mission written under the picture."""

import io
import textwrap
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.eval_mode import eval_mode
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.tasks import SuiteConfig
from mirl.envs import make_env
from mirl.envs.actions import with_action_mask
from mirl.envs.holdout import EpisodeFilter
from mirl.envs.type_aliases import Observations
from mirl.envs.vector import NO_HOLDOUT

WIDTH = 256
CAPTION_LINE = 16
FRAMES_PER_SECOND = 6
MAX_FRAMES = 200
"""An episode without an end is cut here."""


@dataclass(frozen=True)
class Gif:
    """An encoded animation."""

    data: bytes
    width: int
    height: int


def record_episode(
    policy: BasePolicy,
    suite: SuiteConfig,
    task_index: int,
    *,
    seed: int,
    deterministic: bool = False,
) -> Gif | None:
    """Play one episode of a task and film it; None where the environment cannot be rendered to pixels."""
    task = suite.tasks[task_index]
    probe = make_env(task, task_index, len(suite.tasks), suite.observation)
    probe.close()
    if "rgb_array" not in probe.metadata.get("render_modes", ()):
        return None
    env = make_env(task, task_index, len(suite.tasks), suite.observation, render_mode="rgb_array")
    try:
        observation = _first_observation(env, suite, seed)
        caption = str(getattr(env.unwrapped, "mission", task.name))
        frames, over, remembered = [env.render()], False, None
        with eval_mode(policy, seed):
            while not over and len(frames) < MAX_FRAMES:
                seen, start = _as_trained(observation, env, policy), np.array([remembered is None])
                actions, remembered = policy.predict(seen, remembered, start, deterministic)
                observation, _, terminated, truncated, _ = env.step(actions[0])
                frames.append(env.render())
                over = terminated or truncated
    finally:
        env.close()
    return encode_gif(frames, caption)


def _first_observation(env: gym.Env[Any, Any], suite: SuiteConfig, seed: int) -> Any:
    """Of an episode with the task's mission, where it names one."""
    seeds = chain([seed], repeat(None))

    def reset(_rows: Any) -> Observations:
        observation, _ = env.reset(seed=next(seeds))
        return {key: np.asarray(value)[None] for key, value in observation.items()}

    assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
    drawn = EpisodeFilter(suite, NO_HOLDOUT, "trained", env.observation_space).draw(reset, 1)
    return {key: value[0] for key, value in drawn.items()}


def _as_trained(observation: Any, env: gym.Env[Any, Any], policy: BasePolicy) -> Observations:
    """A batch of one observation as a suite gives it: with an action mask, where its tasks have different actions."""
    batch = {key: np.asarray(value)[None] for key, value in observation.items()}
    actions, joined = env.action_space, policy.action_space
    if isinstance(actions, spaces.Discrete) and isinstance(joined, spaces.Discrete):
        known = cast(spaces.Dict, policy.observation_space)
        return (
            with_action_mask(batch, int(actions.n), int(joined.n))
            if ACTION_MASK_KEY in known.spaces
            else batch
        )
    return batch


def encode_gif(frames: list[Any], caption: str) -> Gif:
    """Frames (H, W, 3), uint8, over a caption; the last frame stays for a second."""
    lines = textwrap.wrap(caption, width=36) or [""]
    pictures = [_with_caption(frame, lines) for frame in frames]
    buffer = io.BytesIO()
    durations = [1000 // FRAMES_PER_SECOND] * (len(pictures) - 1) + [1000]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    return Gif(buffer.getvalue(), *pictures[0].size)


def _with_caption(frame: UInt8[np.ndarray, "height width 3"], lines: list[str]) -> Image.Image:
    height = round(WIDTH * frame.shape[0] / frame.shape[1])
    picture = Image.new("RGB", (WIDTH, height + CAPTION_LINE * len(lines) + 8), "white")
    picture.paste(Image.fromarray(frame).resize((WIDTH, height)))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, line in enumerate(lines):
        draw.text((6, height + 4 + CAPTION_LINE * number), line, fill="black", font=font)
    return picture
