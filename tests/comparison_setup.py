"""A tiny comparison on an environment of one's own."""

from pathlib import Path

from mirl.configs.comparison import ComparisonConfig, parse_comparison

TINY = (
    "task=corridor_env:ToyCorridor-v0",
    "agent.n_envs=4",
    "agent.n_steps=16",
    "agent.batch_size=32",
    "agent.net_arch=[8]",
    "encoder.features_dim=8",
    "context.dim=4",
    "precision=fp32",
    "evaluation.every=64",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "evaluation.test_episodes=8",
    "evaluation.context_use=false",
    "videos=false",
    "total_timesteps=128",
)
"""Arguments of runs that take about a second."""


def comparison(folder: Path, *words: str) -> ComparisonConfig:
    """Return the configuration of a comparison of such runs in a folder."""
    config = parse_comparison([*TINY, *words, f"out={folder}"])
    assert isinstance(config, ComparisonConfig)
    return config
