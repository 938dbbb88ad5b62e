"""Names of the metrics that MIRL logs in addition to SB3's; docs/metrics.md explains each."""

SPEED = "speed/steps_per_second"
DISTINCT = "speed/distinct_percent"
CHECKPOINT_SECONDS = "speed/checkpoint_seconds"
VIDEO_SECONDS = "speed/video_seconds"
GRADIENT_COSINE = "train/gradient_cosine"
GRADIENT_CONFLICT = "train/gradient_conflict"
TIMESTEPS = "time/total_timesteps"
EVAL_SUCCESS = "eval/success_rate"
EVAL_IQM = "eval/success_iqm"
EVAL_WORST = "eval/success_worst"
EVAL_SCORE = "eval/score"
EVAL_RETURN = "eval/return"
CONTEXT_USE = "eval/context_use"
SWAPPED_SUCCESS = "eval/swapped_success"
SWAPPED_RETURN = "eval/swapped_return"
HELD_OUT_SUCCESS = "eval/held_out/success_rate"


def task_metric(group: str, task: str, metric: str) -> str:
    """Return the name of a metric of one task, such as ``task/goto_door/success_rate``.

    Args:
        group: "task" for training episodes, "eval" for evaluation episodes.
        task: name of the task.
        metric: name of the metric.

    Returns:
        The name.
    """
    return f"{group}/{task}/{metric}"


def time_metric(section: str) -> str:
    """Return the name of a section's share of the wall time, such as ``speed/update_percent``.

    Args:
        section: section of an iteration.

    Returns:
        The name.
    """
    return f"speed/{section}_percent"
