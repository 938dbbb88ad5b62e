"""Check that a code change does not change any computed results.

    python benchmarks/unchanged.py [--against TREE] [--only CASE ...] [--jobs 1] [--cache FOLDER]

Each case is a short training run on one CPU thread, once with the reference and once with this
source tree. The tensors of the two last checkpoints (weights, optimizers, replay buffer) must be
bit-identical. They are matched by file, dtype, shape and bytes, and not by name, so that a module
may be renamed. Exits with 1 if a case differs or fails.

The cases state every option whose default has changed since the reference. A tree that does not
know such an option yet is trained without it.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import gymnasium
from safetensors.numpy import load_file

REFERENCE = "9f62d5e"
"""Commit to compare with. A change that is meant to alter learning moves it; its ADR says why."""

ROOT = Path(__file__).resolve().parents[1]
COMMON = "device=cpu precision=fp32 progress=false evaluation.episodes=1 evaluation.test_episodes=1"
FLOOR = "agent.advantage_floor=0"
DIVERGENCE = "agent.kl_coef=0"
UNIT = "agent.scale_values=false"
ON_POLICY = f"{COMMON} {FLOOR} {UNIT} backend=envpool total_timesteps=1024"
ON_POLICY += " agent.n_envs=8 agent.n_steps=16"
PPO = f"{ON_POLICY} {DIVERGENCE} agent.batch_size=64 agent.n_epochs=2 checkpoint_every=512"
OFF_POLICY = f"{COMMON} total_timesteps=400 agent.learning_starts=150 agent.batch_size=64"
OFF_POLICY += " agent.train_freq=4 agent.gradient_steps=1"
GYMNASIUM = f"{PPO} backend=gymnasium agent.n_envs=4 agent.n_steps=32"  # the last word counts
CELLS = "encoder.attributes=0"
WORDS = "context.zero_start=false"
SCALE = "fusion.context_scale=1"
FEATURES_SCALE = "fusion.features_scale=1"
UNSCALED = f"fusion=bilinear {SCALE}"
BILINEAR = f"{UNSCALED} {CELLS}"
DOOR = f"task=goto_door {BILINEAR} {WORDS}"
STEPS = "memory.scaled_steps=false"
NEW_OPTIONS = (CELLS, WORDS, SCALE, FEATURES_SCALE, FLOOR, DIVERGENCE, UNIT, STEPS)
"""Words omitted for trees that lack their option; the values reproduce the behavior there."""
MT3 = f"task=mt3 {BILINEAR} {PPO} total_timesteps=512 agent.popart=true agent.pcgrad=true"
MEMORY = f"task=memory_s7 {BILINEAR} {WORDS} {PPO}"
VECTOR = f"{UNSCALED} encoder=vector sites=vector"
IMAGE = f"{UNSCALED} encoder=image task.observation=rgb"
SAMPLED = "sampling=lowest_success context=one_hot"
FUSIONS = {
    "concat": "fusion=concat",
    "gate": "fusion=gate sites=[map,heads]",
    **{name: f"fusion={name} {SCALE}" for name in ("hyper", "film", "bilinear", "attention")},
    **{name: f"fusion={name} {SCALE} {FEATURES_SCALE}" for name in ("low_rank", "metric")},
}

CASES = {
    **{name: f"task=goto_door {words} {CELLS} {WORDS} {PPO}" for name, words in FUSIONS.items()},
    "bilinear-gymnasium": f"{DOOR} {GYMNASIUM}",
    "encoder_vector": f"task=goto_door {VECTOR} {WORDS} {PPO}",
    "encoder_image": f"task=goto_door {IMAGE} {WORDS} {GYMNASIUM}",
    "mission_gru": f"{DOOR} context=mission_gru {PPO}",
    "mission_bag": f"{DOOR} context=mission_bag {PPO}",
    "two_extractors": f"{DOOR} {PPO} agent.share_features_extractor=false",
    "split_objects": f"task=goto_local split=objects {BILINEAR} {WORDS} {PPO}",
    "goal_cell": f"task=reach_cell {BILINEAR} {GYMNASIUM}",
    "mt3": MT3,
    "mt3-gymnasium": f"{MT3} backend=gymnasium agent.advantages_per_task=true",  # in workers
    "mt3-sampling": f"task=mt3 {BILINEAR} {SAMPLED} sites=heads {PPO}",
    "lstm": f"{MEMORY} memory=lstm agent.sequence_length=8 agent.burn_in=4",
    "gru": f"{MEMORY} memory=gru {GYMNASIUM}",
    "mi_lstm": f"{MEMORY} memory=mi_lstm {STEPS} memory.skip_connection=true",
    "fast_weights": f"{MEMORY} memory=fast_weights",
    "memory_attention": f"{MEMORY} memory=attention",
    "a2c": f"{DOOR} agent=a2c {ON_POLICY}",
    "a2c-gru": f"{DOOR} agent=a2c memory=gru {ON_POLICY}",
    "sac_her": f"task=fetch_reach {UNSCALED} {OFF_POLICY}",
    "td3_her": f"task=fetch_reach {UNSCALED} agent=td3 {OFF_POLICY}",
    "tqc_her": f"task=fetch_reach {UNSCALED} agent=tqc {OFF_POLICY}",
    "dqn": f"{DOOR} agent=dqn backend=envpool {OFF_POLICY}",
}

PRELOADED = (
    *("torch", "torch._dynamo", "torch.utils.tensorboard", "stable_baselines3", "sb3_contrib"),
    *("gymnasium", "gymnasium_robotics", "minigrid", "envpool", "hydra", "matplotlib.pyplot"),
    *("mirl.train", "mirl.envs", "mirl.policies", "mirl.agents"),
)
"""Modules that are imported once for all runs of a source tree, as importing them takes longer
than a run."""


def tensors_of(run_dir: Path) -> list[Any]:
    """Return file, dtype, shape and hash of each tensor of a run's last checkpoint, sorted."""
    last = max((run_dir / "checkpoints").glob("step_*"))
    found = []
    for path in last.glob("*.safetensors"):
        for tensor in load_file(path).values():
            digest = hashlib.sha256(tensor.tobytes()).hexdigest()
            found.append([path.name, str(tensor.dtype), list(tensor.shape), digest])
    return sorted(found)


