"""Policy and value heads over ``Features``: fusions with the context, or plain linear layers."""

from jaxtyping import Float
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from mirl.policies.features import Features
from mirl.policies.fusions import Fusion

HEAD_GAIN = 0.01
"""Of both heads. SB3 has it for the policy, which starts nearly uniform. Values start near zero, too: at a gain of 1
the first advantages are those of random values, which led agents away from rewards that they had not met yet."""


class ContextMlpExtractor(MlpExtractor):
    """SB3's ``MlpExtractor`` over the vector, with what the heads read beside it passed by untouched."""

    def forward_actor(self, features: Features) -> Features:  # type: ignore[override]
        return features._replace(vector=super().forward_actor(features.vector))

    def forward_critic(self, features: Features) -> Features:  # type: ignore[override]
        return features._replace(vector=super().forward_critic(features.vector))


class FusionHead(nn.Module):
    """A policy or value head y = f(hidden, z), as the paper does for multitask RL."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Features) -> Float[Tensor, "batch out"]:
        y: Tensor = self.fusion(features.vector, *features.context)
        return y


class VectorHead(nn.Module):
    """SB3's own head, which reads nothing but the vector."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: Features) -> Float[Tensor, "batch out"]:
        y: Tensor = self.linear(features.vector)
        return y
