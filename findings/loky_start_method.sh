#!/bin/sh
# joblib 1.6.0 with gymnasium 1.4.0: a process of joblib's loky names "loky" as the default way in
# which multiprocessing starts processes, although the parent has set none. Environments that are
# made there with vectorization_mode="async" take this default and fail with a TypeError about
# 'mmap.mmap', which tells nothing of loky. (With context="spawn" each environment's process ends with
# "cannot find context for 'loky'".) They work after the default is removed in the process.
#
# Expected output:
#   start method in the parent: None
#   start method in a process of loky: loky
#   asynchronous environments there: TypeError: cannot pickle 'mmap.mmap' object
#   without the default: 2 observations
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 joblib==1.6.0 gymnasium==1.4.0
cat > "$folder/in_loky.py" <<'PYTHON'
import multiprocessing
import sys

import gymnasium as gym
from joblib.externals.loky import ProcessPoolExecutor


def start_method():
    return multiprocessing.get_start_method(allow_none=True)


def reset_two(remove_default):
    if remove_default:
        multiprocessing.set_start_method(None, force=True)
    try:
        env = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="async")
    except TypeError as error:
        return f"TypeError: {error}"
    observations, _ = env.reset(seed=0)
    env.close()
    return f"{len(observations)} observations"


if __name__ == "__main__":
    print("start method in the parent:", start_method())
    with ProcessPoolExecutor(max_workers=1) as executor:
        of_child = executor.submit(start_method).result()
        default = executor.submit(reset_two, False).result()
        without = executor.submit(reset_two, True).result()
    print("start method in a process of loky:", of_child)
    print("asynchronous environments there:", default)
    print("without the default:", without)
    expected = (
        of_child == "loky"
        and default == "TypeError: cannot pickle 'mmap.mmap' object"
        and without == "2 observations"
    )
    sys.exit(0 if expected else "the behavior has changed")
PYTHON
cd "$folder"
"$folder/venv/bin/python" in_loky.py
