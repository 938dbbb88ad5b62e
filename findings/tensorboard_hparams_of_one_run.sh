#!/bin/sh
# TensorBoard 2.21.0, fed by torch 2.13.0's add_hparams (which Stable-Baselines3's HParam uses): the
# page HPARAMS has the columns of one run only. add_hparams writes an "experiment" into every run,
# and TensorBoard takes the first that it finds for all of them, so that a hyperparameter which only
# another run has (another algorithm's, say) is not shown. The columns are sorted by name, whatever
# the order of the dictionary.
#
# Expected output:
#   hyperparameters of run a: task, batch_size
#   hyperparameters of run b: task, buffer_size
#   columns of the page: those of one run alone
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 tensorboard==2.21.0 numpy setuptools
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
from types import SimpleNamespace

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams.backend_context import Context
from torch.utils.tensorboard import SummaryWriter

RUNS = {"a": {"task": "one", "batch_size": 64}, "b": {"task": "two", "buffer_size": 1000}}
for run, options in RUNS.items():
    with SummaryWriter(f"runs/{run}") as writer:
        writer.add_hparams(options, {"success": 0.5}, run_name=".")
    print(f"hyperparameters of run {run}: {', '.join(options)}")
multiplexer = EventMultiplexer().AddRunsFromDirectory("runs")
multiplexer.Reload()
provider = MultiplexerDataProvider(multiplexer, "runs")
page = Context(SimpleNamespace(data_provider=provider))
request = RequestContext()
content = page.hparams_metadata(request, "")
hparams = page.hparams_from_data_provider(request, "", limit=None)
experiment = page.experiment_from_metadata(request, "", False, content, hparams)
columns = [info.name for info in experiment.hparam_infos]
if columns not in [sorted(options) for options in RUNS.values()]:
    sys.exit(f"the behavior has changed: {columns}")
print("columns of the page: those of one run alone")
PYTHON
