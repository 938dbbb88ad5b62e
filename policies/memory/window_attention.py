"""TODO docstring."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import AttentionMemoryConfig
from mirl.policies.fusions import Affine
from mirl.policies.memory.chunks import ChunkedCore
from mirl.policies.memory.episodes import Episodes
from mirl.policies.positions import sinusoids


class WindowAttention(ChunkedCore):
    """Causal multi-head attention (Vaswani et al., 2017) over the last L timesteps of the episode:

        y_t = V x_t + b + P Σ_j softmax_j(((q_t + u) · k_j + (q_t + w) · r_{t−j}) / √d) v_j

    where r_{t−j} is learned from the sinusoidal encoding of the distance (Dai et al., 2019); or the softmax is of
    q_t · k_j / √d, and each x has the encoding of its number in the episode added to it first. P starts at zero.

    The state holds the L − 1 inputs before, and how many timesteps of the episode there were.
    """

    def __init__(self, features_dim: int, config: AttentionMemoryConfig) -> None:
        self.heads, self.past = config.heads, config.window - 1
        super().__init__(features_dim, self.past * features_dim + 1, config)
        self.main = Affine(features_dim, config.size, gain=math.sqrt(2))
        self.query = Affine(features_dim, config.size, gain=1)
        self.key_value = Affine(features_dim, 2 * config.size, gain=1)
        self.project = Affine(config.size, config.size, gain=0, bias=False)
        self.relative = config.positions == "relative"
        if self.relative:
            self.distance = Affine(config.size, config.size, gain=1, bias=False)
            self.content_bias, self.distance_bias = (
                nn.Parameter(torch.zeros(config.heads, 1, config.size // config.heads))
                for _ in range(2)
            )

    def forward_chunk(self, x: Tensor, state: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        steps, _ = episodes.shape
        before, count = (
            state[:, :-1].unflatten(1, (self.past, self.features_dim)).transpose(0, 1),
            state[:, -1].detach(),
        )
        age = episodes.age(count)
        seen = torch.cat([before, x])  # (L − 1 + T, N, X)
        distance = (
            self.past
            + torch.arange(steps, device=x.device)[:, None]
            - torch.arange(len(seen), device=x.device)
        )
        visible = (distance >= 0) & (
            distance <= age.clamp(max=self.past).T.unsqueeze(-1)
        )  # (N, T, L − 1 + T)
        located = seen if self.relative else seen + self._numbers(age, count)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).permute(
                1, 2, 0, 3
            )  # (T, N, H·d) -> (N, H, T, d)
            for projected in (
                self.query(located[self.past :]),
                *self.key_value(located).chunk(2, dim=-1),
            )
        )
        mask = (
            torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf).unsqueeze(1)
        )
        if self.relative:
            mask = mask + self._score_distances(query, distance)
            query = query + self.content_bias
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y = self.main(x) + self.project(attended.permute(2, 0, 1, 3).flatten(2))
        return y, self._state(seen[steps:], age[-1] + 1)

    def _score_distances(
        self, query: Float[Tensor, "batch heads time dim"], distance: Int[Tensor, "time seen"]
    ) -> Float[Tensor, "batch heads time seen"]:
        """(q_t + w) · r_{t−j} / √d"""
        encoded = sinusoids(
            torch.arange(self.past + 1, device=query.device, dtype=query.dtype), self.size
        )
        learned = (
            self.distance(encoded).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        )  # (L, H·d) -> (H, d, L)
        scores = (query + self.distance_bias) @ learned / math.sqrt(query.shape[-1])
        return scores.gather(-1, distance.clamp(0, self.past).expand(*scores.shape[:3], -1))

    def _numbers(
        self, age: Float[Tensor, "time batch"], count: Float[Tensor, " batch"]
    ) -> Float[Tensor, "seen batch features"]:
        """The encoding of each timestep's number in its episode."""
        before = count - torch.arange(self.past, 0, -1, device=count.device).unsqueeze(1)
        return sinusoids(torch.cat([before, age]), self.features_dim)

    def _state(
        self, seen: Float[Tensor, "past batch features"], count: Float[Tensor, " batch"]
    ) -> Tensor:
        """The inputs before, as many as the episode had."""
        is_of_episode = torch.arange(self.past, 0, -1, device=count.device).unsqueeze(1) <= count
        kept = seen.masked_fill(~is_of_episode.unsqueeze(-1), 0)
        return torch.cat([kept.transpose(0, 1).flatten(1), count.unsqueeze(1)], dim=1)
