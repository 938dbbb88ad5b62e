#!/bin/sh
# torch 2.13.0: whoever creates the first optimizer after init_process_group leaves ten references to
# the group. The optimizer imports torch.distributed.nn.functional, whose functions have the group as
# a default argument (group=dist.group.WORLD), read when the module is imported. With them, gloo's
# threads go on after destroy_process_group, and one that frees a tensor while Python ends may abort
# the process. Imported before the group exists, the module keeps nothing.
#
# Expected output:
#   optimizer after the group: 10 references more, gloo's threads after its end: True
#   module imported before: 0 references more, gloo's threads after its end: False
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/group.py" <<'PYTHON'
import os
import sys
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

if sys.argv[1] == "before":
    import_module("torch.distributed.nn.functional")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.zeros(3))
first = sys.getrefcount(dist.group.WORLD)
torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
more = sys.getrefcount(dist.group.WORLD) - first
dist.destroy_process_group()
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print(f"{more} references more, gloo's threads after its end: {any('gloo' in n for n in names)}")
sys.stdout.flush()
os._exit(0)  # the end of Python is not part of this
PYTHON
after=$("$folder/venv/bin/python" "$folder/group.py" after)
before=$("$folder/venv/bin/python" "$folder/group.py" before)
echo "optimizer after the group: $after"
echo "module imported before: $before"
[ "$after" = "10 references more, gloo's threads after its end: True" ]
[ "$before" = "0 references more, gloo's threads after its end: False" ]
