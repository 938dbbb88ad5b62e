"""A session plays episodes, judges them, and lets the agent read a typed mission."""

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirl.agents.training import train
from mirl.agents.watch.session import Session
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig

Open = Callable[..., Session]


def play(session: Session) -> None:
    """Step to the end of the episode."""
    for _ in range(1000):
        if session.is_over:
            return
        session.step()
    raise AssertionError("the episode has no end")


def test_session_plays_whole_episodes(open_session: Open) -> None:
    """An episode ends once, stays as it is, and the next one begins anew."""
    session = open_session()
    assert session.moment().outcome == "running"
    play(session)
    over = session.moment()
    assert over.outcome in ("success", "failure")
    assert over.action == ""
    session.step()
    assert session.moment().timestep == over.timestep
    session.next_episode()
    moment = session.moment()
    assert (moment.episode, moment.timestep, moment.episode_return) == (2, 0, 0)


def test_success_is_judged_by_reward(open_session: Open) -> None:
    """MiniGrid pays exactly where the mission is fulfilled."""
    outcomes = set()
    session = open_session()
    for _ in range(30):
        play(session)
        moment = session.moment()
        assert (moment.outcome == "success") == (moment.episode_return > 0)
        outcomes.add(moment.outcome)
        session.next_episode()
    assert len(outcomes) == 2


def test_same_seed_gives_same_episode(open_session: Open) -> None:
    """The seed decides the layout, the mission and the actions."""
    seen = []
    for _ in range(2):
        session = open_session(seed=7)
        play(session)
        seen.append(session.moment()._replace(picture=0, view=0, shares=0))
        session.__exit__(None, None, None)
    assert seen[0] == seen[1]


def test_typed_mission_reaches_the_policy(open_session: Open) -> None:
    """The agent reads the typed mission until the environment's own is asked for again."""
    session = open_session()
    own = session.moment()
    session.set_mission("go to the purple elephant")
    typed = session.moment()
    assert typed.mission == "go to the purple elephant"
    assert typed.unknown_words == ("elephant",)
    assert typed.probabilities == pytest.approx(own.probabilities)  # blind at the start
    play(session)
    assert session.moment().outcome == "over (not judged: the mission was typed)"
    session.set_mission("")
    assert session.moment().mission != typed.mission
    assert session.moment().unknown_words == ()


def test_actions_have_their_names(open_session: Open) -> None:
    """MiniGrid names its actions; the probabilities sum to 1."""
    moment = open_session().moment()
    assert list(moment.probabilities)[:3] == ["left", "right", "forward"]
    assert sum(moment.probabilities.values()) == pytest.approx(1)
    assert moment.action in moment.probabilities


def test_task_without_text_refuses_mission(open_session: Open) -> None:
    """An agent that reads no text cannot be given one."""
    with pytest.raises(ConfigError, match="has no mission"):
        open_session("task=mt3", mission="go to the red door")


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Let processes heed Ctrl-C, which a shell makes those in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_command_serves_until_interrupted(tmp_path: Path, tiny: Callable[..., TrainConfig]) -> None:
    """The page of a stored run is served, Ctrl-C ends it with code 0, and mistakes are one line."""
    run_dir = train(tiny("total_timesteps=128", f"runs_dir={tmp_path}")).run.path
    script = Path(__file__).parents[3] / "watch.py"
    command = [sys.executable, str(script), f"run={run_dir}"]
    with subprocess.Popen([*command, "port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(address.group()) as page:
            assert b"<title>mirl-watch</title>" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    wrong = subprocess.run([*command, "task=other"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: .* has no task 'other'.*\n", wrong.stderr)
