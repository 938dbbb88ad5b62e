"""Fuzz the reader of run directories with atheris, guided by coverage.

    python benchmarks/fuzz_reader.py RUN_DIR -max_total_time=600

The first byte of each input selects a file of the run, and the rest replaces its content. Whatever
the content is, the reader must either load the checkpoint or raise ``ConfigError``. This script is
a part of ``reliability.py``.
"""

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mirl.agents", "mirl.configs", "yaml", "json"]):
    from mirl.agents.builder import build_agent
    from mirl.agents.runs.atomic_files import verify_manifest, write_manifest
    from mirl.agents.runs.checkpoint import Checkpoint
    from mirl.agents.runs.logger import MetricsCsv
    from mirl.agents.runs.run_directory import RunDirectory

from mirl.configs.errors import ConfigError
from mirl.envs import SuiteVecEnv

RUN_FILES = ("config.yaml", "checkpoints/index.json", "metrics.csv")
"""Files of the run directory to damage."""
TABLE = "time/total_timesteps,train/loss\n128,0.5\n256,0.25\n"
"""metrics.csv of the run."""
CHECKPOINT_FILES = ("state.json", "policy.safetensors", "optimizer.safetensors")
"""Files of the newest checkpoint to damage."""


def main() -> None:
    """Fuzz until libFuzzer stops, as its options specify."""
    source = Path(sys.argv[1])
    libfuzzer_options = sys.argv[2:]
    config = RunDirectory.open(source).config
    env = SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend)
    agent = build_agent(config, env)

    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    run_dir = Path(shutil.copytree(source, folder / "run"))
    (run_dir / "metrics.csv").write_text(TABLE, encoding="utf-8")
    run = RunDirectory.open(run_dir)
    checkpoint = max((run_dir / "checkpoints").glob("step_*"))
    paths = [run_dir / name for name in RUN_FILES]
    paths += [checkpoint / name for name in CHECKPOINT_FILES]
    # no manifest in the checkpoint itself, or it would reject all other damage before it is read
    sealed = Path(shutil.copytree(checkpoint, folder / "sealed"))
    write_manifest(sealed)
    paths.append(sealed / "manifest.json")
    intact = [path.read_bytes() for path in paths]

    # the intact files are the inputs that libFuzzer mutates
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(intact):
        (corpus / str(number)).write_bytes(bytes([number]) + data)

    # a damaged metrics.csv causes a warning each time
    warnings.simplefilter("ignore")

    def read(data: bytes) -> None:
        number = 0
        if data:
            number = data[0] % len(paths)
        paths[number].write_bytes(data[1:])
        try:
            if number == 0:
                RunDirectory.open(run_dir)
            elif number == 1:
                run.checkpoints.load_index()
                run.latest_valid_checkpoint()
            elif number == 2:
                MetricsCsv(paths[number], resumed_at=256).close()
            elif paths[number].parent == sealed:
                verify_manifest(sealed)
            else:
                Checkpoint.open(checkpoint).load_agent(agent)
        except ConfigError:
            pass
        finally:
            paths[number].write_bytes(intact[number])

    max_length = max(len(data) for data in intact) + 1024
    defaults = [f"-max_len={max_length}", "-len_control=0", "-timeout=10"]
    atheris.Setup([sys.argv[0], str(corpus), *defaults, *libfuzzer_options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