def train_case(words: list[str]) -> None:
    """Do in this process what ``python -m mirl.train WORD ...`` does, but show only errors."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    # Videos take half of the time, and train.py continues without them if rendering fails.
    gymnasium.Wrapper.render = None
    sys.argv = ["train.py", *words]
    runpy.run_module("mirl.train", run_name="__main__")


def train_cases(cases: Mapping[str, list[str]], jobs: int) -> None:
    """Train each case in a forked process; print its name, exit code and seconds in JSON."""
    for module in PRELOADED:
        importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    waiting = list(cases)
    running: dict[Any, Any] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            process = fork.Process(target=train_case, args=(cases[name],))
            process.start()
            running[process.sentinel] = (name, process, time.perf_counter())
        for sentinel in wait(list(running)):
            name, process, start = running.pop(sentinel)
            process.join()
            seconds = time.perf_counter() - start
            print(json.dumps([name, process.exitcode, seconds]), flush=True)  # noqa: T201


def known_words(tree: Path, words: list[str]) -> list[str]:
    """Return the words of a case without the options that a source tree does not have."""
    schema = ""
    for name in ("networks.py", "agents.py"):
        schema += (tree / "configs" / name).read_text(encoding="utf-8")
    known = []
    for word in words:
        option = word.partition("=")[0].rpartition(".")[2]
        if word not in NEW_OPTIONS or f"    {option}: " in schema:
            known.append(word)
    return known


def results_of(tree: Path, cases: Mapping[str, list[str]], jobs: int) -> Iterator[Any]:
    """Train the cases with a source tree; yield the name, the tensors and the seconds of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own_cases = {case: known_words(tree, words) for case, words in cases.items()}
        (folder / "path").mkdir()
        (folder / "path" / "mirl").symlink_to(tree)
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        variables = os.environ | one_thread | {"PYTHONPATH": str(folder / "path")}
        # -P: the modules next to this file must not hide others of the same name
        command = [sys.executable, "-P", __file__, "--train", json.dumps([own_cases, jobs])]
        with subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE) as worker:
            for line in worker.stdout or ():
                case, exit_code, seconds = json.loads(line)
                yield case, [] if exit_code else tensors_of(folder / "runs" / case), seconds
        if worker.returncode:
            sys.exit(f"training with {tree} ended with exit code {worker.returncode}")


@contextmanager
def tree_of(reference: str) -> Iterator[Path]:
    """Yield a source tree: a folder itself, or a temporary worktree of a commit."""
    if Path(reference).is_dir():
        yield Path(reference).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        tree = Path(folder) / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", tree, reference], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


def main() -> None:
    """Train with the reference, then with this tree, and compare case by case."""
    if sys.argv[1:2] == ["--train"]:
        train_cases(*json.loads(sys.argv[2]))
        return
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--against", default=REFERENCE, help="a commit or a folder")
    parser.add_argument("--only", nargs="+", default=CASES, choices=CASES, metavar="CASE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--cache", type=Path, help="folder that keeps the reference's results")
    arguments = parser.parse_args()

    cases = {name: [*CASES[name].split(), f"name={name}"] for name in arguments.only}
    expected: dict[str, list[Any]] = {}
    files: dict[str, Path] = {}
    if arguments.cache:
        arguments.cache.mkdir(parents=True, exist_ok=True)
        git = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{arguments.against}^{{commit}}"]
        commit = subprocess.check_output(git, text=True)
        for name, words in cases.items():
            key = hashlib.sha256(" ".join([commit, *words]).encode()).hexdigest()
            files[name] = arguments.cache / f"{key}.json"
            if files[name].exists():
                expected[name] = json.loads(files[name].read_text("utf-8"))
    missing = {name: words for name, words in cases.items() if name not in expected}
    if missing:
        with tree_of(arguments.against) as tree:
            for name, tensors, _ in results_of(tree, missing, arguments.jobs):
                expected[name] = tensors
                if tensors and name in files:
                    files[name].write_text(json.dumps(tensors), encoding="utf-8")

    differing = []
    for name, tensors, seconds in results_of(ROOT, cases, arguments.jobs):
        verdict = "ok"
        if not tensors or tensors != expected[name]:
            verdict = "DIFFERS"
            differing.append(name)
        print(f"{name:<20} {verdict:<8} {seconds:5.1f} s", flush=True)  # noqa: T201
    if differing:
        sys.exit(f"{len(differing)} of {len(cases)} cases differ: {' '.join(differing)}")


if __name__ == "__main__":
    main()
