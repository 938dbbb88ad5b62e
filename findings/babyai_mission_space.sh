#!/bin/sh
# MiniGrid 3.2.0: the mission space of a MiniGrid level lists its missions (MissionSpace with a
# function and its placeholders, or without placeholders if the mission never changes). That of every
# BabyAI level has no placeholders either and samples the one text "go", which no episode has, and
# contains() accepts any string. Who reads a vocabulary from the space, or asks it whether the mission
# varies, gets the opposite of what BabyAI's levels do.
#
# Expected output:
#   MiniGrid-Empty-5x5-v0: placeholders None, sample "get to the green goal square", 1 mission in 20 episodes
#   BabyAI-GoToLocal-v0: placeholders None, sample "go", 16 missions in 20 episodes
#   "go" is a mission of BabyAI-GoToLocal-v0: False; contains("anything"): True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet minigrid==3.2.0 gymnasium==1.4.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import gymnasium as gym
import minigrid  # registers its environments

seen = {}
for name in ("MiniGrid-Empty-5x5-v0", "BabyAI-GoToLocal-v0"):
    env = gym.make(name)
    space = env.observation_space["mission"]
    missions = {env.reset(seed=seed)[0]["mission"] for seed in range(20)}
    seen[name] = (space.ordered_placeholders, space.sample(), missions, space.contains("anything"))
    count = f"{len(missions)} mission{'s' if len(missions) > 1 else ''}"
    print(f'{name}: placeholders {seen[name][0]}, sample "{seen[name][1]}", {count} in 20 episodes')
placeholders, sample, missions, accepts = seen["BabyAI-GoToLocal-v0"]
print(
    f'"{sample}" is a mission of BabyAI-GoToLocal-v0: {sample in missions}; '
    f'contains("anything"): {accepts}'
)
if placeholders or sample in missions or len(missions) < 2 or not accepts:
    sys.exit("the behavior has changed")
PYTHON
