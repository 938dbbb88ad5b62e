"""TensorBoard's pages begin with what runs are compared by."""

from pathlib import Path
from types import SimpleNamespace

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.backend_context import Context

from mirl.agents.runs.dashboard import RunDescription, custom_scalars
from mirl.agents.runs.logger import TensorBoard

DESCRIPTION = RunDescription(
    main={"task": "mt3", "fusion": "film", "seed": 1},
    others={"agent.batch_size": 64, "fusion.kind": "film", "device": "cpu"},
    tasks=("go to", "a+b"),
)


def written(folder: Path) -> EventMultiplexer:
    """Return the events of a run with this description."""
    tensorboard = TensorBoard(folder / "run", None)
    tensorboard.write_dashboard(DESCRIPTION)
    tensorboard.writer.close()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return multiplexer


def test_main_hyperparameters_come_first(tmp_path: Path) -> None:
    """The columns as TensorBoard itself orders them."""
    provider = MultiplexerDataProvider(written(tmp_path), str(tmp_path))
    page = Context(SimpleNamespace(data_provider=provider))
    request = RequestContext()
    content = page.hparams_metadata(request, "")
    hparams = page.hparams_from_data_provider(request, "", limit=None)
    experiment = page.experiment_from_metadata(request, "", True, content, hparams)
    columns = [info.name for info in experiment.hparam_infos]
    assert columns == ["fusion", "seed", "task", "agent.batch_size", "device", "fusion.kind"]
    assert experiment.metric_infos[0].name.tag == "eval/success_rate"


def test_success_is_the_first_chart(tmp_path: Path) -> None:
    accumulator = written(tmp_path).GetAccumulator("run")
    [event] = accumulator.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "success",
        "return",
        "length of episodes",
    ]
    first = layout.category[0].chart
    assert [chart.title for chart in first] == [
        "all tasks",
        "own and swapped context",
        "go to",
        "a+b",
    ]
    assert first[0].multiline.tag[0] == "^eval/success_rate$"


def test_names_of_tasks_are_no_patterns() -> None:
    charts = custom_scalars(DESCRIPTION.tasks)["success"]
    assert charts["a+b"][1] == [r"^eval/a\+b/success_rate$", r"^task/a\+b/success_rate$"]
