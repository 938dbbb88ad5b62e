"""Make the picture of TensorBoard in the documentation: three trained agents on its first page.

    python benchmarks/tensorboard_picture.py [--runs FOLDER]

Existing runs in FOLDER are used as they are. Needs Chromium and Playwright.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from machine import ROOT
from playwright.sync_api import sync_playwright

from mirl.agents.training import train
from mirl.configs.compose import compose_train

AGENTS = ("fusion=concat", "fusion=film", "fusion=auto")
"""Options of the three agents."""
COMMON = ("task=goto_door", "total_timesteps=100_000", "evaluation.every=8_192", "videos=false")
PICTURE = ROOT / "docs" / "pictures" / "tensorboard.png"
SIZE = (1250, 780)
"""Width and height of the window, in pixels."""
SECONDS_TO_DRAW = 12


def take_picture(runs: Path, path: Path) -> None:
    """Show runs in TensorBoard and save a screenshot of the browser.

    Args:
        runs: folder of the runs.
        path: file of the picture.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # the system chooses a free port
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs.name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast=false"]
    # the page shows the folder by the name given here
    server = subprocess.Popen(
        command, cwd=runs.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(60):
            try:
                urllib.request.urlopen(f"{address}/data/runs").close()
                break
            except OSError:
                time.sleep(1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
            page.goto(f"{address}/#custom_scalars")
            page.get_by_text("own and swapped context").wait_for()
            time.sleep(SECONDS_TO_DRAW)  # the curves appear one after the other
            page.screenshot(path=path)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Train the missing agents, and take the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / "tensorboard_picture")
    arguments = parser.parse_args()
    for words in AGENTS:
        name = words.removeprefix("fusion=")
        train(compose_train([words, *COMMON, f"name={name}", f"runs_dir={arguments.runs}"]))
    take_picture(arguments.runs, PICTURE)


if __name__ == "__main__":
    main()
