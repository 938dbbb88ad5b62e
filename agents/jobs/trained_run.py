"""The run of a job: trained or resumed, and evaluated in the job's process."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mirl.agents.evaluation import RunEvaluation, evaluate_run
from mirl.agents.jobs.process import STOP, job_process, wait_for_lock
from mirl.agents.training import TrainResult, train
from mirl.configs.compose import compose_train


class TrainedRun(NamedTuple):
    """A finished run and its evaluation on test episodes."""

    result: TrainResult
    evaluation: RunEvaluation
    seconds: float
    """Training time in seconds, since the run was last resumed."""


def train_and_evaluate(words: Sequence[str], log_path: Path, folder: Path) -> TrainedRun | None:
    """Train or resume the run that the arguments define, and evaluate it.

    Args:
        words: arguments of train.py.
        log_path: file for all output.
        folder: folder of the jobs.

    Returns:
        The run; None if it was stopped before its end.

    Raises:
        ConfigError: the run does not fit its environment, or its directory holds another run.
        RunError: the training failed.
    """
    with job_process(log_path, folder / STOP) as log:
        config = compose_train(words)
        wait_for_lock(config.run_dir, folder / STOP)
        started = time.perf_counter()
        result = train(config, log)
        if not result.finished:
            return None
        seconds = time.perf_counter() - started
        evaluation = evaluate_run(result.run, result.checkpoint, config.test_evaluation)
    return TrainedRun(result, evaluation, round(seconds, 1))
