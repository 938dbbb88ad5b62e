"""Run Stable-Baselines3's own tests with MIRL's PPO and A2C in place of SB3's.

    python benchmarks/sb3_suite.py                  # all files of FILES
    python benchmarks/sb3_suite.py --quick          # without those of SLOW
    python benchmarks/sb3_suite.py run gae          # tests/test_run.py and tests/test_gae.py only

The tests come from the source distributions of the installed versions of SB3 and, for ``lstm``, of
sb3-contrib, which pip downloads into ``.sb3_suite/``. This file is also the pytest plugin that
replaces SB3's classes by MIRL's: PPO and A2C, and the features extractor in RecurrentPPO.
Files run at the same time, one per core, with one thread each.
The exit code is 1 if a test fails that ``EXPECTED`` does not name; docs/sb3.md explains those.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".sb3_suite"
PACKAGES = FOLDER / "packages"
FILES = (
    "run",
    "save_load",
    "gae",
    "dict_env",
    "cnn",
    "custom_policy",
    "callbacks",
    "sde",
    "tensorboard",
    "spaces",
    "predict",
    "identity",
    "logger",
    "buffers",
    "lstm",
)
"""Names of the test files without ``test_`` and ``.py``."""
PACKAGE_OF = {"lstm": "sb3-contrib"}
"""Package of a file that is not one of ``stable-baselines3``."""
SLOW = ("lstm",)
"""Those that ``--quick`` leaves out; all others take under five minutes together on two cores."""
EXPECTED = {
    "test_logger.py::test_fps_logger": (
        "passes on an idle machine: it measures the speed, also that of SB3's DQN"
    ),
}
"""Tests that may fail, and why; docs/sb3.md has the table."""
REPORT = "SB3_SUITE_REPORT"
"""Environment variable with the path of the plugin's report."""


# ------------------------------------------------------------------------------------- the plugin


class Recorder:
    """Plugin that records which tests passed, failed, and set up an agent of MIRL."""

    def __init__(self) -> None:
        self.current = ""
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.with_mirl: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.current = item.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        report = {
            "passed": sorted(self.passed - self.failed),
            "failed": sorted(self.failed),
            "with_mirl": sorted(self.with_mirl),
        }
        Path(os.environ[REPORT]).write_text(json.dumps(report), encoding="utf-8")

    def count_setups(self, algorithm: Any) -> None:
        """Record the tests that build an agent of a class."""
        original = algorithm._setup_model

        def setup(agent: Any) -> None:
            self.with_mirl.add(self.current)
            original(agent)

        algorithm._setup_model = setup


def pytest_configure(config: pytest.Config) -> None:
    """Replace SB3's PPO and A2C and sb3-contrib's RecurrentPPO, before the tests import them."""
    import sb3_contrib
    import stable_baselines3

    from mirl.agents import A2C, PPO

    recorder = Recorder()
    recurrent = with_fusion_extractor(sb3_contrib.RecurrentPPO)
    stable_baselines3.PPO = PPO  # type: ignore[assignment, misc]
    stable_baselines3.A2C = A2C  # type: ignore[assignment, misc]
    sb3_contrib.RecurrentPPO = recurrent  # type: ignore[misc]
    for algorithm in (PPO, A2C, recurrent):
        recorder.count_setups(algorithm)
    config.pluginmanager.register(recorder)


def with_fusion_extractor(algorithm: Any) -> Any:
    """Return an algorithm with MIRL's features extractor as the default, also for a Box space."""
    from gymnasium import spaces

    from mirl.policies import FusionExtractor

    class ArrayExtractor(FusionExtractor):
        """``FusionExtractor`` with a constant goal, for a Dict or an array, which becomes a key.

        Args:
            observation_space: a Dict or Box space.
            features_dim: the size that SB3's own extractor would have; MIRL's has its own.
        """

        def __init__(self, observation_space: spaces.Space, features_dim: int = 0) -> None:
            keys = {"observation": observation_space}
            if isinstance(observation_space, spaces.Dict):
                keys = observation_space.spaces
            super().__init__(spaces.Dict({**keys, "goal": spaces.Box(0, 1, (1,))}))

        def forward(self, observations: Any) -> Any:
            if not isinstance(observations, dict):
                observations = {"observation": observations}
            first = next(iter(observations.values()))
            goal = first.new_ones((len(first), 1))
            return super().forward({**observations, "goal": goal})

    class FusionAlgorithm(algorithm):
        def __init__(
            self, policy: Any, env: Any, *, policy_kwargs: Any = None, **options: Any
        ) -> None:
            policy_kwargs = {"features_extractor_class": ArrayExtractor, **(policy_kwargs or {})}
            super().__init__(policy, env, policy_kwargs=policy_kwargs, **options)

    return FusionAlgorithm


