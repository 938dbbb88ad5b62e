"""Tasks of a Ray cluster, which the test starts on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_calls import call

from mirl.agents.jobs import ray_cluster
from mirl.agents.jobs.engine import JobDiedError
from mirl.agents.jobs.ray_cluster import check_ray, ray_engine
from mirl.configs.errors import ConfigError, RunError

PORT = 6397


def test_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'mirl\[sweep\]'"):
        check_ray()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a cluster of two cores."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{PORT}")
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", f"--port={PORT}", "--num-cpus=6", "--block"]
    # the paths of its sockets must be shorter than pytest's own folder allows
    folder = tempfile.mkdtemp(prefix="ray")
    options = ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    head = subprocess.Popen([*command, *options], start_new_session=True)
    try:
        while not list(Path(folder).glob("session_latest/sockets/raylet")):
            assert head.poll() is None
            time.sleep(0.1)
        yield
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
def test_failures_do_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception and a killed process are results like others, and threads are limited."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    check_ray()
    engine = ray_engine(2, 4)
    assert (engine.jobs, engine.cpus) == (2, 3)
    found = {}
    for item, outcome in engine.run(call, range(4)):
        assert signal.getsignal(signal.SIGTERM) is handler
        found[item] = outcome
    assert isinstance(found[1], RunError)
    assert str(found[1]) == "ValueError: one"
    assert isinstance(found[2], JobDiedError)
    first, last = found[0], found[3]
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert first[0] != last[0]
    assert (first[1], last[1]) == ("3", "3")
