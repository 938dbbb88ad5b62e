"""Tests of drawing the words and lengths of an environment's texts."""

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids)
import pytest
import text_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from text_envs import ManyTextsEnv, SaysEnv

from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.configs.texts import split_words
from mirl.envs import VOCABULARY, draw_vocabulary
from mirl.envs.texts.draw import (
    MAX_RESETS,
    PATIENCE,
    TextSample,
    complete_texts,
    constant_text,
    default_length,
    draw_texts,
    has_minigrid_texts,
)

SUITE = SuiteConfig(name="says", tasks=(TaskConfig(name="says", env_id="TextSays-v0"),))
WORDS = st.from_regex(r"[a-z]{1,10}", fullmatch=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6, unique=True), st.sampled_from(["mission", "task"]))
def test_every_word_is_drawn(words: list[str], key: str) -> None:
    """Words are drawn under any key, without those that MiniGrid has."""
    env = SaysEnv([f"the {word}" for word in words], key)
    assert draw_vocabulary(env) == tuple(sorted({*words} - {*VOCABULARY}))


def test_words_within_an_episode_are_drawn() -> None:
    """Texts that change in the course of an episode are read in a few timesteps."""
    env = SaysEnv(["wait"], late=["press iron", "press cow"])
    assert draw_vocabulary(env) == ("cow", "iron", "press", "wait")


def test_order_does_not_depend_on_chance() -> None:
    """Words have the same order where an environment ignores its seed."""
    texts = [f"press {word}" for word in "abcdefgh"]
    assert len({draw_vocabulary(SaysEnv(texts, ignores_seed=True)) for _ in range(5)}) == 1


def test_drawing_ends() -> None:
    """A constant text is read a few times, a rich language no more often than the limit."""
    env = SaysEnv(["press iron"])
    draw_texts(env)
    assert env.n_resets == PATIENCE + 1
    env = SaysEnv([f"word{i}" for i in range(100_000)])
    sample = draw_texts(env)
    assert env.n_resets == MAX_RESETS
    assert len(sample.words) > MAX_RESETS - 10


@pytest.mark.parametrize(
    ("n_words", "max_length", "expected"),
    [(1, 1000, 16), (10, 1000, 20), (98, 1000, 196), (98, 98, 98), (1, 5, 5)],
)
def test_length_comes_from_the_texts(n_words: int, max_length: int, expected: int) -> None:
    env = SaysEnv(["go " * n_words], max_length=max_length)
    assert draw_texts(env).lengths["tokens"] == expected


def test_minigrid_is_not_drawn() -> None:
    """MiniGrid's own texts are known; those of a wrapper from elsewhere are read."""
    env = gym.make("MiniGrid-GoToDoor-5x5-v0")
    assert has_minigrid_texts(env)
    assert draw_texts(env) == TextSample({}, {"tokens": 80, "utf8": 512})

    class Translated(gym.ObservationWrapper):
        def observation(self, observation: dict[str, object]) -> dict[str, object]:
            return {**observation, "mission": "geh zur roten Tür"}

    translated = Translated(env)
    assert not has_minigrid_texts(translated)
    assert draw_vocabulary(translated) == ("geh", "roten", "tür", "zur")


def test_environment_without_texts_is_not_reset() -> None:
    sample = draw_texts(gym.make("CartPole-v1"))
    assert sample == TextSample()
    completed = complete_texts(SUITE, [sample])
    assert (completed.vocabulary, completed.text_length) == ((), 80)


def test_failing_environment_is_left_alone() -> None:
    """An error while drawing is left to the first episode, which reports it."""
    env = SaysEnv(["press iron"], late=["press cow"])
    env.step = None  # type: ignore[assignment]
    assert draw_vocabulary(env) == ("iron", "press")


def test_stated_texts_are_kept() -> None:
    """A stated vocabulary or length is not replaced."""
    suite = SUITE.model_copy(update={"vocabulary": ("iron",), "text_length": 7})
    sample = TextSample({"cow": None}, {"tokens": 30, "utf8": 100})
    assert complete_texts(suite, [sample]) == suite
    partly = SUITE.model_copy(update={"text_length": 7})
    assert complete_texts(partly, [sample]).vocabulary == ("cow",)


def test_completed_suite_can_be_stored() -> None:
    """Words that no file can hold, and ever more words, are left to the buckets."""
    texts = ["\ud800 a", "x" * 1000, *(f"word{i}" for i in range(9000))]
    sample = TextSample()
    for text in texts:
        sample.words.update(dict.fromkeys(split_words(text)))
    completed = complete_texts(SUITE, [sample])
    assert completed.vocabulary is not None
    assert sum(map(len, completed.vocabulary)) <= 2**14
    env = SaysEnv(["\ud800 iron", "x" * 1000])
    words = draw_vocabulary(env)
    assert words == ("iron",)
    assert SuiteConfig.model_validate(completed.model_dump()) is not None


def test_default_length_is_bounded() -> None:
    env = ManyTextsEnv(max_length=3000)
    assert default_length(env.observation_space["mission"], env, "tokens") == 256


def test_ids_of_several_environments() -> None:
    """The words of several environments are drawn together, by id or instance."""
    assert draw_vocabulary("TextSays-v0", SaysEnv(["iron"])) == ("iron", "press")


def minigrid_ids() -> list[str]:
    """Return the ids of MiniGrid and BabyAI whose files are all installed."""
    names = []
    for env_id, spec in gym.registry.items():
        # those of WFC need pictures that the package lacks
        if str(spec.entry_point).startswith("minigrid.") and "WFC" not in env_id:
            names.append(env_id)
    return names


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_constant_missions_never_change() -> None:
    """A text that is taken for constant is that of every episode, of every level."""
    n_constant = 0
    for env_id in minigrid_ids():
        env = gym.make(env_id, disable_env_checker=True)
        assert isinstance(env.observation_space, spaces.Dict)
        text = constant_text(env.observation_space["mission"])
        if text is not None:
            n_constant += 1
            for seed in range(4):
                assert env.reset(seed=seed)[0]["mission"] == text, env_id
        env.close()
    assert n_constant >= 40


def test_texts_of_other_spaces_may_change() -> None:
    """BabyAI's class has no placeholders, and Gymnasium's texts say nothing about their values."""
    level = gym.make("BabyAI-GoToLocal-v0", disable_env_checker=True)
    assert isinstance(level.observation_space, spaces.Dict)
    assert constant_text(level.observation_space["mission"]) is None
    assert constant_text(spaces.Text(8)) is None
    level.close()
