#!/bin/sh
# Stable-Baselines3 2.9.2 takes the smallest axis of an image for its channels, also where the
# image has more channels than rows: a 10 x 10 image with 16 channels last, uint8 from 0 to 255,
# counts as "channels first". It is then not transposed, and the CNN convolves over 10 x 16 pixels
# with 10 channels. Stacked frames of small games (MinAtar has 10 x 10 cells) have this shape.
# Nothing is raised or warned about. An image of 20 x 20 x 16 is transposed as expected.
#
# Expected output:
#   (10, 10, 16) counts as channels first: True; the network sees (10, 10, 16)
#   (20, 20, 16) counts as channels first: False; the network sees (16, 20, 20)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 stable-baselines3==2.9.2 gymnasium==1.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space_channels_first


class Stacked(gym.Env):
    """Frames of size x size pixels, 16 of them stacked as channels, last axis."""

    action_space = spaces.Discrete(2)

    def __init__(self, size):
        self.observation_space = spaces.Box(0, 255, (size, size, 16), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}


found = []
for size in (10, 20):
    space = Stacked(size).observation_space
    first = is_image_space_channels_first(space)
    seen = PPO("MlpPolicy", Stacked(size), n_steps=8, batch_size=8).observation_space.shape
    print(f"{space.shape} counts as channels first: {first}; the network sees {seen}")
    found.append((first, seen))
if found != [(True, (10, 10, 16)), (False, (16, 20, 20))]:
    sys.exit("the behavior has changed")
PYTHON
