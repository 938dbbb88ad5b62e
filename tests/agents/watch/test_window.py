"""Keys pressed in a window play episodes, by SDL's driver without a screen."""

from collections.abc import Iterator
from contextlib import closing

import pygame
import pytest

from mirl.agents.watch import window
from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import open_env
from mirl.agents.watch.window import has_display, has_keys, play
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(window, "END_SECONDS", 0.01)
    pygame.display.init()
    yield
    pygame.quit()


def suite_of(env_id: str) -> SuiteConfig:
    return SuiteConfig(name="s", tasks=(TaskConfig(name="t", env_id=env_id),))


def press(*keys: int) -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))


def play_in_window(env_id: str) -> list[str]:
    """Play a task until the window is closed; return what was written."""
    suite = suite_of(env_id)
    env = open_env(suite, 0)
    assert env is not None
    written: list[str] = []
    with closing(env):
        assert has_keys(env)
        play(env, suite, 0, 3, written.append)
    return written


@pytest.mark.parametrize("end", ["key", "window"])
def test_grid_is_played_by_keys(no_screen: None, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Each key is an action, the end is shown, and another episode follows."""
    titles: list[str] = []

    def title(text: str) -> None:
        titles.append(text)
        if "step 0" in text and any("step 4" in before for before in titles):
            last = pygame.event.Event(pygame.QUIT)
            if end == "key":
                last = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q)
            pygame.event.post(last)

    monkeypatch.setattr(pygame.display, "set_caption", title)
    press(pygame.K_LEFT, pygame.K_UP, pygame.K_p, pygame.K_x, pygame.K_RETURN)
    keys, task, outcome, other_task = play_in_window("MiniGrid-GoToDoor-5x5-v0")
    assert keys.startswith("arrows")
    assert outcome == "step 4, action: done, return 0.00, failure\n"
    assert task.startswith("Task: go to the ")
    assert other_task.startswith("Task: go to the ")
    own = [text for text in titles if text != "minigrid"]
    steps = [text.partition(": ")[2] for text in own]
    assert steps[:4] == [
        "step 0, return 0.00",
        "step 1, action: left, return 0.00",
        "step 2, action: forward, return 0.00",
        "step 3, action: pickup, return 0.00",
    ]
    assert steps[-1] == "step 0, return 0.00"


def test_named_keys_play_other_tasks(no_screen: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names its keys is played in real time, with a caption."""
    actions: list[int] = []
    step = EpisodePlayer.step

    def recorded(player: EpisodePlayer, action: int) -> object:
        actions.append(action)
        if len(actions) == 2:
            press(pygame.K_RIGHT)
        if len(actions) == 6:
            press(pygame.K_ESCAPE)
        return step(player, action)

    monkeypatch.setattr(EpisodePlayer, "step", recorded)
    assert play_in_window("MountainCar-v0") == []
    # 1 for no push, 2 for one to the right
    assert actions[:2] == [1, 1]
    assert set(actions[3:]) == {2}


def test_keys_are_of_the_environment() -> None:
    suite = suite_of("CartPole-v1")
    env = open_env(suite, 0)
    assert env is not None
    with closing(env):
        assert not has_keys(env)


def test_missing_display_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not has_display()
    suite = suite_of("MiniGrid-GoToDoor-5x5-v0")
    env = open_env(suite, 0)
    assert env is not None
    with closing(env), pytest.raises(ConfigError, match="no window can be opened here"):
        play(env, suite, 0, 0, lambda _text: None)
