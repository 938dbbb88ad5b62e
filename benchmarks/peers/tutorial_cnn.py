"""The network of MiniGrid's SB3 tutorial: its extractor, and the heads that SB3's CnnPolicy adds to it."""

from torch import nn

FEATURES = 128


def extractor() -> nn.Sequential:
    """Images (B, 3, 7, 7) -> features (B, 128)."""
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


def head(width: int) -> nn.Sequential:
    """Features -> two tanh layers of 64 -> logits or a value."""
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, width))
