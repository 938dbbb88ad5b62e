"""Command-line arguments of tiny runs."""

NETWORK = (
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
    "agent.net_arch=[8]",
)
"""Sizes of a tiny network."""
