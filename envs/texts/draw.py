"""Collection of an environment's words and text lengths before a policy is built for them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from minigrid.core.mission import MissionSpace

from mirl.configs.tasks import SuiteConfig
from mirl.configs.texts import MAX_VOCABULARY_CHARACTERS, TextForm, split_words
from mirl.envs.texts.vocabulary import MAX_BYTES, MAX_TOKENS, VOCABULARY
from mirl.envs.type_aliases import AnyEnv, AnySpace

PATIENCE = 64
"""Number of resets in a row without a new word or length after which drawing ends."""
MAX_RESETS = 512
"""Largest number of resets for drawing texts, so that drawing ends for a rich language too."""
WATCHED_EPISODES = 8
"""Number of episodes that are stepped to find out whether texts change within an episode."""
WATCHED_STEPS = 16
"""Number of random timesteps after a reset in which texts are read."""
MAX_WORD_LENGTH = 64
"""Length of the longest word that gets an id of its own; longer ones are more likely data."""
MIN_LENGTHS: dict[TextForm, int] = {"tokens": 16, "utf8": 64}
"""Smallest length of a text in an observation, by its form."""
MINIGRID_LENGTHS: dict[TextForm, int] = {"tokens": MAX_TOKENS, "utf8": MAX_BYTES}
"""Length of the missions of MiniGrid and BabyAI, by their form."""
MAX_DEFAULT_LENGTH = 256
"""Maximum length of a text if only its space is known."""
MAX_BYTES_PER_CHARACTER = 4
"""Maximum number of bytes of a UTF-8 character."""
SLACK = 2
"""Length of the arrays, as a multiple of the longest drawn text."""


@dataclass
class TextSample:
    """Words and lengths of the texts of one environment.

    Args:
        words: words that MiniGrid does not have, in the order in which they appeared.
        lengths: length that the texts need, by their form; 0 without texts.
    """

    words: dict[str, None] = field(default_factory=dict)
    lengths: dict[TextForm, int] = field(default_factory=lambda: {"tokens": 0, "utf8": 0})


def is_raw_text(space: AnySpace) -> bool:
    """Return True if a space holds strings.

    Args:
        space: a subspace of an observation.
    """
    return isinstance(space, (MissionSpace, spaces.Text))


def constant_text(space: AnySpace) -> str | None:
    """Return the text that a space always has; None if it may have several.

    Args:
        space: a space that holds strings.
    """
    # BabyAI's own class has no placeholders either, although its missions vary
    if type(space) is MissionSpace and not space.ordered_placeholders:
        return str(space.sample())
    return None


def has_minigrid_texts(env: AnyEnv) -> bool:
    """Return True if all texts are those of MiniGrid or BabyAI, whose words are known.

    Args:
        env: the environment; a wrapper from elsewhere may change its texts.
    """
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if not type(layer).__module__.startswith(("gymnasium.", "minigrid.", "mirl.")):
            return False
        layer = layer.env
    return type(layer).__module__.startswith("minigrid.")


def default_length(space: AnySpace, env: AnyEnv, form: TextForm) -> int:
    """Return the length of a text of which no sample has been drawn.

    Args:
        space: the space of the text.
        env: its environment.
        form: form of the text.
    """
    if has_minigrid_texts(env) or not isinstance(space, spaces.Text):
        return MINIGRID_LENGTHS[form]
    return min(_max_length(space, form), MAX_DEFAULT_LENGTH)


def draw_texts(env: AnyEnv) -> TextSample:
    """Read the texts of some episodes with fixed seeds.

    Args:
        env: an environment before ``ContractObservation``; it is reset and stepped.

    Returns:
        The words and lengths; for MiniGrid's own texts, the known lengths, without a reset.
    """
    sample = TextSample()
    space = env.observation_space
    inner = dict(space) if isinstance(space, spaces.Dict) else {"": space}
    text_spaces = {key: subspace for key, subspace in inner.items() if is_raw_text(subspace)}
    if not text_spaces:
        return sample
    if has_minigrid_texts(env):
        sample.lengths = dict(MINIGRID_LENGTHS)
        return sample
    reader = _Reader(text_spaces, sample, is_dict=isinstance(space, spaces.Dict))
    env.action_space.seed(0)
    # An environment that fails here fails again in its first episode, with a better message.
    with suppress(Exception):
        _read_episodes(env, reader)
    reader.finish()
    return sample


class _Reader:
    """Reader of the texts of observations, which records their words and lengths.

    Args:
        text_spaces: spaces of the texts, by their keys.
        sample: sample to which words and lengths are added.
        is_dict: whether the observations are dictionaries, or a single text.
    """

    def __init__(
        self, text_spaces: dict[str, AnySpace], sample: TextSample, *, is_dict: bool
    ) -> None:
        self._spaces = text_spaces
        self._sample = sample
        self._is_dict = is_dict
        self._longest: dict[tuple[str, TextForm], int] = {}

    def texts(self, observation: Any) -> list[str]:
        """Return the texts of an observation."""
        if not self._is_dict:
            return [str(observation)]
        return [str(observation[key]) for key in self._spaces]

    def read(self, texts: Sequence[str]) -> bool:
        """Record texts, one per key; return True if a word or length was new."""
        is_new = False
        for key, text in zip(self._spaces, texts, strict=True):
            words = split_words(text)
            n_known = len(self._sample.words)
            self._sample.words.update(dict.fromkeys(filter(_gets_own_id, words)))
            is_new |= len(self._sample.words) > n_known
            lengths: dict[TextForm, int] = {
                "tokens": len(words),
                "utf8": len(text.encode("utf-8", "replace")),
            }
            for form, length in lengths.items():
                if length > self._longest.get((key, form), -1):
                    self._longest[key, form] = length
                    is_new = True
        return is_new

    def finish(self) -> None:
        """Record the lengths that the texts need, with slack for longer ones."""
        for key, space in self._spaces.items():
            for form, shortest in MIN_LENGTHS.items():
                length = max(shortest, SLACK * self._longest.get((key, form), 0))
                if isinstance(space, spaces.Text):
                    length = min(length, _max_length(space, form))
                self._sample.lengths[form] = max(self._sample.lengths[form], length)


def _read_episodes(env: AnyEnv, reader: _Reader) -> None:
    """Read texts until ``PATIENCE`` episodes in a row had nothing new."""
    changes_within_episode = False
    last_new = 0
    for episode in range(MAX_RESETS):
        observation, _ = env.reset(seed=episode)
        first = reader.texts(observation)
        is_new = reader.read(first)
        if episode < WATCHED_EPISODES or changes_within_episode:
            for _ in range(WATCHED_STEPS):
                observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
                texts = reader.texts(observation)
                changes_within_episode |= texts != first
                is_new |= reader.read(texts)
                if terminated or truncated:
                    break
        if is_new:
            last_new = episode
        if episode - last_new >= PATIENCE:
            return


def _gets_own_id(word: str) -> bool:
    """Return True for a word that MiniGrid lacks, and that a config.yaml can hold."""
    if word in VOCABULARY or len(word) > MAX_WORD_LENGTH:
        return False
    # a lone surrogate cannot be stored
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _max_length(space: spaces.Text, form: TextForm) -> int:
    """Return the maximum length of a text of a space, with at most one word per character."""
    per_character = MAX_BYTES_PER_CHARACTER if form == "utf8" else 1
    return max(1, per_character * space.max_length)


def complete_texts(suite: SuiteConfig, samples: Iterable[TextSample]) -> SuiteConfig:
    """Return a suite with its vocabulary and the length of its texts filled in.

    Args:
        suite: the suite; the values that it states are kept.
        samples: samples of the texts of its tasks.
    """
    drawn = list(samples)
    changes: dict[str, object] = {}
    if suite.vocabulary is None:
        changes["vocabulary"] = _join_words(drawn) if suite.text_form == "tokens" else ()
    if suite.text_length is None:
        lengths = [sample.lengths[suite.text_form] for sample in drawn]
        # without any text the length does not matter
        changes["text_length"] = max(lengths) or MINIGRID_LENGTHS[suite.text_form]
    return suite.model_copy(update=changes) if changes else suite


def _join_words(samples: Sequence[TextSample]) -> tuple[str, ...]:
    """Return the words of all samples in alphabetical order.

    The order in which they appeared may differ from one run to the next if an environment ignores
    its seed.
    """
    found: dict[str, None] = {}
    n_characters = 0
    for sample in samples:
        for word in sample.words:
            is_new = word not in found
            if is_new and n_characters + len(word) <= MAX_VOCABULARY_CHARACTERS:
                found[word] = None
                n_characters += len(word)
    return tuple(sorted(found))


def draw_vocabulary(env: AnyEnv | str, *more: AnyEnv | str) -> tuple[str, ...]:
    """Return the words of environments for ``ContractObservation(vocabulary=…)``.

    An environment is reset, so draw before its first episode, or from another instance. Store the
    result with the weights, which depend on the ids of the words.

    Args:
        env: an environment, or its id.
        more: further environments or ids.

    Returns:
        The words that MiniGrid and BabyAI do not have, in alphabetical order.
    """
    samples = []
    for source in (env, *more):
        made = source
        if isinstance(made, str):
            # like every environment of MIRL: Gymnasium's checker would warn about each text
            made = gym.make(made, disable_env_checker=True)
        samples.append(draw_texts(made))
        if isinstance(source, str):
            made.close()
    return _join_words(samples)
