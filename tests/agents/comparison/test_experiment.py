"""A comparison from its configuration to its files, on an environment of one's own."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from comparison_records import FakeEngine
from comparison_setup import comparison

from mirl.agents.comparison import experiment
from mirl.agents.comparison.experiment import compare
from mirl.configs.errors import ConfigError

FUSIONS = "fusion=concat,film"


@pytest.fixture(autouse=True)
def undrawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the figures by one file, because drawing them takes seconds."""
    monkeypatch.setattr(experiment, "draw_figures", lambda folder, _: (folder / "curves").touch())


def test_results_are_written_and_kept(tmp_path: Path) -> None:
    """Every setting is executed with every seed; the same command again executes nothing."""
    config = comparison(tmp_path / "out", FUSIONS, "seeds=2")
    lines: list[str] = []
    result = compare(config, lines.append, FakeEngine(tmp_path / "out"))
    assert (len(result.tables), result.failures, result.missing) == (2, {}, 0)
    assert [line[:6] for line in lines] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["setting"] for row in report["results"]] == ["concat", "film"]
    assert {run["seed"] for run in report["runs"]} == {0, 1}
    assert report["machine"]["versions"]["torch"]
    assert report["columns"][:2] == ["task", "setting"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"table.md", "table.csv", "table.tex", "pairs.csv", "curves"} < written
    again = FakeEngine(tmp_path / "out")
    assert compare(config, lines.append, again).tables == result.tables
    assert again.executed == []
    assert lines[-1] == "4 of 4 runs are finished already."


def test_failed_run_is_tried_again(tmp_path: Path) -> None:
    config = comparison(tmp_path, FUSIONS, "seeds=2")
    name = "film-corridor_env-ToyCorridor-v0-seed0"
    result = compare(config, engine=FakeEngine(tmp_path, failing=(name,)))
    assert result.failures == {name: "the simulator broke"}
    assert result.missing == 1
    # the others are in the tables
    assert result.tables[1].rows[0][2] == "1"
    engine = FakeEngine(tmp_path)
    assert compare(config, engine=engine).missing == 0
    assert engine.executed == [name]


def test_other_configuration_is_refused(tmp_path: Path) -> None:
    compare(comparison(tmp_path, FUSIONS, "seeds=2"), engine=FakeEngine(tmp_path))
    for words, key in ((("seeds=1",), "seeds"), (("seeds=2", "agent.gamma=0.9"), "options")):
        with pytest.raises(ConfigError, match=rf"another comparison \({key}: .*another out="):
            compare(comparison(tmp_path, FUSIONS, *words), engine=FakeEngine(tmp_path))
    # the number of jobs changes no result
    compare(comparison(tmp_path, FUSIONS, "seeds=2", "jobs=1"), engine=FakeEngine(tmp_path))


def test_seeds_can_be_added(tmp_path: Path) -> None:
    """The finished runs are kept, and from then on the folder has all of the seeds."""
    compare(comparison(tmp_path, FUSIONS, "seeds=1"), engine=FakeEngine(tmp_path))
    engine = FakeEngine(tmp_path)
    result = compare(comparison(tmp_path, FUSIONS, "seeds=2"), engine=engine)
    assert [name.rpartition("-seed")[2] for name in engine.executed] == ["1", "1"]
    assert (
        result.tables
        == compare(
            comparison(tmp_path / "whole", FUSIONS, "seeds=2"),
            engine=FakeEngine(tmp_path / "whole"),
        ).tables
    )
    with pytest.raises(ConfigError, match="another comparison"):
        compare(comparison(tmp_path, FUSIONS, "seeds=1"), engine=FakeEngine(tmp_path))


def test_ignored_context_is_named(tmp_path: Path) -> None:
    config = comparison(tmp_path, FUSIONS, "seeds=1")
    assert compare(config, engine=FakeEngine(tmp_path)).ignoring == []
    name = "film-corridor_env-ToyCorridor-v0-seed0"
    path = tmp_path / "records" / f"{name}.json"
    changed = json.loads(path.read_text(encoding="utf-8")) | {
        "context_use": {"ignores_context": True}
    }
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert compare(config, engine=FakeEngine(tmp_path)).ignoring == [name]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="something else than a comparison"):
        compare(comparison(tmp_path, FUSIONS), engine=FakeEngine(tmp_path))


def test_folder_has_one_process(tmp_path: Path) -> None:
    with (
        experiment._locked(tmp_path),
        pytest.raises(ConfigError, match="another process works in"),
    ):
        compare(comparison(tmp_path, FUSIONS), engine=FakeEngine(tmp_path))


def test_corrected_command_may_use_folder(tmp_path: Path) -> None:
    """A comparison of which no run has begun leaves its folder to the corrected command."""
    names = [f"{name}-corridor_env-ToyCorridor-v0-seed0" for name in ("concat", "film")]
    engine = FakeEngine(tmp_path, failing=tuple(names))
    result = compare(comparison(tmp_path, FUSIONS, "seeds=1"), engine=engine)
    assert (result.tables, list(result.failures)) == ([], names)
    assert not compare(comparison(tmp_path, FUSIONS, "seeds=2"), engine=FakeEngine(tmp_path))[1]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("encoder=grid", "bad in corridor_env:ToyCorridor-v0: .*encoder=grid"),
        ("context.key=missing", "bad in corridor_env:ToyCorridor-v0: .*missing"),
    ],
)
def test_mistake_is_found_first(tmp_path: Path, bad: str, expected: str) -> None:
    """A setting that the environment does not admit is refused before any setting is trained."""
    engine = FakeEngine(tmp_path)
    settings = ("settings.good=fusion=film", f"settings.bad={bad}", "seeds=1")
    with pytest.raises(ConfigError, match=expected):
        compare(comparison(tmp_path, *settings), engine=engine)
    assert not engine.options
    assert not compare(comparison(tmp_path, FUSIONS, "seeds=1"), engine=engine).failures


def test_match_widens_smaller_settings(tmp_path: Path) -> None:
    config = comparison(tmp_path, "fusion=concat,bilinear", "seeds=1", "match=true")
    engine = FakeEngine(tmp_path)
    compare(config, engine=engine)
    concat, bilinear = engine.options.values()
    assert concat[-1].startswith("encoder.features_dim=")
    assert bilinear[-1] == "fusion=bilinear"
    # the widths are kept, not computed again
    shutil.rmtree(tmp_path / "records")
    again = FakeEngine(tmp_path)
    compare(config, engine=again)
    assert again.options == engine.options


def test_signal_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C no run begins, and the file asks those under way to save and end."""
    monkeypatch.setattr(experiment, "one_line", lambda _: signal.raise_signal(signal.SIGINT))
    engine = FakeEngine(tmp_path)
    result = compare(comparison(tmp_path, FUSIONS, "seeds=2"), engine=engine)
    assert (len(engine.executed), result.missing, result.failures) == (1, 3, {})
    assert (tmp_path / "stop").exists()
    monkeypatch.setattr(experiment, "one_line", lambda _: "")
    again = FakeEngine(tmp_path)
    assert compare(comparison(tmp_path, FUSIONS, "seeds=2"), engine=again).missing == 0
    assert not (tmp_path / "stop").exists()
