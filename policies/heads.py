"""Policy and value heads over ``Features``: fusions with the context, or plain linear layers."""

from jaxtyping import Float
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from mirl.policies.features import Features
from mirl.policies.fusions import Fusion

HEAD_GAIN = 0.01
"""Gain of the initialization of both heads.

SB3 uses it for the policy head, so that the first policy is nearly uniform. The value head has it
too: at a gain of 1 the first advantages are those of random values, which led agents away from
rewards that they had not seen yet.
"""


class ContextMlpExtractor(MlpExtractor):
    """SB3's ``MlpExtractor`` over the vector of ``Features``; all else passes through unchanged.

    The constructor takes what SB3's does, with the size of the vector as ``feature_dim``.
    """

    def forward_actor(self, features: Features) -> Features:  # type: ignore[override]
        """Return the features with the actor's hidden layer as the vector."""
        return features._replace(vector=super().forward_actor(features.vector))

    def forward_critic(self, features: Features) -> Features:  # type: ignore[override]
        """Return the features with the critic's hidden layer as the vector."""
        return features._replace(vector=super().forward_critic(features.vector))


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
        # a Context unpacks to its values and groups, the last two arguments of a fusion
        y: Tensor = self.fusion(features.vector, *features.context)
        return y


class VectorHead(nn.Module):
    """SB3's linear head, applied to the vector of ``Features`` alone.

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
