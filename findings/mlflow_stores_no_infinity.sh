#!/bin/sh
# MLflow 3.17.2 with its SQLite store: an infinite metric comes back as the largest finite double,
# ±1.7976931348623157e308, without a warning, while NaN comes back as NaN. A test for math.isinf on
# stored metrics, such as that for a diverged training, never fires.
#
# Expected output:
#   logged inf, stored 1.7976931348623157e+308
#   logged -inf, stored -1.7976931348623157e+308
#   logged nan, stored nan
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlflow==3.17.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import math
import sys

from mlflow.tracking import MlflowClient

client = MlflowClient("sqlite:///metrics.db")
run = client.create_run(client.create_experiment("e")).info.run_id
stored = []
for step, value in enumerate((math.inf, -math.inf, math.nan)):
    name = f"m{step}"
    client.log_metric(run, name, value, step=step)
    [metric] = client.get_metric_history(run, name)
    stored.append(metric.value)
    print(f"logged {value}, stored {metric.value}")
largest = sys.float_info.max
if stored[:2] != [largest, -largest] or not math.isnan(stored[2]):
    sys.exit("the behavior has changed")
PYTHON
