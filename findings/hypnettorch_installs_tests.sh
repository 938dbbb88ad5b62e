#!/bin/sh
# hypnettorch 0.0.4 (hypernetworks for PyTorch) installs a second top-level package, `tests`, its own
# test suite. A project whose folder tests/ is a namespace package (it has no __init__.py) loses it:
# Python takes a regular package anywhere on the path over a namespace package in the working
# folder. `import tests.helper` then fails, although tests/helper.py lies there.
#
# Expected output:
#   before: helper found
#   top-level packages: hypnettorch, tests
#   after: No module named 'tests.helper'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
mkdir -p "$folder/project/tests"
echo 'print("before: helper found")' > "$folder/project/tests/helper.py"
cd "$folder/project"
"$folder/venv/bin/python" -c 'import tests.helper'
"$folder/venv/bin/pip" install --quiet --no-deps hypnettorch==0.0.4
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

names = importlib.metadata.distribution("hypnettorch").read_text("top_level.txt").split()
print("top-level packages:", ", ".join(names))
sys.path.insert(0, "")  # the working folder comes first, as for `python -c`
try:
    import tests.helper
except ModuleNotFoundError as error:
    print(f"after: {error}")
else:
    sys.exit("the behavior has changed")
if names != ["hypnettorch", "tests"]:
    sys.exit("the behavior has changed")
PYTHON
