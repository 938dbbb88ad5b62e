"""Links that are planted in a run directory lead no command to write outside of it."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import tiny_runs
import torch

from mirl import eval as eval_command
from mirl import train as train_command
from mirl.agents.faults import EVIDENCE, NonFiniteError
from mirl.configs.errors import ConfigError

WORDS = (
    "agent.n_envs=4",
    "agent.n_steps=16",
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "total_timesteps=128",
    "checkpoint_every=64",
    "evaluation.episodes=2",
    "evaluation.test_episodes=2",
    *tiny_runs.NETWORK,
    "progress=false",
    "device=cpu",
    "precision=fp32",
    "name=mine",
)
KEPT = "kept as it is"
STEP = "step_000000064"
NEXT = "step_000000128"
REPORT = f"{STEP}-envpool-seed0-2ep"
ADAPTED = f"adapt-goto_door-context-{STEP}-seed0-2ep"
EXPORT = "go-to-the-red-door"
COMMANDS: dict[str, Callable[[Path], object]] = {
    "resume": lambda run: train_command.run([*WORDS, f"runs_dir={run.parent}"]),
    "eval.py": lambda run: eval_command.run(
        [f"run={run}", "checkpoint=last", "gif=true", "episodes=2", "backend=envpool"]
    ),
    "export": lambda run: eval_command.run(
        [f"run={run}", "checkpoint=last", "export=go to the red door"]
    ),
    "few-shot": lambda run: eval_command.run(
        [
            f"run={run}",
            "checkpoint=last",
            "adapt=context",
            "task=goto_door",
            "adapt_episodes=1",
            "episodes=2",
        ]
    ),
}
LINKS: list[tuple[str, tuple[str, ...]]] = [
    ("resume", (".lock",)),
    ("resume", ("config.yaml", ".config.yaml.tmp")),
    ("resume", ("metrics.csv",)),
    (
        "resume",
        (".metrics.csv.tmp", "checkpoints/.index.json.tmp", f"videos/goto_door_{128:09d}.gif"),
    ),
    ("resume", (f"videos/.goto_door_{128:09d}.gif.tmp",)),
    ("resume", ("checkpoints/",)),
    ("resume", ("checkpoints/index.json",)),
    ("resume", (f"checkpoints/{STEP}/",)),
    ("resume", (f"checkpoints/{NEXT}/",)),
    ("resume", (f"checkpoints/.{NEXT}.tmp/",)),
    ("resume", ("videos/",)),
    ("resume", ("eval/",)),
    ("resume", (f"eval/{NEXT}-envpool-seed0-2ep.json", f"eval/.{NEXT}-envpool-seed0-2ep.json.tmp")),
    ("eval.py", ("eval/",)),
    ("eval.py", (f"eval/{REPORT}.json", f"eval/{REPORT}-goto_door-failure.gif")),
    ("eval.py", (f"eval/.{REPORT}.json.tmp", f"eval/.{REPORT}-goto_door-failure.gif.tmp")),
    ("export", ("exports/",)),
    (
        "export",
        (f"exports/{EXPORT}.pt2", f"exports/{EXPORT}.pt2.json", f"exports/.{EXPORT}.pt2.tmp"),
    ),
    ("few-shot", ("eval/",)),
    ("few-shot", (f"eval/{ADAPTED}.json", f"eval/.{ADAPTED}.json.tmp")),
]
"""Commands, and names that they write in a run; a slash marks a folder."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run and remove its last checkpoint; return its directory."""
    folder = tmp_path_factory.mktemp("runs")
    assert train_command.run([*WORDS, f"runs_dir={folder}"]) == 0
    run = folder / "mine"
    shutil.rmtree(run / "checkpoints" / NEXT)
    index = run / "checkpoints" / "index.json"
    index.write_text(index.read_text().replace(NEXT, STEP))
    return run


def plant(run: Path, names: Sequence[str], outside: Path) -> None:
    """Replace names in a run by links; what they lead to has the content of the original."""
    for number, name in enumerate(names):
        path = run / name
        target = outside / str(number)
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            path.rename(target)
        elif name.endswith("/"):
            target.mkdir()
            (target / "file").write_text(KEPT)
        else:
            target.write_text(KEPT)
        path.symlink_to(target)


def content(folder: Path) -> dict[str, bytes | None]:
    """Return everything in a folder, with the bytes of its files."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize(("command", "names"), LINKS)
def test_no_command_writes_through_links(
    interrupted: Path, tmp_path: Path, command: str, names: tuple[str, ...]
) -> None:
    """A link is refused in one line or replaced; what it leads to stays as it is."""
    run = Path(shutil.copytree(interrupted, tmp_path / "runs" / "mine"))
    outside = tmp_path / "outside"
    outside.mkdir()
    plant(run, names, outside)
    before = content(outside)
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            COMMANDS[command](run)
        except (ConfigError, OSError) as error:
            message = str(error)
    assert content(outside) == before
    assert "\n" not in message


@pytest.mark.parametrize("name", [EVIDENCE, "fault.json", ".fault.json.tmp"])
def test_evidence_is_not_written_through_links(tmp_path: Path, name: str) -> None:
    """The evidence of a failed update replaces a link of its name."""
    folder = tmp_path / "faults" / STEP
    folder.mkdir(parents=True)
    target = tmp_path / "target"
    target.write_text(KEPT)
    (folder / name).symlink_to(target)
    error = NonFiniteError("not finite", {"weight": torch.ones(2)})
    with suppress(ConfigError, OSError):
        error.save(folder)
    assert target.read_text() == KEPT


@pytest.mark.parametrize("name", ["faults", f"faults/{STEP}"])
def test_fault_folders_are_no_links(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(target)
    error = NonFiniteError("not finite", {"weight": torch.ones(2)})
    with pytest.raises(ConfigError, match="is a link, expected a folder; remove the link"):
        error.save(tmp_path / "faults" / STEP)
    assert not list(target.iterdir())
