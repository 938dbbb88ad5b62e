"""Engine that executes calls as tasks on a running Ray cluster."""

import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mirl.agents.jobs.engine import (
    Item,
    JobDiedError,
    Outcome,
    Result,
    call_safely,
    divide,
    keep_busy,
    thread_variables,
)
from mirl.configs.command_line import KERNEL_CACHES
from mirl.configs.errors import ConfigError

INHERITED = ("PYTHONPATH", *KERNEL_CACHES)
"""Environment variables that tasks inherit from the command."""
POLL_SECONDS = 1.0
"""Seconds to wait for a task before checking for Ctrl-C."""


class RayEngine:
    """Start a Ray task per call, each in its own process.

    Args:
        jobs: number of tasks at a time.
        cpus: number of CPUs for each of them.
        gpus: number of GPUs for each of them, which may be a fraction.
    """

    def __init__(self, jobs: int, cpus: int, gpus: float = 0.0) -> None:
        self.jobs = jobs
        self.cpus = cpus
        self.gpus = gpus

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        """Call a function with each item, in tasks; see ``Engine``.

        Args:
            function: a function that can be pickled.
            items: arguments that can be pickled.

        Yields:
            Each item with the result or the exception of its call.
        """
        import ray

        # the processes get the cluster's variables, and these before they import torch
        variables = thread_variables(self.cpus)
        for name in INHERITED:
            if name in os.environ:
                variables[name] = os.environ[name]
        with _connected({"env_vars": variables}):
            # no retries: a repeated command resumes a run whose process has died
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, max_calls=1)(
                _call_in_folder
            )
            started = keep_busy(
                items,
                self.jobs,
                start=lambda item: task.remote(Path.cwd(), function, item),
                wait=lambda references: ray.wait(references, timeout=POLL_SECONDS)[0],
            )
            for item, reference in started:
                yield item, cast(Result | BaseException, _outcome(reference))


def _call_in_folder(folder: Path, function: Callable[[Item], object], item: Item) -> Outcome:
    """Call a function in the command's folder, because a worker may have another one."""
    os.chdir(folder)
    return call_safely(function, item)


def _outcome(reference: Any) -> object:
    import ray

    try:
        return cast(Outcome, ray.get(reference)).unwrap()
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return JobDiedError(f"its process died: {lines[0]}")


@contextmanager
def _connected(runtime_env: dict[str, object] | None = None) -> Iterator[None]:
    """Connect to the cluster, and restore the signal handlers that Ray replaces."""
    import ray

    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env=runtime_env,
        )
    except ConnectionError:
        raise ConfigError(
            "engine=ray: no Ray cluster was found; start one with `ray start --head`, or set "
            "RAY_ADDRESS"
        ) from None
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def check_ray() -> None:
    """Raise unless there is a cluster.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine=ray needs Ray: pip install 'mirl[sweep]'")
    with _connected():
        pass


def ray_engine(jobs: int | None, n_runs: int) -> RayEngine:
    """Return an engine that divides the cores and the GPUs of the cluster among the runs.

    Args:
        jobs: number of runs at a time; None for as many as there are cores.
        n_runs: total number of runs.

    Returns:
        The engine.

    Raises:
        ConfigError: there is no cluster.
    """
    import ray

    with _connected():
        total = ray.cluster_resources()
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    at_once, cpus = divide(max(1, int(total.get("CPU", 1))), jobs, n_runs)
    # a task runs on a single machine
    cpus = max(1, min(cpus, int(max(nodes, default=1))))
    gpus = min(1.0, total.get("GPU", 0.0) / at_once)
    return RayEngine(at_once, cpus, gpus)
