"""Decision Adapter: a residual block that a chunked hypernetwork generates from the context."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import AdapterConfig
from mirl.policies.fusions.affine import Affine, as_linear
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups


class ChunkedHypernetwork(nn.Module):
    """Network that generates many weights in chunks of equal size, one after the other.

    Each chunk k has an embedding e_k, and one MLP with ReLU maps (e_k, z) to its weights. The
    inputs of its layers are scaled by the inverse of their number, or by ``config.context_scale``.

    Args:
        context_dim: Z, the size of the context.
        count: number of weights to generate.
        config: sizes of the chunks, of their embeddings and of the hidden layers.

    References:
        von Oswald et al., "Continual Learning with Hypernetworks", ICLR 2020.
    """

    def __init__(self, context_dim: int, count: int, config: AdapterConfig) -> None:
        super().__init__()
        self.count = count
        # rounded up; the weights of the last chunk that are left over are not used
        n_chunks = -(-count // config.chunk_size)
        self.chunk_embeddings = nn.Parameter(torch.randn(n_chunks, config.chunk_embedding))
        sizes = (*config.hidden, config.chunk_size)
        # the first layer of (e_k, z), as the sum of its two parts
        self.from_chunk = Affine(config.chunk_embedding, sizes[0], gain=0)
        scale = config.scale(context_dim)
        self.from_context = Affine(context_dim, sizes[0], gain=0, bias=False, scale=scale)
        self.layers = nn.ModuleList()
        for in_size, out_size in pairwise(sizes):
            scale = config.scale(in_size)
            layer = Affine(in_size, out_size, gain=0, scale=scale)
            _fill_uniform(layer, in_size)
            self.layers.append(layer)
        inputs = config.chunk_embedding
        if config.start == "generated":
            inputs += context_dim
            _fill_uniform(self.from_context, inputs)
        _fill_uniform(self.from_chunk, inputs)

    def forward(self, z: Float[Tensor, "G Z"]) -> Float[Tensor, "G count"]:
        """Generate the weights.

        Args:
            z: contexts, (G, Z).

        Returns:
            The weights of each context, (G, count).
        """
        # (chunks, H) + (G, 1, H) -> (G, chunks, H)
        hidden = self.from_chunk(self.chunk_embeddings) + self.from_context(z).unsqueeze(1)
        for layer in self.layers:
            hidden = layer(F.relu(hidden))
        # (G, chunks, size) -> (G, chunks * size) -> (G, count)
        return hidden.flatten(1)[:, : self.count]


def _fill_uniform(layer: Affine, inputs: int) -> None:
    """Initialize a layer like ``nn.Linear``: c W and b uniformly in ±1/√inputs."""
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound / layer.scale, bound / layer.scale)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound)


class Adapter(Fusion):
    """Decision Adapter y = x + relu(A₂(z) relu(A₁(z) x + a₁(z)) + a₂(z)), generated from z.

    If O is not X, and in the last layer of a network, a linear layer follows: y = V (x + …) + b.

    With ``start="blind"`` the generator's weights of z start at zero: the block starts as a random
    function of x that is the same for every z. With ``start="generated"`` it differs between
    contexts from the beginning, as in the paper.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion: the bottleneck and the generator.
        gain: gain of the initialization of V; below 1 for a last layer.

    References:
        Beukman et al., "Dynamics Generalisation in Reinforcement Learning via Adaptive
        Context-Aware Policies", NeurIPS 2023.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import Adapter
        >>> adapter = Adapter(8, 3, 8, Adapter.Config(bottleneck=2), gain=1.0)
        >>> down, down_bias, up, up_bias = adapter.generate(torch.zeros(5, 3))
        >>> down.shape, up.shape  # generated for each of 5 contexts
        (torch.Size([5, 8, 2]), torch.Size([5, 2, 8]))
        >>> adapter(torch.zeros(5, 8), torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """

    Config = AdapterConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: AdapterConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.bottleneck = config.bottleneck
        self.main: Affine | None = None
        # the small gain of a last layer keeps the first policy nearly uniform
        if features_dim != out_dim or gain < 1:
            self.main = Affine(features_dim, out_dim, gain=gain)
        self.sizes = (
            features_dim * self.bottleneck,
            self.bottleneck,
            self.bottleneck * features_dim,
            features_dim,
        )
        """Number of elements of A₁, a₁, A₂ and a₂, in the order in which they are generated."""
        self.generator = ChunkedHypernetwork(context_dim, sum(self.sizes), config)

    def generate(
        self, z: Float[Tensor, "G Z"]
    ) -> tuple[
        Float[Tensor, "G X bottleneck"],
        Float[Tensor, "G bottleneck"],
        Float[Tensor, "G bottleneck X"],
        Float[Tensor, "G X"],
    ]:
        """Return the weights that each context generates.

        Args:
            z: contexts, (G, Z).

        Returns:
            A₁ᵀ, (G, X, bottleneck), a₁, A₂ᵀ, (G, bottleneck, X), and a₂.
        """
        down, down_bias, up, up_bias = self.generator(z).split(self.sizes, dim=1)
        # rows are outputs, as in nn.Linear: (G, bottleneck * X) -> (G, X, bottleneck)
        down = down.unflatten(1, (self.bottleneck, self.features_dim)).transpose(1, 2)
        up = up.unflatten(1, (self.features_dim, self.bottleneck)).transpose(1, 2)
        return down, down_bias, up, up_bias

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute x plus the generated block, and the last layer if there is one."""
        if groups is not None:
            # z may end with contexts that no row has
            z = z[: groups.count]
        down, down_bias, up, up_bias = self.generate(z)
        if groups is not None and groups.prefer_grouped(x.shape[1] * down[0].numel()):
            hidden = F.relu(groups.multiply(x, down, down_bias))
            block = groups.multiply(hidden, up, up_bias)
        else:
            if groups is not None:
                down = down.index_select(0, groups.index)
                up = up.index_select(0, groups.index)
            hidden = F.relu(torch.bmm(x, down) + per_row(down_bias, groups))
            block = torch.bmm(hidden, up) + per_row(up_bias, groups)
        y = x + F.relu(block)
        if self.main is None:
            return y
        result: Tensor = self.main(y)
        return result

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the block with fixed weights; see ``Fusion.specialize``."""
        return SpecializedAdapter(self, z)


class SpecializedAdapter(nn.Module):
    """``Adapter`` for one z: a residual block of plain layers.

    Args:
        fusion: the fusion, in float64.
        z: the encoded context in float64, (1, Z).
    """

    def __init__(self, fusion: Adapter, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        down, down_bias, up, up_bias = (weight[0] for weight in fusion.generate(z))
        self.block = nn.Sequential(
            as_linear(lambda x: x @ down + down_bias, fusion.features_dim),
            nn.ReLU(),
            as_linear(lambda x: x @ up + up_bias, fusion.bottleneck),
            nn.ReLU(),
        )
        self.main: nn.Module = nn.Identity()
        if fusion.main is not None:
            self.main = as_linear(fusion.main, fusion.features_dim)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the output for each row of x."""
        y: Tensor = self.main(x + self.block(x))
        return y
