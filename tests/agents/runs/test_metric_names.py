"""Names of metrics are distinct and grouped as TensorBoard shows them."""

from mirl.agents.runs import metric_names
from mirl.agents.runs.metric_names import task_metric, time_metric


def test_names_are_distinct() -> None:
    names = [value for name, value in vars(metric_names).items() if name.isupper()]
    assert len(set(names)) == len(names)
    assert all(name.count("/") >= 1 for name in names)


def test_names_of_tasks_and_sections() -> None:
    assert task_metric("eval", "goto_door", "success_rate") == "eval/goto_door/success_rate"
    assert time_metric("update") == "speed/update_percent"
