"""Targets of an export: the context that is fixed, and the format of the file."""

import re
import zlib
from typing import NamedTuple

from numpy.typing import ArrayLike

from mirl.agents.exports.formats import FORMATS, Format
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import MISSION_KEY, TASK_KEY
from mirl.configs.networks import (
    AnyContextConfig,
    CombinedContextConfig,
    MissionContextConfig,
    SentenceContextConfig,
    TaskIdContextConfig,
)
from mirl.configs.tasks import SuiteConfig, file_name
from mirl.configs.texts import split_words
from mirl.envs.texts.codec import suite_codec
from mirl.envs.texts.vocabulary import VOCABULARY

WHOLE_POLICY = "policy"
"""Name of the export of a policy whose context is an input."""
DEFAULT_FORMAT: Format = "pt2"
"""Format for a name without a file extension."""


class Target(NamedTuple):
    """An export that the command line requests."""

    name: str
    """Mission or task whose context is fixed; ``WHOLE_POLICY`` if the context is an input."""
    format: Format
    """Format of the file."""

    @property
    def is_whole_policy(self) -> bool:
        """True if the context is an input."""
        return self.name == WHOLE_POLICY

    @property
    def file_name(self) -> str:
        """Name of the file."""
        return f"{short_name(self.name)}.{self.format}"


def parse_target(word: str) -> Target:
    """Return the target of an export.

    Args:
        word: the option ``export=``: a mission, a task or "policy", with or without a file
            extension.

    Raises:
        ConfigError: the word is a format, or "policy" with a folder or another extension.
    """
    name, dot, ending = word.rpartition(".")
    folder, _, stem = name.rpartition("/")
    is_whole = bool(dot) and stem == WHOLE_POLICY
    if word in FORMATS or (is_whole and (folder or ending not in FORMATS)):
        files = " or ".join(f"export={WHOLE_POLICY}.{each}" for each in FORMATS)
        raise ConfigError(
            f"export={word}: expected a mission, a task, or {WHOLE_POLICY} for all of them; use "
            f"{files}, which is written to exports/ of the run"
        )
    for each in FORMATS:
        if dot and ending == each:
            return Target(name, each)
    return Target(word, DEFAULT_FORMAT)


def find_context(name: str, config: AnyContextConfig, suite: SuiteConfig) -> ArrayLike:
    """Return the context of a mission or a task, in the form of an observation.

    Args:
        name: a mission or the name of a task, depending on the run's context.
        config: the context of the run.
        suite: the tasks of the run.

    Returns:
        The token ids or bytes of the mission, or the index of the task.

    Raises:
        ConfigError: there is no such task, or the context is a goal, which has no name.
    """
    # for a user's context encoder, its key tells
    is_text = isinstance(config, MissionContextConfig | SentenceContextConfig)
    if is_text or config.keys == (MISSION_KEY,):
        if isinstance(config, MissionContextConfig):
            _check_words(name, suite)
        return suite_codec(suite).encode(name, config.keys[0])
    if isinstance(config, TaskIdContextConfig) or config.keys == (TASK_KEY,):
        tasks = [task.name for task in suite.tasks]
        if name not in tasks:
            raise ConfigError(
                f"unknown task '{name}'.{nearest(name, tasks)} For all tasks, use "
                "export=policy.onnx or export=policy.pt2"
            )
        return tasks.index(name)
    reason = "is a goal, which has no name"
    if isinstance(config, CombinedContextConfig):
        reason = f"joins {', '.join(config.keys)}"
    raise ConfigError(
        f"export={name}: the context of this run {reason}; use export=policy.onnx or "
        "export=policy.pt2, whose context is an input"
    )


def _check_words(mission: str, suite: SuiteConfig) -> None:
    """Raise a ConfigError if a mission has words that no mission of the run has."""
    known = {*VOCABULARY, *(suite.vocabulary or ())}
    unknown = [word for word in split_words(mission) if word not in known]
    if unknown:
        raise ConfigError(
            f"export={mission}: expected a mission, or 'policy' for all of them, and the agent "
            f"does not know {', '.join(unknown)}.{nearest(unknown[0], known)}"
        )


def short_name(name: str) -> str:
    """Return a file name for a mission or task.

    Args:
        name: the mission or task.

    Returns:
        Its words, and a checksum if they are too long or contain other characters.
    """
    if re.fullmatch(r"[A-Za-z0-9 ._+-]{1,100}", name):
        return file_name(name)
    # a command line can hold bytes that are not UTF-8; Python passes them as surrogates
    checksum = zlib.crc32(name.encode("utf-8", "surrogatepass"))
    return f"{file_name(name)[:80]}-{checksum:08x}"
