"""Several ranks compute what one process does; ``rank_oracle.py`` runs as two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mirl.agents.runs import ranks as module
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.configs.errors import ConfigError, ReportedElsewhereError, RunError

TESTS = Path(__file__).parents[2]
SIZE = 2


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of each rank of ``rank_oracle.py``."""
    folder = tmp_path_factory.mktemp("oracle")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, f"--nproc-per-node={SIZE}", str(TESTS / "rank_oracle.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]


@pytest.mark.parametrize("case", ["ppo", "popart", "lstm", "a2c"])
def test_ranks_equal_one_process(results: list[dict[str, Any]], case: str) -> None:
    for result in results:
        assert result[case]["difference"] < 1e-6
        # an update that changes little would pass whatever it does
        assert result[case]["change"] > 1e-4
        for name, (alone, shared) in result[case]["metrics"].items():
            assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("case", ["ppo", "popart", "lstm", "a2c"])
def test_ranks_agree_bit_for_bit(results: list[dict[str, Any]], case: str) -> None:
    first, second = (result[case]["digest"] for result in results)
    assert first == second


def test_running_norm_merges_ranks(results: list[dict[str, Any]]) -> None:
    for result in results:
        shared, alone = result["norm"]
        np.testing.assert_allclose(shared, alone, rtol=1e-12)
    assert results[0]["norm"][0] == results[1]["norm"][0]


def test_collectives(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        found = result["collectives"]
        assert found["flags"] == [True, False]
        assert found["gathered"] == [0.0, 0.0, 1.0, 1.0]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["from_first"] == [5]
        assert found["strided"] == "refused"
        assert "the weights of rank 1 differ" in found["unequal"], rank


def test_one_process_keeps_values() -> None:
    tensor = torch.arange(4.0).view(2, 2).T
    assert ONE_PROCESS.sum_(tensor) is tensor
    assert ONE_PROCESS.gather(tensor)[0] is tensor
    assert ONE_PROCESS.any_of(True, False) == [True, False]
    assert ONE_PROCESS.gather_objects("a") == ["a"]
    ONE_PROCESS.check_equal(nn.Linear(1, 1))


def test_nothing_else_keeps_the_group(results: list[dict[str, Any]]) -> None:
    """A group that is kept outlives its end: gloo's threads may then abort the exit of Python."""
    for result in results:
        assert result["references"] == 0


def test_without_torchrun_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # variables that another program has left behind
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Ranks.from_environment("cpu") == ONE_PROCESS


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--nproc-per-node 1 or device=cpu"):
        Ranks.from_environment("cuda")


def test_first_error_is_reported() -> None:
    """Of two ranks with an error, only the one that has it first prints it."""
    store = torch.distributed.HashStore()
    caught = []
    for rank in (1, 0):
        ranks = Ranks(rank, 2, store)
        with pytest.raises(RunError) as error, ranks.one_error():
            raise RunError("a worker died")
        caught.append(error)
    assert str(caught[0].value) == "rank 1 of 2: a worker died"
    assert caught[1].type is ReportedElsewhereError


def test_lost_rank_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr(module.dist, "all_reduce", fail)
    with pytest.raises(RunError, match=r"another rank is lost: Connection closed by peer$"):
        Ranks(0, 2).wait()
