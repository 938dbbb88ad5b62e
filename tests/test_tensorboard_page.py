"""TensorBoard's page shows the curves and the GIF of a run, in a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mirl.agents import train
from mirl.agents.watch.caption import WIDTH
from mirl.configs.compose import compose_train

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or google-chrome on this machine"
)
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT = 30_000
"""Milliseconds within which the page must show something."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a TensorBoard server over a tiny run."""
    runs = tmp_path_factory.mktemp("runs")
    argv = [
        "agent.n_envs=8",
        "agent.n_steps=16",
        "agent.batch_size=64",
        "total_timesteps=512",
        "progress=false",
        "encoder.channels=8",
        "encoder.features_dim=16",
        "context.dim=8",
        "device=cpu",
        "evaluation.episodes=8",
        "evaluation.every=128",
        f"runs_dir={runs}",
    ]
    train(compose_train(argv))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # the system chooses a free port
        port = free.getsockname()[1]
    command = [
        "-m",
        "tensorboard.main",
        "--logdir",
        str(runs),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(
        [sys.executable, *command, "--load_fast=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/data/runs", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server has found the run."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "TensorBoard ended"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if b"goto_door" in answer.read():
                    return
        except (urllib.error.URLError, TimeoutError):
            pass
        time.sleep(0.1)
    raise AssertionError("TensorBoard did not start")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, env={**os.environ}
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Return a page of the browser; a screenshot of its final state is saved in ``tmp_path``."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(TIMEOUT)
    yield page
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    page.close()


@pytest.mark.parametrize(
    "tag", ["train/loss", "task/goto_door/success_rate", "eval/goto_door/success_rate"]
)
def test_curve_shows_its_last_point(page: Page, address: str, tag: str) -> None:
    page.goto(f"{address}/?tagFilter={quote(f'^{tag}$')}#timeseries")
    card = page.locator("scalar-card", has=page.get_by_title(tag, exact=True)).first
    expect(card).to_be_visible(timeout=TIMEOUT)
    expect(card.locator("line-chart")).to_be_visible(timeout=TIMEOUT)
    table = card.locator("tb-data-table, data-table").first
    expect(table).to_contain_text("512", timeout=TIMEOUT)


def test_gif_is_shown(page: Page, address: str) -> None:
    page.goto(f"{address}/?tagFilter={quote('^video/')}#timeseries")
    card = page.locator("image-card", has=page.get_by_title("video/goto_door", exact=True)).first
    expect(card).to_be_visible(timeout=TIMEOUT)
    image = card.locator("img")
    expect(image).to_be_visible(timeout=TIMEOUT)
    page.wait_for_function(
        "image => image.complete && image.naturalWidth > 0", arg=image.element_handle()
    )
    assert image.evaluate("image => image.naturalWidth") == WIDTH
