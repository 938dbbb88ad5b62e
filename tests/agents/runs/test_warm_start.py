"""Initial weights come from another run, or from an archive of SB3 that is not trusted."""

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Payload
from run_setup import checkpoint_of, resolve
from safetensors.torch import load_file
from stable_baselines3 import PPO as SB3PPO

from mirl.agents import train
from mirl.agents.builder import policy_kwargs
from mirl.agents.runs import checkpoint
from mirl.agents.runs.warm_start import MEMBER, load_archive
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy

Build = Callable[..., TrainConfig]
FROZEN = "agent.learning_rate=1e-30"
"""A learning rate so small that no weight changes."""


@pytest.fixture
def sb3_model(tiny: Build) -> Iterator[SB3PPO]:
    config = tiny("agent.scale_values=false")  # as SB3's user has it
    env = SuiteVecEnv(config.task, 4, seed=1)
    yield SB3PPO(
        FusionPolicy,
        env,
        policy_kwargs=policy_kwargs(resolve(config)),
        seed=7,
        device="cpu",
        n_steps=8,
        batch_size=16,
    )
    env.close()


@pytest.fixture
def archive(sb3_model: SB3PPO, tmp_path: Path) -> Path:
    sb3_model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-20) for name in found)


def last_weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    [path] = config.run_dir.glob("checkpoints/step_000000512/policy.safetensors")
    return load_file(path)


def test_start_from_sb3_archive(tiny: Build, sb3_model: SB3PPO, archive: Path) -> None:
    config = tiny(f"start_from={archive}", FROZEN)
    train(config)
    assert same(last_weights(config), sb3_model.policy.state_dict())


def test_start_from_best_of_other_run(tiny: Build) -> None:
    """A run starts from the best checkpoint of another run."""
    unscaled = "agent.scale_values=false"  # the unit follows the returns at any learning rate
    first = tiny("name=first", unscaled)
    train(first)
    second = tiny("name=second", "seed=3", f"start_from={first.run_dir}", FROZEN, unscaled)
    train(second)
    best = load_file(checkpoint_of(first.run_dir, "best").policy_path)
    assert same(last_weights(second), best)


def test_resumed_run_needs_no_archive(tiny: Build, archive: Path) -> None:
    """A resumed run no longer needs the weights that it started from."""
    config = tiny(f"start_from={archive}")
    train(config)
    archive.unlink()
    assert train(config).finished


