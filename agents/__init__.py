"""Training: algorithms, evaluation, checkpoints, run directories."""

from mirl.agents.algorithms import A2C, PPO
from mirl.agents.building import load_policy
from mirl.agents.evaluation import evaluate
from mirl.agents.training import train

__all__ = ["A2C", "PPO", "evaluate", "load_policy", "train"]
