"""A run directory belongs to one configuration, and the same command resumes its run."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import text_envs  # noqa: F401  (registers its ids)
from run_setup import start_run

from mirl.agents import train
from mirl.agents.runs.run_directory import RunDirectory, adopt_texts
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import TaskConfig

Build = Callable[..., TrainConfig]
ITERATIONS = [128, 256, 384, 512]


HOLD = """
import sys, time
from pathlib import Path
from mirl.agents.runs.run_directory import RunDirectory
with RunDirectory.open(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_lock_keeps_other_processes_out(tiny: Build) -> None:
    """Two processes do not train in one run directory, and a lock ends with its process."""
    config = tiny("total_timesteps=128")
    start_run(config)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config.run_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(
            ConfigError, match=r"another process is training in .*; wait for it, or choose a name="
        ):
            train(config)
        assert not (config.run_dir / "metrics.csv").exists()
    finally:
        other.kill()
        other.communicate()
    assert train(config).finished


def test_free_fields_may_change(tiny: Build, tmp_path: Path) -> None:
    """A run may be resumed elsewhere, and with more patience."""
    first = tiny("name=mine")
    start_run(first)
    moved = first.run_dir.rename(tmp_path / "moved")
    patient = ("on_fault=skip", "max_restarts=99", "env_timeout=1e4", "progress=true", "logger=csv")
    run = start_run(tiny(f"name={moved.name}", f"runs_dir={moved.parent}", *patient))
    assert not run.is_new


def test_other_configuration_lists_differences(tiny: Build) -> None:
    """Another configuration under the same name lists every difference."""
    start_run(tiny("name=mine", "agent.gamma=0.99"))
    with pytest.raises(ConfigError) as caught:
        start_run(
            tiny(
                "name=mine",
                "fusion=low_rank",
                "fusion.rank=9",
                "seed=4",
                "agent.gamma=0.9",
                "evaluation.episodes=5",
            )
        )
    first, *differences = str(caught.value).splitlines()
    assert first.endswith(
        "holds a run of another configuration; choose another name, e.g. "
        "name=mine-gamma0.9-episodes5-low_rank"
    )
    # following the advice works
    assert start_run(tiny("name=mine-gamma0.9-episodes5-low_rank", "fusion=low_rank")).is_new
    assert differences == [
        "  agent.gamma: 0.99 there, 0.9 now",
        "  evaluation.episodes: 4 there, 5 now",
        "  fusion.kind: 'bilinear' there, 'low_rank' now",
        "  fusion.rank: None there, 9 now",
        "  seed: 0 there, 4 now",
    ]


def test_device_and_progress_may_change(tiny: Build) -> None:
    assert start_run(tiny()).is_new is True
    assert start_run(tiny("device=auto", "progress=true")).is_new is False


def test_foreign_folder_is_rejected(tiny: Build) -> None:
    """A folder that is not a run directory is rejected and left unchanged."""
    config = tiny()
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists and is not a run directory"):
        start_run(config)
    assert [path.name for path in config.run_dir.iterdir()] == ["thesis.tex"]


def test_unwritable_directory_is_one_line(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a full disk is not resumed, and keeps every byte."""
    config = tiny("total_timesteps=128")
    run = start_run(config)
    before = (run.path / "config.yaml").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mirl.agents.runs.atomic_files.flush", full)
        with pytest.raises(RunError, match="cannot be written: No space left on device"):
            train(config)
    assert {path.name for path in run.path.iterdir()} == {".lock", "config.yaml"}
    assert (run.path / "config.yaml").read_bytes() == before
    assert train(config).finished


def test_impossible_directory_is_rejected(tiny_in: Build, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be created: Not a directory"):
        start_run(tiny_in(tmp_path / "file"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory"),
        (b"\xff\xfe\x00", "is not a run directory"),
        (b"a: [", "is not a run directory"),
        (b"a: 1", "unknown option 'a'"),
        (b"[1]", "valid dictionary"),
        (b"", "valid dictionary"),
        (b"!!python/object/apply:os.system ['true']", "is not a run directory"),
    ],
)
def test_invalid_config_file_is_rejected(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        RunDirectory.open(tmp_path)


SAYS = (
    "agent.n_envs=4",
    "agent.n_steps=32",
    "agent.batch_size=64",
    "agent.n_epochs=2",
    "agent.net_arch=[8]",
    "total_timesteps=128",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "progress=false",
    "device=cpu",
    "precision=fp32",
    "++task.name=says",
    "++task.tasks=[{name: says, env_id: TextSays-v0}]",
    "context=mission",
    "context.dim=8",
    "encoder=vector",
    "encoder.features_dim=16",
    "sites=vector",
)


def test_words_are_drawn_once(tmp_path: Path) -> None:
    """A run stores its words, and a resumed or fine-tuned one reuses them."""
    config = compose_train([*SAYS, f"runs_dir={tmp_path}"])
    first = train(config).run.config.task
    assert (first.vocabulary, first.text_length) == (("press",), 16)
    stored = RunDirectory.open(config.run_dir)
    assert stored.config.task == first
    other = TaskConfig(name="says", env_id="TextSays-v0", kwargs={"texts": ["iron", "cow"]})
    changed = config.task.model_copy(update={"tasks": (other,)})
    config = config.model_copy(update={"task": changed})
    assert adopt_texts(config, stored.config).task.vocabulary == ("press",)
    warm = config.model_copy(update={"name": "warm", "start_from": stored.path})
    adopted = adopt_texts(warm, RunDirectory.stored(warm)).task
    assert (adopted.vocabulary, adopted.text_length) == (("press",), None)


def test_old_runs_have_minigrids_words(tiny: Build) -> None:
    """A run that states no texts has those of the versions before it."""
    config = tiny()
    run = start_run(config)
    text = (run.path / "config.yaml").read_text()
    lines = [line for line in text.splitlines() if "vocabulary" not in line]
    lines = [line for line in lines if "text_length" not in line]
    (run.path / "config.yaml").write_text("\n".join(lines))
    suite = RunDirectory.open(run.path).config.task
    assert (suite.vocabulary, suite.text_length) == ((), 80)
    assert start_run(config).config.task == suite
