"""Coverage-guided fuzzing of what reads a run directory; ``reliability.py`` runs it, with atheris.

    python benchmarks/fuzz_reader.py RUN_DIR -max_total_time=600

Each input is a file of the run, by its first byte, in place of the true one. Whatever it holds, the reader must either
load the checkpoint or raise the one documented error.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mirl.agents", "mirl.configs", "yaml", "json"]):
    from mirl.agents.building import build_agent
    from mirl.agents.checkpoint import load_agent, newest_intact, read_index
    from mirl.agents.run_directory import read_config

from mirl.configs.errors import ConfigError
from mirl.envs import SuiteVecEnv

FILES = ("config.yaml", "checkpoints/index.json", "state.json", "policy.safetensors", "optimizer.safetensors")


def main() -> None:
    """Fuzz, as libFuzzer's options say."""
    source, options = Path(sys.argv[1]), sys.argv[2:]
    config = read_config(source)
    env = SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend)
    agent = build_agent(config, env)
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    run_dir, corpus = Path(shutil.copytree(source, folder / "run")), folder / "corpus"
    checkpoint = max((run_dir / "checkpoints").glob("step_*"))
    paths = [run_dir / name if name.startswith("c") else checkpoint / name for name in FILES]
    true = [path.read_bytes() for path in paths]
    corpus.mkdir()
    for number, data in enumerate(true):
        (corpus / str(number)).write_bytes(bytes([number]) + data)

    def read(data: bytes) -> None:
        number = data[0] % len(paths) if data else 0
        paths[number].write_bytes(data[1:])
        try:
            if number == 0:
                read_config(run_dir)
            elif number == 1:
                read_index(run_dir / "checkpoints")
                newest_intact(run_dir / "checkpoints")
            else:
                load_agent(checkpoint, agent)
        except ConfigError:
            pass
        finally:
            paths[number].write_bytes(true[number])

    longest = max(map(len, true)) + 1024
    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={longest}", "-len_control=0", "-timeout=10", *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