# ------------------------------------------------------------------------------------- the script


def main() -> int:
    """Run the test files and print their results."""
    parser = argparse.ArgumentParser(description="Run SB3's tests with MIRL's PPO and A2C.")
    parser.add_argument("files", nargs="*", metavar="file", help=f"of {', '.join(FILES)}")
    parser.add_argument("-k", default="", metavar="expression", help="pytest's choice of tests")
    parser.add_argument("--quick", action="store_true", help=f"leave out {', '.join(SLOW)}")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds per file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.files) - set(FILES))
    if unknown:
        parser.error(f"unknown file '{unknown[0]}'; use {', '.join(FILES)}")
    files = arguments.files or [n for n in FILES if not (arguments.quick and n in SLOW)]
    sources = [download(PACKAGE_OF.get(name, "stable-baselines3")) for name in files]
    n_unexpected = 0
    totals = {"passed": 0, "failed": 0, "with_mirl": 0}
    show(f"{'file':<16}{'passed':>8}{'failed':>8}{'with MIRL':>11}{'seconds':>9}")
    with ThreadPoolExecutor(arguments.jobs) as threads:
        results = threads.map(
            lambda source, name: run_file(source, name, arguments.k, arguments.timeout),
            sources,
            files,
        )
        for name, (report, seconds) in zip(files, results, strict=True):
            if report is None:
                n_unexpected += 1
                show(f"{name:<16} did not end within {seconds:.0f} seconds, see {log_file(name)}")
                continue
            counts = [len(report[key]) for key in totals]
            show(f"{name:<16}{counts[0]:>8}{counts[1]:>8}{counts[2]:>11}{seconds:>9.0f}")
            for key, count in zip(totals, counts, strict=True):
                totals[key] += count
            for test in report["failed"]:
                reason = EXPECTED.get(test.removeprefix("tests/").partition("[")[0])
                n_unexpected += reason is None
                show(f"    {test}: {reason or 'NOT EXPECTED'}")
    show(f"{'total':<16}{totals['passed']:>8}{totals['failed']:>8}{totals['with_mirl']:>11}")
    return int(n_unexpected > 0)


def show(line: str) -> None:
    """Print a line without buffering, because a file takes minutes."""
    print(line, flush=True)  # noqa: T201


def download(package: str) -> Path:
    """Return the folder of the source distribution of a package, which is downloaded once.

    Args:
        package: ``stable-baselines3`` or ``sb3-contrib``.
    """
    name = f"{package.replace('-', '_')}-{version(package)}"
    source = FOLDER / name
    if source.exists():
        return source
    FOLDER.mkdir(exist_ok=True)
    requirement = f"{package}=={version(package)}"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(FOLDER), requirement]
    subprocess.run(pip, check=True)
    if not PACKAGES.exists():
        # SB3's tests of the logger need pandas, but MIRL does not.
        target = ["--no-deps", "--target", str(PACKAGES), "pandas"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *target], check=True)
    with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
        archive.extractall(FOLDER, filter="data")
    return source


def log_file(name: str) -> Path:
    """Return the path of pytest's output for a test file.

    Args:
        name: one of ``FILES``.
    """
    return FOLDER / f"{name}.log"


def run_file(
    source: Path, name: str, expression: str, timeout: float
) -> tuple[dict[str, list[str]] | None, float]:
    """Return the results of a test file, None if it did not end in time, and its seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {
            **os.environ,
            REPORT: str(report),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path, str(PACKAGES)]),
            "TMPDIR": folder,  # SB3's loggers write there
        }
        options = ["-v", "--no-header", "--tb=short", "-p", "sb3_suite", "-p", "no:cacheprovider"]
        test = f"tests/test_{name}.py"
        command = [sys.executable, "-m", "pytest", *options, "-p", "no:xdist", "-k", expression]
        # written while pytest runs, so that the log of a file that is too slow names the test
        log = log_file(name)
        try:
            with log.open("w", encoding="utf-8") as output:
                result = subprocess.run(
                    [*command, test],
                    cwd=source,
                    env=environment,
                    timeout=timeout,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            return None, timeout
        # 1: some tests failed; 5: -k chose none
        if result.returncode not in (0, 1, 5):
            raise SystemExit(f"{test} could not be run:\n{log.read_text(encoding='utf-8')}")
        found: dict[str, list[str]] = json.loads(report.read_text(encoding="utf-8"))
        return found, time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
