"""GIFs and MP4s of an agent's episodes, with the mission and each action as a caption."""

import base64
import io
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mirl.agents.eval_mode import eval_mode
from mirl.agents.runs.atomic_files import write_bytes
from mirl.agents.watch.caption import Note, captioned, note_of, scaled
from mirl.agents.watch.cells import LEGEND, marked
from mirl.agents.watch.decision import decide
from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import Env, as_batch, open_env, render
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig

DEFAULT_FPS = 30.0
"""Frames per second of an environment that does not state its own, as in Gymnasium."""
MAX_MP4_FPS = 60.0
"""Maximum frames per second of an MP4, because screens show no more."""
MAX_GIF_FPS = 10.0
"""Maximum frames per second of a GIF: viewers play faster ones at other rates."""
HOLD_SECONDS = 1.0
"""Time for which the first frame and the last one are shown."""
PALETTE_FRAMES = 8
"""Number of frames, including the first and the last, from which a GIF's colors are chosen."""
MAX_STEPS = 200
"""Timesteps after which a recorded episode is cut, unless another number is given."""


class Recording(NamedTuple):
    """The pictures of an episode."""

    pictures: list[Image.Image]
    """The picture of each timestep, in the size of the video."""
    notes: list[Note]
    """The caption of each picture under the mission."""
    mission: str
    """The text that the agent reads, or the name of the task."""
    outcome: str
    """``success`` or ``failure``; empty if no success is reported or the episode was cut."""
    fps: float
    """Frames per second of the environment."""
    legend: str = ""
    """Meaning of the marks in the pictures; empty if there are none."""


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
    inside: bool = False,
) -> Recording | None:
    """Play one episode of a task and record its pictures.

    Args:
        policy: the policy; its mode and torch's random state are restored.
        suite: the suite that the policy was trained on.
        task_index: index of the task in the suite.
        seed: seed of the environment and of the actions.
        deterministic: take the most probable actions.
        inside: mark the cells that the mission picks out, as ``record_outcomes`` does.

    Returns:
        The recording; None if the environment cannot be rendered to pixels.
    """
    recordings = record_outcomes(
        policy, suite, task_index, seeds=[seed], deterministic=deterministic, inside=inside
    )
    return next(iter(recordings), None)


def record_outcomes(
    policy: BasePolicy,
    suite: SuiteConfig,
    task_index: int,
    *,
    seeds: Sequence[int],
    wanted: Set[str] = frozenset(),
    deterministic: bool = False,
    max_steps: int = MAX_STEPS,
    inside: bool = False,
) -> list[Recording]:
    """Play episodes of a task until each wanted outcome has been seen; record one of each outcome.

    Args:
        policy: the policy; its mode and torch's random state are restored.
        suite: the suite that the policy was trained on.
        task_index: index of the task in the suite.
        seeds: seed of the environment and of the actions for each episode; their number limits the
            episodes.
        wanted: ``success``, ``failure`` or both; if empty, the first episode is the only one.
        deterministic: take the most probable actions.
        max_steps: timesteps after which an episode is cut.
        inside: mark the cells that the mission picks out, if the environment is from MiniGrid or
            BabyAI and the heads of the policy read similarities of cells with the mission.

    Returns:
        The first recording of each outcome; none if the environment cannot be rendered to pixels.
    """
    env = open_env(suite, task_index)
    if env is None:
        return []
    recordings: dict[str, Recording] = {}
    with closing(env):
        player = EpisodePlayer(env, suite, task_index)
        for seed in seeds:
            recording = _record(player, policy, seed, deterministic, max_steps, inside=inside)
            recordings.setdefault(recording.outcome, recording)
            if wanted <= recordings.keys():
                break
    if len(recordings) > 1:
        # an episode that was cut shows nothing new
        recordings.pop("", None)
    return list(recordings.values())


