#!/usr/bin/env bash
# Train, continue and play MIRL's policy and features extractor with RL Baselines3 Zoo.
#
#     benchmarks/zoo/check.sh PYTHON
#
# PYTHON has MIRL and rl_zoo3 (pip install rl_zoo3==2.9.2 requests). It is no part of CI.
set -euo pipefail
python="$(command -v "${1:?name a Python with mirl, rl_zoo3 and requests}")"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
env_id=MiniGrid-GoToDoor-5x5-v0
logs="$(mktemp -d)"
trap 'rm -r "$logs"' EXIT
cp "$here/extractor.py" "$logs/mirl_extractor.py"
cd "$logs" # the zoo imports the hyperparameters as a module of the current folder
export PYTHONPATH="$logs${PYTHONPATH:+:$PYTHONPATH}"

for conf in "$here/policy.yml" mirl_extractor; do
    name="$(basename "${conf%.*}")"
    "$python" -m rl_zoo3.train --algo ppo --env $env_id --conf-file "$conf" -f "$logs/$name" \
        --gym-packages minigrid --eval-freq -1 --verbose 0
    "$python" -m rl_zoo3.train --algo ppo --env $env_id --conf-file "$conf" -f "$logs/$name" \
        --gym-packages minigrid --eval-freq -1 --verbose 0 -n 256 \
        -i "$logs/$name/ppo/${env_id}_1/$env_id.zip"
    "$python" -m rl_zoo3.enjoy --algo ppo --env $env_id -f "$logs/$name" --exp-id 1 -n 100 \
        --gym-packages minigrid --no-render
    echo "$name: trained, continued and played"
done
