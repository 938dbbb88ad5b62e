"""Causal attention over the last timesteps of the episode.

Shapes: T timesteps of a chunk, N sequences, X features, L timesteps of the window, H heads of d
numbers each, J = L − 1 + T timesteps that are attended to.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import AttentionMemoryConfig
from mirl.policies.fusions import RELU_GAIN, Affine
from mirl.policies.memory.chunks import ChunkedCore
from mirl.policies.memory.episodes import Episodes
from mirl.policies.positions import sinusoids


class WindowAttention(ChunkedCore):
    """Causal multi-head attention over the last L timesteps of the episode.

        y_t = V x_t + b + P Σ_j softmax_j(((q_t + u) · k_j + (q_t + w) · r_{t−j}) / √d) v_j

    where r_{t−j} is learned from the sinusoidal encoding of the distance ("relative"). With
    "sinusoidal" positions the logit is q_t · k_j / √d, and the encoding of each timestep's age in
    the episode is added to its x first. P starts at zero.

    The hidden state holds the previous L − 1 inputs, and the number of timesteps of the episode.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context, which is ignored.
        config: size, heads, window and positions.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017; Dai et al., "Transformer-XL",
        ACL 2019, for the relative positions.
    """

    Config = AttentionMemoryConfig

    def __init__(self, features_dim: int, context_dim: int, config: AttentionMemoryConfig) -> None:
        self.heads = config.heads
        self.past = config.window - 1
        super().__init__(features_dim, self.past * features_dim + 1, config)
        self.main = Affine(features_dim, config.size, gain=RELU_GAIN)
        self.query = Affine(features_dim, config.size, gain=1)
        self.key_value = Affine(features_dim, 2 * config.size, gain=1)
        self.project = Affine(config.size, config.size, gain=0, bias=False)
        self.relative = config.positions == "relative"
        if self.relative:
            self.distance = Affine(config.size, config.size, gain=1, bias=False)
            bias_size = (config.heads, 1, config.size // config.heads)
            self.content_bias = nn.Parameter(torch.zeros(bias_size))
            self.distance_bias = nn.Parameter(torch.zeros(bias_size))

    def forward_chunk(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
    ) -> tuple[Tensor, Tensor]:
        """Compute a chunk; see ``ChunkedCore.forward_chunk``."""
        n_steps, _ = episodes.shape
        # (N, (L − 1) * X + 1) -> (L − 1, N, X) and (N,)
        before = state[:, :-1].unflatten(1, (self.past, self.features_dim)).transpose(0, 1)
        count = state[:, -1].detach()
        age = episodes.age(count)
        inputs = torch.cat([before, x])  # (J, N, X)
        distance = self._distances(n_steps, x.device)
        # A timestep attends to itself, to earlier ones of its episode, and to no future one.
        reach = age.clamp(max=self.past).T.unsqueeze(-1)  # (T, N) -> (N, T, 1)
        is_visible = (distance >= 0) & (distance <= reach)  # (N, T, J)
        located = inputs
        if not self.relative:
            located = inputs + self._encode_ages(age, count)
        query = self._split_heads(self.query(located[self.past :]))
        key, value = self.key_value(located).chunk(2, dim=-1)
        bias = _attention_bias(is_visible, x.dtype)
        if self.relative:
            # (q_t + w) · r_{t−j} / √d is added to the logits, and u to the query.
            bias = bias + self._score_distances(query, distance)
            query = query + self.content_bias
        attended = F.scaled_dot_product_attention(
            query, self._split_heads(key), self._split_heads(value), attn_mask=bias
        )
        # (N, H, T, d) -> (T, N, H * d)
        joined = attended.permute(2, 0, 1, 3).flatten(2)
        y = self.main(x) + self.project(joined)
        return y, self._next_state(inputs[n_steps:], age[-1] + 1)

    def _distances(self, n_steps: int, device: torch.device) -> Int[Tensor, "time seen"]:
        """Return (T, J), the number of timesteps from each input to each timestep."""
        timestep = self.past + torch.arange(n_steps, device=device)[:, None]
        return timestep - torch.arange(self.past + n_steps, device=device)

    def _split_heads(
        self, projected: Float[Tensor, "time batch size"]
    ) -> Float[Tensor, "batch heads time dim"]:
        # (T, N, H * d) -> (T, N, H, d) -> (N, H, T, d)
        return projected.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)

    def _score_distances(
        self, query: Float[Tensor, "batch heads time dim"], distance: Int[Tensor, "time seen"]
    ) -> Float[Tensor, "batch heads time seen"]:
        """Return (q_t + w) · r_{t−j} / √d."""
        distances = torch.arange(self.past + 1, device=query.device, dtype=query.dtype)
        encoded = self.distance(sinusoids(distances, self.size))
        # (L, H * d) -> (L, H, d) -> (H, d, L)
        learned = encoded.unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        scores = (query + self.distance_bias) @ learned / math.sqrt(query.shape[-1])
        # (N, H, T, L) -> (N, H, T, J): look up the distance of each pair.
        index = distance.clamp(0, self.past).expand(*scores.shape[:3], -1)
        return scores.gather(-1, index)

    def _encode_ages(
        self, age: Float[Tensor, "time batch"], count: Float[Tensor, " batch"]
    ) -> Float[Tensor, "seen batch features"]:
        """Return (J, N, X), the encoding of each input's age in its episode."""
        steps_back = torch.arange(self.past, 0, -1, device=count.device)
        before = count - steps_back.unsqueeze(1)
        return sinusoids(torch.cat([before, age]), self.features_dim)

    def _next_state(
        self, inputs: Float[Tensor, "past batch features"], count: Float[Tensor, " batch"]
    ) -> Tensor:
        """Join the last L − 1 inputs, with zeros before the episode, and its timestep count."""
        steps_back = torch.arange(self.past, 0, -1, device=count.device)
        is_of_episode = steps_back.unsqueeze(1) <= count
        kept = inputs.masked_fill(~is_of_episode.unsqueeze(-1), 0)
        # (L − 1, N, X) -> (N, (L − 1) * X)
        return torch.cat([kept.transpose(0, 1).flatten(1), count.unsqueeze(1)], dim=1)


def _attention_bias(
    is_visible: Bool[Tensor, "batch time seen"], dtype: torch.dtype
) -> Float[Tensor, "batch 1 time seen"]:
    """Return 0 for visible timesteps and −∞ for the others."""
    bias = torch.zeros_like(is_visible, dtype=dtype)
    return bias.masked_fill(~is_visible, -torch.inf).unsqueeze(1)
