#!/bin/sh
# safetensors 0.8.0, save_model() of a torch 2.13.0 module with a shared layer: which of the names of
# a shared tensor is kept, and the bytes of the file, depend on Python's hash seed. Two processes that
# save equal weights write files with different checksums, although every tensor in them is equal.
# Compare tensors, or set PYTHONHASHSEED, where runs are checked for equality.
#
# Expected output:
#   files: differ
#   tensors: equal
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.13.0 safetensors==0.8.0
cat > "$folder/save.py" <<'PYTHON'
import sys

import torch
from safetensors.torch import save_model

torch.manual_seed(0)
model = torch.nn.Module()
model.extractor = torch.nn.Linear(3, 3)
# two more names of the same layer, as in Stable-Baselines3's actor-critic policies
model.pi_features_extractor = model.extractor
model.vf_features_extractor = model.extractor
save_model(model, sys.argv[1])
PYTHON
for seed in 1 2 3 4 5 6 7 8; do
    PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/save.py" "$folder/$seed.safetensors"
done
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

files = sorted(Path().glob("*.safetensors"))
hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
tensors = [sorted(load_file(path).values(), key=torch.Tensor.dim) for path in files]
equal = all(
    torch.equal(mine, first) for each in tensors for mine, first in zip(each, tensors[0], strict=True)
)
print("files:", "differ" if len(hashes) > 1 else "equal")
print("tensors:", "equal" if equal else "differ")
sys.exit(0 if len(hashes) > 1 and equal else "the behavior has changed")
PYTHON
