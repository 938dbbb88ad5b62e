"""Cells of pixels."""

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.policies.encoders.cell_layouts import image_layout
from mirl.policies.encoders.space_kinds import reads_pixels, space_text


class ImageCells(nn.Module):
    """Cells of an image: three convolutions of stride 2, which divide its size by 8.

    Args:
        space: the space of the image, (H, W, C), (C, H, W) or (H, W).
        channels: C, the features of each cell.

    Raises:
        ConfigError: if the space holds codes.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box
        >>> from mirl.policies.encoders import ImageCells
        >>> cells = ImageCells(Box(0, 1, (84, 84, 3)), channels=16)
        >>> cells.height, cells.width
        (11, 11)
        >>> cells(torch.zeros(5, 84, 84, 3)).shape
        torch.Size([5, 121, 16])
    """

    def __init__(self, space: spaces.Space[object], channels: int) -> None:
        super().__init__()
        if not reads_pixels(space):
            raise ConfigError(
                f"encoder=image needs pixels, got codes or planes, {space_text(space)}; "
                "use encoder=grid"
            )
        height, width, depth, self.channels_first = image_layout(space)
        self.channels = channels
        self.scale = _pixel_scale(space)
        self.convolutions = nn.Sequential(
            nn.Conv2d(depth, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        # rounded up
        self.height = -(-height // 8)
        self.width = -(-width // 8)

    def forward(
        self,
        image: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, "batch cells channels"]:
        """Encode the pixels.

        Args:
            image: pixels as SB3's preprocessing gives them, in the layout of the space.

        Returns:
            The cells, (B, P, C).
        """
        if image.ndim == 3:
            image = image.unsqueeze(1)  # (B, H, W) -> (B, 1, H, W)
        elif not self.channels_first:
            image = image.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        if self.scale != 1:
            image = image * self.scale
        # (B, C, H, W) -> (B, P, C)
        return self.convolutions(image).flatten(2).transpose(1, 2)


def _pixel_scale(space: spaces.Space[object]) -> float:
    """Return the factor that scales pixels to [0, 1] if SB3 does not do so."""
    if not isinstance(space, spaces.Box) or is_image_space(space):
        return 1.0
    high = float(np.abs(space.high).max())
    if 1 < high <= MAX_PIXEL:
        return 1 / high
    return 1.0


MAX_PIXEL = 2**16 - 1
"""Largest bound of a pixel; a larger bound of a Box says nothing about its values."""
