"""TODO docstring."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl.configs.networks import FastWeightsConfig
from mirl.policies.fusions import Affine
from mirl.policies.memory.chunks import ChunkedCore
from mirl.policies.memory.episodes import Episodes


class FastWeights(ChunkedCore):
    """An outer-product memory S for each head, written by the delta rule and read by a query (Schlag et al., 2021):

        S_t = S_{t−1} + k_t u_tᵀ  with u_t = β_t (v_t − S_{t−1}ᵀ k_t)
        y_t = V x_t + b + P S_tᵀ q_t

    with keys and queries of length 1. What T timesteps write solves a triangular system, so that they are computed at
    once (Yang et al., 2024). P starts at zero.
    """

    def __init__(self, features_dim: int, config: FastWeightsConfig) -> None:
        self.heads, self.head_dim = config.heads, config.size // config.heads
        super().__init__(features_dim, config.size * self.head_dim, config)
        self.main = Affine(features_dim, config.size, gain=math.sqrt(2))
        self.query_key_value = Affine(features_dim, 3 * config.size, gain=1)
        self.write_strength = Affine(features_dim, config.heads, gain=0)
        self.project = Affine(config.size, config.size, gain=0, bias=False)

    def forward_chunk(self, x: Tensor, state: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        # (T, N, 3·H·d) -> three of (N, H, T, d)
        query, key, v = (
            self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 1, 3, 0, 4)
        )
        q, k = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        strength = (
            torch.sigmoid(self.write_strength(x)).permute(1, 2, 0).unsqueeze(-1)
        )  # (T, N, H) -> (N, H, T, 1)
        memory = state.unflatten(1, (self.heads, self.head_dim, self.head_dim))
        episode = episodes.episode.T[:, None, :, None]  # (T, N) -> (N, 1, T, 1)
        goes_on, same, last = episode == 0, episode == episode.mT, episode[:, :, -1:]
        system = strength * (k @ k.mT) * same.tril(-1)
        missing = strength * (v - goes_on * (k @ memory))
        written = torch.linalg.solve_triangular(system, missing, upper=False, unitriangular=True)
        read = goes_on * (q @ memory) + (q @ k.mT * same.tril()) @ written
        after = (last == 0) * memory + (k * (episode == last)).mT @ written
        joined = read.permute(2, 0, 1, 3).flatten(2)  # (N, H, T, d) -> (T, N, H·d)
        return self.main(x) + self.project(joined), after.flatten(1)
