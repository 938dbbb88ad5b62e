#!/bin/sh
# rl_zoo3 2.9.2 with huggingface_hub 2.4.0: after `pip install rl_zoo3` the zoo trains, but
# `python -m rl_zoo3.enjoy`, which replays a trained agent, ends with "No module named 'requests'", even
# for --help. The zoo imports the exceptions of requests without requiring it; it came with former
# versions of huggingface_hub, which now has another HTTP client. `pip install requests` is the remedy.
#
# Expected output:
#   train: works
#   enjoy: ModuleNotFoundError: No module named 'requests'
#   enjoy with requests: works
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 stable-baselines3==2.9.2 \
    gymnasium==1.4.0 rl_zoo3==2.9.2 huggingface_hub==2.4.0
cd "$folder"
try() {
    if venv/bin/python -m "rl_zoo3.$1" --help > output.txt 2>&1; then
        echo works
    else
        tail -n 1 output.txt
    fi
}
{
    echo "train: $(try train)"
    echo "enjoy: $(try enjoy)"
    venv/bin/pip install --quiet requests==2.32.5
    echo "enjoy with requests: $(try enjoy)"
} | tee found.txt
cat > expected.txt <<'TEXT'
train: works
enjoy: ModuleNotFoundError: No module named 'requests'
enjoy with requests: works
TEXT
cmp found.txt expected.txt
