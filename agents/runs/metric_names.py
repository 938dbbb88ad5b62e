"""Names of what MIRL logs beside SB3's own scalars (docs/metrics.md explains each), and the two files they go to."""

SPEED = "speed/steps_per_second"
DISTINCT = "speed/distinct_percent"
CHECKPOINT_SECONDS = "speed/checkpoint_seconds"
GRADIENT_COSINE = "train/gradient_cosine"
GRADIENT_CONFLICT = "train/gradient_conflict"
TIMESTEPS = "time/total_timesteps"
EVAL_SUCCESS = "eval/success_rate"
EVAL_IQM = "eval/success_iqm"
EVAL_WORST = "eval/success_worst"
EVAL_SCORE = "eval/score"
EVAL_RETURN = "eval/return"
HELD_OUT_SUCCESS = "eval/held_out/success_rate"


def task_metric(split: str, task: str, metric: str) -> str:
    """``task/<task>/success_rate`` and its like; ``split`` is ``task`` while training and ``eval`` on unseen seeds."""
    return f"{split}/{task}/{metric}"


def time_metric(part: str) -> str:
    """``speed/environment_percent`` and its like."""
    return f"speed/{part}_percent"
