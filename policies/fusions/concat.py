"""Concatenation, the additive baseline."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import (
    ConcatConfig,
)
from mirl.policies.fusions.affine import RELU_GAIN, Affine, as_linear
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups


class Concat(Fusion):
    """Affine map of the concatenation [x, z], the additive baseline: y = V x + Uᵀz + b.

    With ``config.hidden`` there is a hidden ReLU layer: y = P relu(V x + Uᵀz + b) + c.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion.
        gain: gain of the initialization of V, or of P if there is a hidden layer.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import Concat
        >>> concat = Concat(4, 3, 2, Concat.Config(hidden=16), gain=1.0)
        >>> concat.main.weight.shape, concat.project.weight.shape
        (torch.Size([4, 16]), torch.Size([16, 2]))
        >>> concat(torch.zeros(5, 4), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    Config = ConcatConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: ConcatConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        width = out_dim
        main_gain = gain
        if config.hidden > 0:
            # V is now in front of a ReLU, and the output layer P has the gain of the fusion
            width = config.hidden
            main_gain = RELU_GAIN
        self.main = Affine(features_dim, width, gain=main_gain)
        self.shift = Affine(context_dim, width, gain=0, bias=False)
        self.project: Affine | None = None
        if config.hidden > 0:
            self.project = Affine(width, out_dim, gain=gain)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V x + Uᵀz + b, and the output layer if there is a hidden one."""
        y = self.main(x) + per_row(self.shift(z), groups)
        if self.project is None:
            return y
        return self.project(F.relu(y))

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return one affine map, or two with a ReLU between them; see ``Fusion.specialize``."""
        if self.project is None:
            return self.specialize_affine(z)
        hidden = as_linear(lambda x: self.main(x) + self.shift(z), self.features_dim)
        return nn.Sequential(hidden, nn.ReLU(), as_linear(self.project, hidden.out_features))