def test_run_without_checkpoint_starts_again(
    tiny: Build, sb3_model: SB3PPO, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed before its first checkpoint starts from the archive again."""
    config = tiny(f"start_from={archive}", FROZEN)

    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_manifest", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    assert (config.run_dir / "checkpoints").exists()
    train(config)
    assert same(last_weights(config), sb3_model.policy.state_dict())


def test_missing_weights_leave_no_run(tiny: Build, tmp_path: Path) -> None:
    """Initial weights that cannot be loaded leave no run directory."""
    for path, message in ((tmp_path / "no.zip", "no.zip"), (tmp_path / "nowhere", "nowhere")):
        config = tiny(f"start_from={path}")
        with pytest.raises(ConfigError, match=message):
            train(config)
        assert not config.run_dir.exists()


def packed(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def rezipped(data: bytes) -> bytes:
    """Compress the members of a zip file."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return out.getvalue()


def around(pickled: bytes) -> bytes:
    """Return a file as ``torch.save`` writes it, around a pickle without tensors."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def with_more_numbers(state: dict[str, Any]) -> bytes:
    """Return weights whose pickle claims storages of more numbers than there are."""
    out, claimed = io.BytesIO(), struct.pack("<BH", ord("M"), 999)
    with zipfile.ZipFile(io.BytesIO(packed(state))) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith("data.pkl"):
                data = re.sub(rb"K\x10(?=t)", claimed, data)  # the biases of 16 numbers
                assert claimed in data
            new.writestr(member.filename, data)
    return out.getvalue()


def changed(state: dict[str, Any], first: Any) -> dict[str, Any]:
    """Replace the first of a policy's weights."""
    return {**state, next(iter(state)): first}


def first_of(state: dict[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = next(iter(state.values()))
    return tensor


ZEROS = torch.zeros(50_000_000)
GIGABYTE = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<Q", 2**30)[:5] + b"\x85R."
HOSTILE: dict[str, tuple[Callable[[dict[str, Any], Path], bytes | None], str]] = {
    "code": (lambda _, marker: packed(Payload(marker)), "weights only: .*mkdir"),
    "code among weights": (
        lambda state, marker: packed({**state, "x": Payload(marker)}),
        "weights only: .*mkdir",
    ),
    "a gigabyte": (lambda *_: around(GIGABYTE), "weights only: .*bytearray"),
    "a large memo": (
        lambda *_: around(b"\x80\x02}r\xff\xff\xff\x7f."),
        "weights only: .*stores memo 2147483647",
    ),
    "a long pickle": (
        lambda *_: around(b"\x80\x02" + b"}0" * 200_000 + b"}."),
        "its pickle is longer than",
    ),
    "more numbers": (lambda state, _: with_more_numbers(state), "record size .* does not match"),
    "no zip inside": (lambda *_: b"nothing", "not a zip"),
    "none": (lambda *_: None, "no item named 'policy.pth'"),
    "bomb": (lambda *_: bytes(2**28), "decompresses to more than"),
    "bomb in the bomb": (lambda *_: rezipped(packed({"x": ZEROS})), "decompresses to more than"),
    "no dict": (lambda *_: packed((1, 2)), "expected tensors by name, got tuple"),
    "lacks": (lambda *_: packed({}), "it lacks '"),
    "too much": (
        lambda state, _: packed({**state, "more": torch.zeros(1)}),
        "has 'more', which the policy does not have",
    ),
    "no tensor": (lambda state, _: packed(changed(state, "a")), "got str"),
    "shape": (
        lambda state, _: packed(changed(state, torch.zeros(2, 3, 4))),
        r"got torch.float32 \[2, 3, 4\]",
    ),
    "type": (
        lambda state, _: packed({k: v.double() for k, v in state.items()}),
        "should be torch.float32",
    ),
    "nowhere": (
        lambda state, _: packed(changed(state, first_of(state).to("meta"))),
        "weights only",
    ),
    "sparse": (
        lambda state, _: packed(changed(state, first_of(state).to_sparse())),
        "weights only",
    ),
    "no number": (
        lambda state, _: packed(changed(state, first_of(state) * torch.nan)),
        "has non-finite values",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archive_is_rejected(kind: str, sb3_model: SB3PPO, tmp_path: Path) -> None:
    """A hostile archive is rejected in one line."""
    make, message = HOSTILE[kind]
    before = {name: tensor.clone() for name, tensor in sb3_model.policy.state_dict().items()}
    marker, path = tmp_path / "executed", tmp_path / "model.zip"
    content = make(dict(before), marker)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", "{}")
        if content is not None:
            archive.writestr(MEMBER, content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_archive(sb3_model.policy, path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert not marker.exists()
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in sb3_model.policy.state_dict().items()
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unlimited_compression_is_rejected(method: int, sb3_model: SB3PPO, tmp_path: Path) -> None:
    """A compression that cannot be stopped while it unpacks is rejected."""
    with zipfile.ZipFile(tmp_path / "model.zip", "w", method) as archive:
        archive.writestr(MEMBER, bytes(2**26))
    with pytest.raises(ConfigError, match="compressed by a method that SB3 does not use"):
        load_archive(sb3_model.policy, tmp_path / "model.zip")


def test_other_pickles_are_not_read(sb3_model: SB3PPO, archive: Path, tmp_path: Path) -> None:
    """Pickles beside the weights are not read."""
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            new.writestr(
                name, old.read(name) if name == MEMBER else packed(Payload(tmp_path / "executed"))
            )
    load_archive(sb3_model.policy, evil)
    assert not (tmp_path / "executed").exists()


def test_link_is_not_followed(sb3_model: SB3PPO, archive: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.zip"
    link.symlink_to(archive)
    with pytest.raises(ConfigError, match="link"):
        load_archive(sb3_model.policy, link)
