"""Modulation of each output: FiLM and gates."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mirl.configs.networks import (
    FilmConfig,
    GateConfig,
)
from mirl.policies.fusions.affine import Affine, as_linear
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups


class Product(nn.Module):
    """Elementwise product y = a(x) ⊙ b(x).

    Args:
        a: first factor.
        b: second factor.
    """

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a = a
        self.b = b

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return a(x) ⊙ b(x)."""
        y: Tensor = self.a(x) * self.b(x)
        return y


class Film(Fusion):
    """Feature-wise linear modulation y = (1 + c γ(z)) ⊙ (V x + b) + β(z).

    γ and β are linear in z and start at zero, so the layer starts as V x + b.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion, with c.
        gain: gain of the initialization of V.

    References:
        Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import Film
        >>> film = Film(4, 3, 2, Film.Config(), gain=1.0)
        >>> x, z = torch.ones(5, 4), torch.ones(5, 3)
        >>> torch.equal(film(x, z), film.main(x))  # the context has no effect before training
        True
        >>> film.to_scale_shift(z).shape  # γ and β
        torch.Size([5, 4])
    """

    Config = FilmConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: FilmConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.context_scale = config.scale(context_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        # γ and β from one matrix product; without a bias, z = 0 leaves V x + b unchanged
        self.to_scale_shift = Affine(context_dim, 2 * out_dim, gain=0, bias=False)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute (1 + c γ(z)) ⊙ (V x + b) + β(z)."""
        scale, shift = self.scale_and_shift(z, groups)
        return scale * self.main(x) + shift

    def scale_and_shift(
        self, z: Float[Tensor, "G Z"], groups: ContextGroups | None
    ) -> tuple[Float[Tensor, "B 1 O"], Float[Tensor, "B 1 O"]]:
        """Return 1 + c γ(z) and β(z) for each row.

        Args:
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.
        """
        # (G, 2 O) -> (B, 1, 2 O) -> γ and β, each (B, 1, O)
        scale, shift = per_row(self.to_scale_shift(z), groups).chunk(2, dim=-1)
        return 1 + self.context_scale * scale, shift

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the scales 1 + c γ(z) and the shifts β(z); see ``Fusion.modulation``."""
        scale, shift = self.scale_and_shift(z, groups)
        return {"scale": scale, "shift": shift}

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine map for one context; see ``Fusion.specialize``."""
        return self.specialize_affine(z)


class Gate(Fusion):
    """Gated map y = σ(g(x, z)) ⊙ (V x + b) with an affine g, as in the gates of an LSTM.

    g starts at zero, where the gate is 1/2, and V starts at twice the gain, so that the layer
    starts as the same map as the other fusions.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: config of the fusion, which has no options.
        gain: gain of the map that the layer starts as.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import Gate
        >>> gate = Gate(4, 3, 2, Gate.Config(), gain=1.0)
        >>> x = torch.ones(5, 4)
        >>> torch.equal(gate(x, torch.ones(5, 3)), 0.5 * gate.main(x))  # half open before training
        True
    """

    Config = GateConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: GateConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        # the factor 2 makes up for the initial gate σ(0) = 1/2
        self.main = Affine(features_dim, out_dim, gain=2 * gain)
        self.gate_features = Affine(features_dim, out_dim, gain=0)
        self.gate_context = Affine(context_dim, out_dim, gain=0, bias=False)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute σ(g(x, z)) ⊙ (V x + b)."""
        return self.gate(x, z, groups) * self.main(x)

    def gate(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Return σ(g(x, z)), between 0 and 1.

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.
        """
        # g(x, z): (B, P, O) + (B, 1, O)
        logits = self.gate_features(x) + per_row(self.gate_context(z), groups)
        return torch.sigmoid(logits)

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the gates; see ``Fusion.modulation``."""
        return {"gate": self.gate(x, z, groups)}

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the product of two maps; see ``Fusion.specialize``."""
        # the gate is affine in x up to its sigmoid
        gate = as_linear(lambda x: self.gate_features(x) + self.gate_context(z), self.features_dim)
        return Product(nn.Sequential(gate, nn.Sigmoid()), as_linear(self.main, self.features_dim))
