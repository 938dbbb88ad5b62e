"""Policy and value heads over ``Features``: fusions with the context, or plain linear layers."""

from typing import cast

import torch
from jaxtyping import Float
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from mirl.policies.features import Features, join_similarities
from mirl.policies.fusions import Fusion

HEAD_GAIN = 0.01
"""Gain of the initialization of both heads.

SB3 uses it for the policy head, so that the initial policy is nearly uniform. The value head uses
it too: with a gain of 1 the first advantages depend on random values, which led agents away from
rewards that they had not seen yet.
"""


class ContextMlpExtractor(MlpExtractor):
    """SB3's ``MlpExtractor`` over the vector of ``Features``; the rest passes through unchanged.

    Similarities of the cells with the context skip the MLPs: the heads receive them in addition to
    the last hidden layer.

    Args:
        feature_dim: size of the vector.
        net_arch: sizes of the hidden layers, as SB3 takes them.
        activation_fn: activation of the MLPs.
        device: device of the layers.
        similarities_dim: number of similarities, 0 for none.
    """

    def __init__(
        self,
        feature_dim: int,
        net_arch: list[int] | dict[str, list[int]],
        activation_fn: type[nn.Module],
        device: torch.device | str = "auto",
        similarities_dim: int = 0,
    ) -> None:
        super().__init__(feature_dim, net_arch, activation_fn, device)
        # SB3 builds heads of these sizes
        self.latent_dim_pi += similarities_dim
        self.latent_dim_vf += similarities_dim

    def forward_actor(self, features: Features) -> Features:  # type: ignore[override]
        """Return the features with the inputs of the policy head as the vector."""
        hidden = super().forward_actor(features.vector)
        return features._replace(vector=join_similarities(hidden, features.similarities))

    def forward_critic(self, features: Features) -> Features:  # type: ignore[override]
        """Return the features with the inputs of the value head as the vector."""
        hidden = super().forward_critic(features.vector)
        return features._replace(vector=join_similarities(hidden, features.similarities))


@torch.no_grad()
def ignore_similarities(weight: Float[Tensor, "out inputs"], similarities_dim: int) -> None:
    """Set the weights of the similarities, the last columns of a head, to zero.

    The outputs of a new network then do not depend on the context.

    Args:
        weight: weight of a head.
        similarities_dim: number of similarities, 0 for none.
    """
    weight[:, weight.shape[1] - similarities_dim :] = 0


@torch.no_grad()
def widen_for_similarities(linear: nn.Linear, similarities_dim: int) -> nn.Linear:
    """Return a linear head that also reads similarities, which it ignores at first.

    Args:
        linear: a head that reads only the last hidden layer.
        similarities_dim: number of similarities.
    """
    # without initialization, which would draw from torch's generator
    wide = nn.utils.skip_init(nn.Linear, linear.in_features + similarities_dim, linear.out_features)
    head = cast(nn.Linear, wide)
    head.weight.zero_()
    head.weight[:, : linear.in_features] = linear.weight
    head.bias.copy_(linear.bias)
    return head


class FusionHead(nn.Module):
    """Policy or value head y = f(h, z) of the last hidden layer h and the context z.

    Args:
        fusion: f.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020, use such
        heads for multitask reinforcement learning.
    """

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Features) -> Float[Tensor, "batch out"]:
        """Return f(h, z), (B, O)."""
        # a Context unpacks to its values, groups and words, the other arguments of a fusion
        y: Tensor = self.fusion(features.vector, *features.context)
        return y


class VectorHead(nn.Module):
    """SB3's linear head, applied only to the vector of ``Features``.

    Args:
        linear: the head that SB3 built.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: Features) -> Float[Tensor, "batch out"]:
        """Return the linear map of the vector, (B, O)."""
        y: Tensor = self.linear(features.vector)
        return y
