"""Fast weights: an outer-product memory that is written by the delta rule.

Shapes: T timesteps, N sequences, X features, H heads of d numbers each, size = H * d.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl.configs.networks import FastWeightsConfig
from mirl.policies.fusions import RELU_GAIN, Affine
from mirl.policies.memory.chunks import ChunkedCore
from mirl.policies.memory.episodes import Episodes


class FastWeights(ChunkedCore):
    """An outer-product memory M of each head, written by the delta rule and read by a query.

        M_t = M_{t−1} + k_t u_tᵀ  with u_t = β_t (v_t − M_{t−1}ᵀ k_t)
        y_t = V x_t + b + P M_tᵀ q_t

    where keys and queries have norm 1 and P starts at zero. The writes of T timesteps are the
    solution of a triangular system, so that a chunk is computed at once.

    The hidden state holds the (d, d) matrices of all heads.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context, which is ignored.
        config: size and number of heads.

    References:
        Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers", ICML 2021, for
        the rule; Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence
        Length", NeurIPS 2024, for the triangular system.
    """

    Config = FastWeightsConfig

    def __init__(self, features_dim: int, context_dim: int, config: FastWeightsConfig) -> None:
        self.heads = config.heads
        self.head_dim = config.size // config.heads
        super().__init__(features_dim, config.size * self.head_dim, config)
        self.main = Affine(features_dim, config.size, gain=RELU_GAIN)
        self.query_key_value = Affine(features_dim, 3 * config.size, gain=1)
        # A gain of 0 starts every write with the strength β = σ(0) = 1/2.
        self.write_strength = Affine(features_dim, config.heads, gain=0)
        self.project = Affine(config.size, config.size, gain=0, bias=False)

    def forward_chunk(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
    ) -> tuple[Tensor, Tensor]:
        """Compute a chunk; see ``ChunkedCore.forward_chunk``."""
        # (T, N, 3 * H * d) -> (T, N, 3, H, d) -> (3, N, H, T, d)
        projected = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        query, key, v = projected.permute(2, 1, 3, 0, 4)
        # With keys of norm 1 a write shrinks the old value of its key by 1 − β and amplifies none.
        q = F.normalize(query, dim=-1)
        k = F.normalize(key, dim=-1)
        # (T, N, H) -> (N, H, T, 1)
        beta = torch.sigmoid(self.write_strength(x)).permute(1, 2, 0).unsqueeze(-1)
        # (N, H * d * d) -> (N, H, d, d)
        memory = state.unflatten(1, (self.heads, self.head_dim, self.head_dim))
        # (T, N) -> (N, 1, T, 1)
        episode = episodes.number.T[:, None, :, None]
        last_episode = episode[:, :, -1:]
        # Only timesteps of episode 0 read the memory from before the chunk, and a timestep reads
        # only what timesteps of its own episode wrote.
        continues = episode == 0
        same_episode = episode == episode.mT
        # u_t + β_t Σ_{s<t} (k_t · k_s) u_s = β_t (v_t − M_0ᵀ k_t), one row for each t.
        system = beta * (k @ k.mT) * same_episode.tril(-1)
        missing = beta * (v - continues * (k @ memory))
        u = missing
        if x.shape[0] > 1:  # the system of a single timestep is 1
            u = torch.linalg.solve_triangular(system, missing, upper=False, unitriangular=True)
        # M_0ᵀ q_t from before the chunk, and Σ_{s≤t} (q_t · k_s) u_s from the chunk itself.
        read = continues * (q @ memory) + (q @ k.mT * same_episode.tril()) @ u
        # The memory that the last episode of the chunk leaves.
        after = (last_episode == 0) * memory + (k * (episode == last_episode)).mT @ u
        # (N, H, T, d) -> (T, N, H * d)
        joined = read.permute(2, 0, 1, 3).flatten(2)
        return self.main(x) + self.project(joined), after.flatten(1)
