"""``torchrun train.py``: two processes train one run, and come back when one of them dies."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_records import metrics_of, tensors_of

from mirl.agents.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
TINY = (
    "task=goto_door",
    "name=run",
    "agent.n_envs=4",
    "agent.n_steps=16",
    "agent.batch_size=32",
    "agent.n_epochs=1",
    "total_timesteps=512",
    "checkpoint_every=128",
    "evaluation.every=256",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "evaluation.test_episodes=4",
    "evaluation.context_use=false",
    "videos=false",
    "progress=false",
    "device=cpu",
    "precision=fp32",
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
    "agent.net_arch=[8]",
)
"""A run of 8 iterations and 4 checkpoints."""
KILLS = ("1:70,0:55,1:30", "0:75,1:1,0:55,0:58,1:30,0:20,1:45,0:40,1:10,1:70")
"""Deaths: of which rank, and at which event after each start. Those at 70 and 75 are after a
checkpoint, at 55 and 58 while one is written; each iteration has about 24 events."""


def torchrun(
    folder: Path, *words: str, script: str = "train.py", max_restarts: int = 0, kills: str = ""
) -> subprocess.CompletedProcess[str]:
    """Train with two processes in a folder, without a GPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc-per-node=2", f"--max-restarts={max_restarts}"]
    return subprocess.run(
        [*launcher, *options, str(ROOT / script), *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "KILLS": kills},
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a run that nothing interrupts, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = torchrun(folder, *TINY)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "run", done.stdout


def assert_same_run(run_dir: Path, whole: Path) -> None:
    kept = tensors_of(run_dir)
    expected = tensors_of(whole)
    assert kept.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(kept[name], values, err_msg=name)
    assert metrics_of(run_dir) == metrics_of(whole)


def test_first_rank_prints_and_writes(whole: tuple[Path, str]) -> None:
    run_dir, printed = whole
    assert printed.count("Training for 512 timesteps") == 1
    assert printed.count("on unseen episodes") == 1
    checkpoint = RunDirectory.open(run_dir).checkpoint("last")
    assert checkpoint.n_ranks == 2
    assert checkpoint.state["num_timesteps"] == 512


@pytest.mark.parametrize("kills", [KILLS[0], pytest.param(KILLS[1], marks=pytest.mark.exhaustive)])
def test_killed_ranks_lose_nothing(tmp_path: Path, whole: tuple[Path, str], kills: str) -> None:
    n_kills = len(kills.split(","))
    done = torchrun(
        tmp_path, *TINY, script="tests/killed_rank.py", max_restarts=n_kills, kills=kills
    )
    assert done.returncode == 0, done.stderr
    # torchrun logs each death
    assert done.stderr.count("exitcode: -9") == n_kills
    assert_same_run(tmp_path / "runs" / "run", whole[0])


def test_one_process_resumes_two(tmp_path: Path) -> None:
    """Another number of processes resumes the run, and a line says so."""
    script = "tests/killed_rank.py"
    assert torchrun(tmp_path, *TINY, script=script, kills="1:60").returncode != 0
    words = [sys.executable, str(ROOT / "train.py"), *TINY]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Trained by 2 processes so far and by 1 from here on" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fusoin=film", "unknown option 'fusoin'. Did you mean 'fusion'?"),
        ("agent.n_envs=3 agent.batch_size=32", "use for example agent.n_envs=4"),
        ("agent=dqn", "several processes train with agent=ppo or agent=a2c, got agent=dqn"),
    ],
)
def test_mistake_is_printed_once(tmp_path: Path, words: str, message: str) -> None:
    others = [word for word in TINY if not word.startswith("agent.")]
    done = torchrun(tmp_path, *others, *words.split())
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert done.stderr.count("error: ") == 1
    # that of torchrun's own report
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert not (tmp_path / "runs").exists()
