"""Agents: training, evaluation, checkpoints and run directories."""

from mirl.agents.evaluation import evaluate
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.policy_loader import load_policy, load_pretrained
from mirl.agents.run import Run
from mirl.agents.training import train

__all__ = ["A2C", "PPO", "Run", "evaluate", "load_policy", "load_pretrained", "train"]
