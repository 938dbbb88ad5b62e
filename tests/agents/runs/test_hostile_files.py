"""A run directory from a stranger runs no code, and is rejected fast and in bounded memory."""

import io
import json
import pickle
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import Payload
from run_setup import evaluate_at

from mirl.agents.runs.atomic_files import MANIFEST, write_manifest
from mirl.configs.errors import MAX_LINES, ConfigError
from mirl.configs.schema import EvalConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "schema_1"
MAX_SECONDS = 5.0
"""It takes a second on an idle machine; the tests share theirs."""
MAX_MEMORY = 2**30
"""Bytes by which the peak size of the process may grow."""
STEP = "checkpoints/step_000000256"
FILES = [
    f"{STEP}/policy.safetensors",
    f"{STEP}/state.json",
    "checkpoints/index.json",
    "config.yaml",
]
Damage = Callable[[Path], None]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a run that evaluates, until a test damages it."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def evaluate(run_dir: Path) -> None:
    config = EvalConfig(
        run=run_dir, checkpoint="last", episodes=1, n_envs=1, backend="gymnasium", device="cpu"
    )
    evaluate_at(config)


def rejection(run_dir: Path) -> str:
    """Return the message of the error, which must come fast and in bounded memory."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        evaluate(run_dir)
    assert time.perf_counter() - start < MAX_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) * 1024 < MAX_MEMORY
    message = str(caught.value)
    assert len(message) < 1000
    return message


def write_safetensors(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def change_config(old: str, new: str) -> Damage:
    def change(folder: Path) -> None:
        path = folder / "config.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def change_index(**values: object) -> Damage:
    return lambda folder: (
        (folder / "checkpoints/index.json").write_text(json.dumps(values)) and None
    )


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 2**26)
    return buffer.getvalue()


def sealed_schema_2(folder: Path) -> None:
    state = folder / STEP / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "schema_version": 2}))
    write_manifest(folder / STEP)


def test_undamaged_run_evaluates(run_dir: Path) -> None:
    """The run that is damaged below evaluates before."""
    evaluate(run_dir)
    sealed_schema_2(run_dir)
    evaluate(run_dir)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", FILES)
def test_pickle_is_not_executed(run_dir: Path, tmp_path: Path, name: str, protocol: int) -> None:
    """A pickle under the name of any file is not executed."""
    (run_dir / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed"), protocol))
    rejection(run_dir)
    assert not (tmp_path / "executed").exists()


def test_torch_pickle_is_not_executed(run_dir: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(Payload(tmp_path / "executed"), run_dir / STEP / "policy.safetensors")
    rejection(run_dir)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [executed]", "!!python/name:os.mkdir ''"]
)
def test_yaml_constructs_no_objects(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    change_config("seed: 0", f"seed: {tag}")(run_dir)
    assert "could not determine a constructor" in rejection(run_dir)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "scalar",
    [
        "9" * 5000,  # more digits than int() takes
        f"0x{'f' * 5000}",  # an int of more digits than repr() gives
        "2024-02-30",
        "2024-01-01T99:99:99Z",
        "!!int none",
        "!!int ''",
        "!!bool perhaps",
        "!!float x",
        "!!timestamp yesterday",
        "!!binary Ä",
        "1e999",
    ],
)
def test_odd_scalars_are_one_line(run_dir: Path, scalar: str) -> None:
    """A value that YAML cannot read, or nobody can print, is reported in one line."""
    change_config("seed: 0", f"seed: {scalar}")(run_dir)
    assert "\n" not in rejection(run_dir)


@pytest.mark.parametrize("line", ["precision: fp32", "  kind: ppo", "seed: 0"])
def test_large_number_is_one_line(run_dir: Path, line: str) -> None:
    """An integer that Python refuses to print is one line, also where a name is expected."""
    name = line.partition(":")[0]
    change_config(line, f"{name}: 0x{'f' * 5000}")(run_dir)
    assert "holds too large a number" in rejection(run_dir)


def test_many_errors_are_a_few_lines(run_dir: Path) -> None:
    options = "".join(f"  option{i}: 1\n" for i in range(10_000))
    (run_dir / "config.yaml").write_text(f"agent:\n  kind: ppo\n{options}")
    with pytest.raises(ConfigError) as caught:
        evaluate(run_dir)
    assert str(caught.value).count("\n") == MAX_LINES - 1
    assert "more errors" in str(caught.value)


def test_hydra_targets_are_unknown_options(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change_config("seed: 0", "seed: {_target_: os.mkdir, path: executed}")(run_dir)
    rejection(run_dir)
    change_config("seed: {_target_: os.mkdir, path: executed}", "_target_: os.mkdir\nseed: 0")(
        run_dir
    )
    rejection(run_dir)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", FILES)
def test_zip_bomb_is_not_unpacked(run_dir: Path, name: str) -> None:
    (run_dir / name).write_bytes(zip_bomb())
    rejection(run_dir)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc", "..", "step_000000256/../../../outside", "C:\\outside", "", "step_x\0"],
)
def test_names_stay_in_the_folder(run_dir: Path, name: str) -> None:
    """A name in the index cannot lead out of the folder."""
    shutil.copytree(run_dir / STEP, run_dir.parent / "outside")
    change_index(last=name)(run_dir)
    rejection(run_dir)


@pytest.mark.parametrize("name", [*FILES, STEP])
def test_links_are_not_followed(run_dir: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    (run_dir / name).rename(target)
    (run_dir / name).symlink_to(target)
    rejection(run_dir)


def test_manifest_names_no_other_folder(run_dir: Path) -> None:
    sealed_schema_2(run_dir)
    path = run_dir / STEP / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"] = {"../../config.yaml": manifest["files"]["state.json"]}
    path.write_text(json.dumps(manifest))
    assert "state.json is not among the files of its manifest" in rejection(run_dir)


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/index.json", f"{STEP}/state.json"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_rejected(run_dir: Path, name: str, opening: str) -> None:
    deep = opening * (10**6 if name.endswith("json") else 10**4)
    (run_dir / name).write_text(deep)
    rejection(run_dir)


def test_large_text_is_not_read(run_dir: Path) -> None:
    with (run_dir / "config.yaml").open("ab") as file:
        file.truncate(2**40)
    assert "bytes, expected at most" in rejection(run_dir)
    shutil.copy(GOLDEN / "config.yaml", run_dir / "config.yaml")
    with (run_dir / STEP / "state.json").open("ab") as file:
        file.truncate(2**40)
    assert "bytes, expected at most" in rejection(run_dir)


def test_yaml_aliases_are_rejected(run_dir: Path) -> None:
    """YAML aliases, which can expand to any size, are rejected."""
    lines = [
        "a0: &a0 [x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)),
    ]
    (run_dir / "config.yaml").write_text("\n".join(lines))
    assert "it has an alias" in rejection(run_dir)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("features_dim: 8", "features_dim: 1000000000"),
        ("features_dim: 8", "features_dim: 100000"),
        ("features_dim: 8", "features_dim: 10000000000000000000000"),
        ("channels: 4", "channels: 1000000"),
        ("layers: 1", "layers: 65536"),
        ("net_arch:\n  - 4", "net_arch:\n" + "  - 4\n" * 10_000),
    ],
)
def test_huge_network_is_not_built(run_dir: Path, old: str, new: str) -> None:
    """A network of any size is not built."""
    change_config(old, new)(run_dir)
    rejection(run_dir)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}', b"\0" * 4),
        (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', b""),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999]}}', b"\0" * 4),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"\0" * 4),
        (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        (b"[" * 10**6, b""),
        (b"{}", b""),
        (b"", b""),
    ],
)
def test_false_weight_headers_are_rejected(run_dir: Path, header: bytes, data: bytes) -> None:
    """Weights whose header claims more than the file holds are rejected."""
    write_safetensors(run_dir / STEP / "policy.safetensors", header, data)
    assert "does not hold the weights of this policy" in rejection(run_dir)


def test_huge_header_is_rejected(run_dir: Path) -> None:
    """A header that claims any length is rejected."""
    (run_dir / STEP / "policy.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "does not hold the weights of this policy" in rejection(run_dir)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_other_weight_type_is_rejected(run_dir: Path, dtype: str) -> None:
    from safetensors.numpy import load_file, save_file

    path = run_dir / STEP / "policy.safetensors"
    weights = {name: weight.copy() for name, weight in load_file(path).items()}
    name = next(name for name, weight in weights.items() if weight.dtype == "float32")
    save_file({**weights, name: weights[name].astype(dtype)}, path)
    assert f"'{name}' should be F32" in rejection(run_dir)
