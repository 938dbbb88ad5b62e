"""Test and measure MIRL on one GPU, in at most eight minutes.

    python benchmarks/gpu.py [--seconds 2] [--envs 256 1024 4096 8192] [--device cuda]

First come the tests marked ``gpu``, then the speed of PPO in fp32 and bf16 with more and more
environments: the default agent on BabyAI-GoToLocal, the network of MiniGrid's tutorial and a small
one, compared with SB3 on the same GPU and environments. Last is one training with the defaults to a
success rate of 95 %. Rollouts have 32 timesteps per environment, and updates have eight minibatches
per pass. ``benchmarks/results/gpu.json`` is written after each measurement, so that stopping does
not lose any. ``--device cpu`` is for trying the script itself.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import agent_of_options, make_envpool_envs, measure, tutorial_ppo
from machine import ROOT, write_results
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from time_to_success import CURVES, train_to_success

from mirl.agents import PPO

N_STEPS = 32
"""Timesteps of each environment per rollout."""
MINIBATCHES = 8
"""Minibatches per pass over a rollout."""
BUDGET = 8 * 60
"""Seconds after which no new measurement is started."""
COLUMNS = (
    "agent",
    "environments",
    "precision",
    "steps/s",
    "environment / forward / update / rest, %",
    "GPU busy, %",
    "peak GPU memory, MiB",
)


def tutorial(
    algorithm: type[SB3PPO], n_envs: int, precision: str, device: str
) -> OnPolicyAlgorithm:
    """Build PPO with the network of the tutorial.

    Args:
        algorithm: SB3's PPO or MIRL's.
        n_envs: number of environments.
        precision: "fp32" or "bf16".
        device: the device.
    """
    options: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": n_envs * N_STEPS // MINIBATCHES}
    if algorithm is PPO:
        options["precision"] = precision
    return tutorial_ppo(algorithm, make_envpool_envs(n_envs=n_envs), device=device, **options)


def small(n_envs: int, precision: str, device: str) -> OnPolicyAlgorithm:
    """Build PPO on flattened images with two tanh layers of 64 each for actor and critic.

    Args:
        n_envs: number of environments.
        precision: "fp32" or "bf16".
        device: the device.
    """
    return PPO(
        "MlpPolicy",
        make_envpool_envs(flat=True, n_envs=n_envs),
        n_steps=N_STEPS,
        batch_size=n_envs * N_STEPS // MINIBATCHES,
        n_epochs=1,
        precision=precision,  # type: ignore[arg-type]
        device=device,
        seed=0,
    )


def default(n_envs: int, precision: str, device: str) -> OnPolicyAlgorithm:
    """Build the default agent on BabyAI-GoToLocal.

    Args:
        n_envs: number of environments.
        precision: "fp32" or "bf16".
        device: the device.
    """
    return agent_of_options(
        "task=goto_local",
        f"agent.n_envs={n_envs}",
        f"agent.n_steps={N_STEPS}",
        f"agent.batch_size={n_envs * N_STEPS // MINIBATCHES}",
        f"precision={precision}",
        f"device={device}",
    )


AGENTS = {
    "default agent, GoToLocal": default,
    "tutorial CNN, DoorKey": partial(tutorial, PPO),
    "small network, DoorKey": small,
    "SB3, tutorial CNN, DoorKey": partial(tutorial, SB3PPO),
}
"""Functions that build the agents, by the agents' names in the table."""


@contextmanager
def gpu_utilization() -> Iterator[list[float]]:
    """Sample the percentage of time in which the GPU computes, while the context is open."""
    samples: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen([*command, "-lms", "200"], stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:  # without a GPU
        yield samples
        return
    try:
        yield samples
    finally:
        process.terminate()
        output, _ = process.communicate()
        for line in output.splitlines():
            if line.strip().isdigit():
                samples.append(float(line))


def speed_of(name: str, n_envs: int, precision: str, device: str, seconds: float) -> dict[str, Any]:
    """Measure the speed of one agent.

    Args:
        name: its name in the table.
        n_envs: number of environments.
        precision: "fp32" or "bf16".
        device: the device.
        seconds: how long to train after the warm-up.
    """
    agent = AGENTS[name](n_envs, precision, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with gpu_utilization() as samples:
        result = measure(agent, seconds)
    assert agent.env is not None
    agent.env.close()
    # the first samples belong to the warm-up
    late = samples[len(samples) // 2 :]
    result["gpu_busy_percent"] = statistics.mean(late) if late else None
    return {"agent": name, "n_envs": n_envs, "precision": precision, **result}


def table_row(result: dict[str, Any]) -> list[str]:
    """Return the row of one measurement.

    Args:
        result: the measurement.
    """
    shares = result["percent"]
    names = ("environment", "forward", "update", "rest")
    split = " / ".join(f"{shares[name]:.0f}" for name in names) if shares else "–"
    busy = result["gpu_busy_percent"]
    memory = result["peak_cuda_bytes"]
    return [
        result["agent"],
        f"{result['n_envs']:,}",
        result["precision"],
        f"{result['steps_per_second']:,.0f}",
        split,
        "–" if busy is None else f"{busy:.0f}",
        "–" if memory is None else f"{memory / 2**20:,.0f}",
    ]


def run_tests() -> str:
    """Run the tests marked ``gpu``; return the last line of pytest."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-n",
        "0",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return finished.stdout.strip().splitlines()[-1]


def main() -> None:
    """Run the tests, measure the speeds and train one agent."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--envs", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--skip-tests", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; --device cpu tries the script itself")
    start = time.perf_counter()
    details: dict[str, Any] = {"device": arguments.device, "speeds": []}
    if arguments.device == "cuda":
        details["device"] = torch.cuda.get_device_name()
    if not arguments.skip_tests:
        details["tests"] = run_tests()
        print(details["tests"], flush=True)  # noqa: T201
    # the training comes first, because it is what a user waits for
    with tempfile.TemporaryDirectory() as folder:
        words = ["task=goto_local", *CURVES, f"device={arguments.device}", "progress=false"]
        details["time_to_success"] = train_to_success(words, dict(os.environ), Path(folder))
    print("to 95 %:", details["time_to_success"], flush=True)  # noqa: T201
    rows: list[list[str]] = []
    for n_envs in arguments.envs:
        for name in AGENTS:
            for precision in ("fp32",) if name.startswith("SB3") else ("fp32", "bf16"):
                if time.perf_counter() - start > BUDGET:
                    print("out of time", flush=True)  # noqa: T201
                    return
                result = speed_of(name, n_envs, precision, arguments.device, arguments.seconds)
                details["speeds"].append(result)
                rows.append(table_row(result))
                print(*rows[-1], sep="  ", flush=True)  # noqa: T201
                write_results("gpu", COLUMNS, rows, details)


if __name__ == "__main__":
    main()
