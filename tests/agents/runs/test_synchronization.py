"""A run that is killed several times, even while it writes, ends bit-identical."""

from collections.abc import Callable
from pathlib import Path

import pytest
from killing import assert_kills_change_nothing

from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
OFTEN = ("checkpoint_every=128", "evaluation.every=192", "total_timesteps=640")
TWO = "[{name: a, env_id: MiniGrid-GoToDoor-5x5-v0}, {name: b, env_id: MiniGrid-GoToDoor-6x6-v0}]"
RUNS = {
    "ppo on envpool": ("backend=envpool",),
    "ppo on gymnasium, tasks drawn": (
        "backend=gymnasium",
        "task.name=two",
        f"task.tasks={TWO}",
        "sampling=lowest_success",
        "agent.popart=true",
    ),
    "a2c on envpool": ("backend=envpool", "agent=a2c"),
    "a2c on gymnasium": ("backend=gymnasium", "agent=a2c"),
    "ppo with a memory": (
        "backend=envpool",
        "memory=mi_lstm",
        "memory.size=8",
        "agent.sequence_length=16",
    ),
}
GAME = (
    "task=roles4",
    "agent.n_envs=8",  # two games
    "agent.batch_size=64",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "evaluation.context_use=false",
    "precision=fp32",
    "device=cpu",
    "progress=false",
    "videos=false",
)


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_killed_run_ends_bit_identical(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A run that was killed several times ends like one that was not."""
    assert_kills_change_nothing(
        monkeypatch, *(tiny(*words, *OFTEN, f"name={name}") for name in ("whole", "cut"))
    )


def test_killed_game_ends_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, for the agents of a game, which are reset and stepped together."""
    whole, cut = (
        compose_train([*GAME, *OFTEN, f"runs_dir={tmp_path}", f"name={name}"])
        for name in ("whole", "cut")
    )
    assert_kills_change_nothing(monkeypatch, whole, cut)
