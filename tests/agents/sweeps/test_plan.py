"""The folder of a sweep."""

import json
from pathlib import Path

import pytest
from sweep_setup import sweep

from mirl.agents.sweeps.plan import PLAN, opened, write_results
from mirl.configs.errors import ConfigError


def test_folder_goes_on(tmp_path: Path) -> None:
    """The order of the arguments, the engine and the jobs change nothing."""
    folder = tmp_path / "out"
    with opened(sweep(folder, "fusion=concat,film", "seed=0,1")) as path:
        assert path == folder
        assert {each.name for each in folder.iterdir()} == {".lock", "logs", "records", PLAN}
    with opened(sweep(folder, "seed=0,1", "fusion=concat,film", "jobs=1")):
        pass


def test_other_sweep_is_refused(tmp_path: Path) -> None:
    with opened(sweep(tmp_path, "seed=0,1")):
        pass
    message = "holds another sweep \\(seed=0,1 there, seed=0,1,2 now\\); choose another out="
    with pytest.raises(ConfigError, match=message), opened(sweep(tmp_path, "seed=0,1,2")):
        raise AssertionError


@pytest.mark.parametrize("name", ["thesis.tex", PLAN])
def test_foreign_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with (
        pytest.raises(ConfigError, match="choose another out="),
        opened(sweep(tmp_path, "seed=0,1")),
    ):
        raise AssertionError


def test_results_name_the_machine(tmp_path: Path) -> None:
    path = write_results(tmp_path, [{"name": "a"}])
    report = json.loads(path.read_text())
    assert report["runs"] == [{"name": "a"}]
    assert report["machine"]["versions"]["torch"]
    assert report["command"]
