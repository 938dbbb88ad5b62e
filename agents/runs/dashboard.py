"""Layout of TensorBoard's pages: the main hyperparameters, and the curves that share a chart."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.metric_names import task_metric

SHOWN = (metrics.EVAL_SUCCESS, metrics.HELD_OUT_SUCCESS, metrics.EVAL_RETURN)
"""Metrics by which the page HPARAMS compares runs; their values are logged elsewhere."""
Charts = dict[str, list[str | list[str]]]
"""Charts by title."""
Layout = dict[str, Charts]
"""Charts by category, as ``SummaryWriter.add_custom_scalars`` takes them."""


class RunDescription(NamedTuple):
    """Description of a run for TensorBoard's pages, which compare it with others."""

    main: Mapping[str, Any]
    """The main hyperparameters for comparing runs, by name."""
    others: Mapping[str, Any]
    """All other hyperparameters."""
    tasks: Sequence[str]
    """Names of the tasks."""


def hyperparameter_summaries(run: RunDescription) -> list[Summary]:
    """Return the summaries behind TensorBoard's page HPARAMS.

    TensorBoard sorts the columns by name, with those first that are marked as differing.

    Args:
        run: the run; success and return of its evaluations are shown next to them.

    Returns:
        The summaries, for an event file.
    """
    options = {**run.main, **run.others}
    # torch also returns the end of the session, which would mark the run as successful
    experiment, start, _ = hparams(options, dict.fromkeys(SHOWN, 0.0))
    [value] = experiment.value
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in run.main
    value.metadata.plugin_data.content = content.SerializeToString()
    return [experiment, start]


def custom_scalars(tasks: Iterable[str]) -> Layout:
    """Return the charts of TensorBoard's page CUSTOM SCALARS: success first, then by task.

    Args:
        tasks: names of the tasks.

    Returns:
        The charts; a curve that a run does not log is left out by TensorBoard.
    """
    success: Charts = {
        "all tasks": _chart(metrics.EVAL_SUCCESS, metrics.HELD_OUT_SUCCESS, metrics.EVAL_WORST),
        "own and swapped context": _chart(metrics.EVAL_SUCCESS, metrics.SWAPPED_SUCCESS),
    }
    returns: Charts = {"all tasks": _chart(metrics.EVAL_RETURN, metrics.SWAPPED_RETURN)}
    lengths: Charts = {}
    for task in tasks:
        for charts, metric in ((success, "success_rate"), (returns, "return"), (lengths, "length")):
            names = [task_metric(group, task, metric) for group in ("eval", "task")]
            charts[task] = _chart(*names)
    return {"success": success, "return": returns, "length of episodes": lengths}


def _chart(*names: str) -> list[str | list[str]]:
    """Return a chart of several metrics, which TensorBoard finds by regular expressions."""
    return ["Multiline", [f"^{re.escape(name)}$" for name in names]]
