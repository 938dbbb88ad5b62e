"""The environment and the network of MiniGrid's SB3 tutorial, as the drivers share them."""

from torch import nn

DOOR_KEY = "MiniGrid-DoorKey-8x8-v0"
TUTORIAL = {
    "environment": DOOR_KEY,
    "observation": "image 7 x 7 x 3",
    "network": "CNN of MiniGrid's SB3 tutorial",
}
"""Settings to report."""
FEATURES = 128
"""Size of the features."""


def extractor() -> nn.Sequential:
    """Build the features extractor: (B, 3, 7, 7) -> (B, 128)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, FEATURES),
        nn.ReLU(),
    )


def head(out_dim: int) -> nn.Sequential:
    """Build a head as SB3's CnnPolicy adds it: two tanh layers of 64 and an output layer.

    Args:
        out_dim: Number of logits, or 1 for the value.
    """
    return nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, out_dim),
    )