def _record(
    player: EpisodePlayer,
    policy: BasePolicy,
    seed: int,
    deterministic: bool,
    max_steps: int,
    *,
    inside: bool,
) -> Recording:
    """Play to the end of an episode, or to ``max_steps``."""
    env = player.env
    observation = player.start(seed)
    pictures = [scaled(render(env))]
    notes = [note_of(player)]
    legend = ""
    state: Tensor | None = None
    with eval_mode(policy, seed):
        while not player.is_over and player.timestep < max_steps:
            batch = as_batch(observation, env, policy)
            decision = decide(policy, batch, state, deterministic=deterministic)
            if inside and decision.shares is not None:
                picture = marked(pictures[-1], env, decision.shares)
                if picture is not None:
                    pictures[-1] = picture
                    legend = LEGEND
            state = decision.state
            observation = player.step(decision.action)
            pictures.append(scaled(render(env)))
            notes.append(note_of(player))
    if not player.is_over:
        last = notes[-1]
        notes[-1] = last._replace(result=f"{last.result}, cut after {player.timestep:,} steps")
    outcome = player.outcome if player.outcome in ("success", "failure") else ""
    return Recording(pictures, notes, player.mission, outcome, _fps(env), legend)


def _fps(env: Env) -> float:
    """Return the frames per second of an environment."""
    fps = env.metadata.get("render_fps")
    # a user's environment may report any value
    if isinstance(fps, int | float | np.number) and 0 < fps < np.inf:
        return float(fps)
    return DEFAULT_FPS


def encode_gif(recording: Recording) -> Gif:
    """Encode a recording as a GIF at its own rate or ``MAX_GIF_FPS``, with captions.

    Args:
        recording: the recording.

    Returns:
        The animation; its first frame and its last one are shown for a second.
    """
    images = _with_one_palette(list(_images(recording)))
    hold = round(1000 * HOLD_SECONDS)
    durations = [round(1000 / min(recording.fps, MAX_GIF_FPS))] * len(images)
    durations[0] = hold
    durations[-1] = hold
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    width, height = images[0].size
    return Gif(buffer.getvalue(), width, height)


def _with_one_palette(images: list[Image.Image]) -> list[Image.Image]:
    """Reduce pictures of equal size to 256 colors that suit all of them."""
    # one palette from some frames: one per frame takes ten times as long and doubles the file
    indices = sorted(set(np.linspace(0, len(images) - 1, PALETTE_FRAMES).astype(int).tolist()))
    width, height = images[0].size
    sample = Image.new("RGB", (width, height * len(indices)))
    for number, index in enumerate(indices):
        sample.paste(images[index], (0, height * number))
    palette = sample.quantize(256)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def encode_mp4(recording: Recording) -> bytes:
    """Encode a recording as an MP4 (H.264) at its own rate or ``MAX_MP4_FPS``, with captions.

    Args:
        recording: the recording.

    Returns:
        The content of the file; its first frame and its last one are shown for a second.
    """
    # optional, so imported on use
    from imageio_ffmpeg import write_frames

    fps = min(recording.fps, MAX_MP4_FPS)
    n_hold = max(round(fps * HOLD_SECONDS), 1)
    repeats = [1] * len(recording.pictures)
    repeats[0] = n_hold
    repeats[-1] = n_hold
    first = next(_images(recording))
    # H.264 stores colors at half of the size, so both sides have to be even
    size = (first.width + first.width % 2, first.height + first.height % 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        writer = write_frames(str(path), size, fps=fps, codec="libx264", macro_block_size=2)
        writer.send(None)  # starts the encoder
        for image, n_times in zip(_images(recording), repeats, strict=True):
            even = Image.new("RGB", size, "white")
            even.paste(image)
            for _ in range(n_times):
                writer.send(even.tobytes())
        writer.close()
        return path.read_bytes()


def write_videos(stem: Path, suffix: str, recordings: Sequence[Recording]) -> list[Path]:
    """Write a file for each recording, named after the outcome, and return the files.

    Files of the other outcomes come from an earlier evaluation, perhaps of another best checkpoint,
    and are removed.

    Args:
        stem: path of the files without the outcome and the ending.
        suffix: ``gif`` or ``mp4``.
        recordings: recordings of one task with different outcomes.
    """
    videos = {recording.outcome: recording for recording in recordings}
    written = []
    for outcome, ending in {"": "", "success": "-success", "failure": "-failure"}.items():
        path = stem.with_name(f"{stem.name}{ending}.{suffix}")
        if outcome not in videos:
            path.unlink(missing_ok=True)
            continue
        recording = videos[outcome]
        content = encode_mp4(recording) if suffix == "mp4" else encode_gif(recording).data
        write_bytes(path, content)
        written.append(path)
    return written


def _images(recording: Recording) -> Iterator[Image.Image]:
    for picture, note in zip(recording.pictures, recording.notes, strict=True):
        yield captioned(picture, recording.mission, note, recording.legend)
