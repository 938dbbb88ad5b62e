"""Recurrent cores: what an agent remembers of the episode."""

import math
from abc import ABC, abstractmethod
from typing import Any, assert_never, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AttentionMemoryConfig,
    FastWeightsConfig,
    Gate,
    GruConfig,
    LstmConfig,
    MiLstmConfig,
    RecurrentConfig,
    Remembering,
)
from mirl.policies.episodes import Episodes
from mirl.policies.grouping import Groups, multiply_row_by_row
from mirl.policies.interactions import Affine
from mirl.policies.positions import sinusoids


class Core(nn.Module, ABC):
    """The one interface of memories: (features, state, episode_start, context) → (features, state).

    The state of a sequence is one row of numbers, and zeros are the memory of nothing: where an episode starts, all
    that was before is as if it had not been. What a core gives for T timesteps at once is what it gives for one after
    the other, as long as all numbers are finite. Under autocast it computes in float32: rounding would add up.

    With a skip connection it gives x + P y, the features and what is remembered of them, where P starts at zero: the
    agent first learns to react, as one without a memory (the identity map of Parisotto et al., 2020). No gradient
    flows through what the memory reads: what is not yet worth remembering would drown what the features learn from.
    """

    def __init__(self, features_dim: int, state_dim: int, config: Remembering) -> None:
        super().__init__()
        if config.normalize and features_dim < 2:
            raise ConfigError("a memory with normalize needs two features or more, got 1; normalize=false takes it")
        self.features_dim, self.size, self.state_dim = features_dim, config.size, state_dim
        self.normalize = config.normalize
        self.add = Affine(config.size, features_dim, gain=0, bias=False) if config.skip_connection else None

    @property
    def out_dim(self) -> int:
        """Size of what it gives: of what it remembers or, with a skip connection, of the features."""
        return self.size if self.add is None else self.features_dim

    def forward(
        self,
        features: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episode_start: Episodes | Shaped[Tensor, "time batch"] | Shaped[np.ndarray, "time batch"],
        context: Float[Tensor, "rows context"] | None = None,
        groups: Groups | None = None,
    ) -> tuple[Float[Tensor, "time batch out"], Float[Tensor, "batch state"]]:
        """Read T timesteps of N sequences.

        :param state: what is remembered from before.
        :param episode_start: whether a timestep is the first of an episode.
        :param context: (T · N, Z), of each timestep, time first; or (G, Z), with ``groups`` to say which is whose.
        :raises ValueError: when the sizes do not fit.
        """
        if not isinstance(episode_start, Episodes):
            starts = episode_start.cpu() if isinstance(episode_start, Tensor) else episode_start
            episode_start = Episodes(np.asarray(starts, np.bool_), features.device)
        expected = (*episode_start.shape, self.features_dim), (episode_start.shape[1], self.state_dim)
        if (tuple(features.shape), tuple(state.shape)) != expected:
            raise ValueError(
                f"{type(self).__name__} expects features {expected[0]} and state {expected[1]}, "
                f"got {tuple(features.shape)} and {tuple(state.shape)}"
            )
        if context is not None and groups is None and len(context) != math.prod(episode_start.shape):
            raise ValueError(f"expected a context for each of {episode_start.shape} timesteps, got {len(context)}")
        state = episode_start.kept(state)
        x, z = exact(features), None if context is None else exact(context)
        with torch.autocast(features.device.type, enabled=False):
            read = x if self.add is None else x.detach()
            normalized = F.layer_norm(read, (self.features_dim,)) if self.normalize else read
            remembered, state = self.read(normalized, state, episode_start, z, groups)
            return remembered if self.add is None else x + self.add(remembered), state

    @abstractmethod
    def read(
        self,
        x: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episodes: Episodes,
        z: Float[Tensor, "rows context"] | None,
        groups: Groups | None,
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """The memory itself, given what ``normalize`` made of the features."""


def exact(given: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What autocast may have made bfloat16, in float32."""
    return given if given.dtype == torch.float64 else given.float()


class Recurrent(Core):
    """``torch.nn.LSTM`` (Hochreiter and Schmidhuber, 1997) or ``torch.nn.GRU`` (Cho et al., 2014), with its kernels.

    Episodes are read side by side, as a packed sequence.
    """

    def __init__(self, network: nn.LSTM | nn.GRU, config: LstmConfig | GruConfig) -> None:
        parts = 2 if isinstance(network, nn.LSTM) else 1
        super().__init__(network.input_size, parts * network.hidden_size, config)
        self.network = network
        for name, weight in network.named_parameters():
            start_gates(weight, self.size) if "weight" in name else nn.init.zeros_(weight)
        if isinstance(network, nn.LSTM):
            open_forget_gate(network.get_parameter("bias_ih_l0"))

    def read(
        self, x: Tensor, state: Tensor, episodes: Episodes, z: Tensor | None, groups: Groups | None
    ) -> tuple[Tensor, Tensor]:
        first = self._parts(episodes.first_states(state))
        if episodes.are_whole:
            y, last = self.network(x, first)
            return y, self._joined(last)
        packed, last = self.network(PackedSequence(episodes.pack(x), torch.tensor(episodes.sizes)), first)
        return episodes.unpack(packed.data), episodes.last_states(self._joined(last))

    def _parts(self, state: Float[Tensor, "pieces state"]) -> Any:
        """As the kernels take a state: h, or (h, c), each (1, pieces, size)."""
        parts = tuple(part.unsqueeze(0).contiguous() for part in state.split(self.size, dim=1))
        return parts if isinstance(self.network, nn.LSTM) else parts[0]

    def _joined(self, parts: Any) -> Float[Tensor, "pieces state"]:
        return torch.cat(parts if isinstance(self.network, nn.LSTM) else (parts,), dim=2).squeeze(0)


def start_gates(weight: Float[Tensor, "gates in"], size: int) -> None:
    """The weights of each gate, (size, in), orthogonal by themselves."""
    for gate in weight.detach().split(size):
        nn.init.orthogonal_(gate)


def open_forget_gate(bias: Float[Tensor, " gates"]) -> None:
    """A bias of 1 for an LSTM's forget gate, the second of four: at 0 half of what it remembers would be lost with each
    timestep (Gers et al., 2000; Jozefowicz et al., 2015).
    """
    nn.init.ones_(bias.detach().chunk(4)[1])


class MiLstm(Core):
    """An LSTM whose gates take a multiplicative interaction of input and state, scaled by the context:

        a_t = (1 + γ(z_t)) ⊙ (V x_t + U h_{t−1} + m(x_t, h_{t−1})) + b
        c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g),  h_t = σ(o) ⊙ tanh(c_t)  with (i, f, g, o) = a_t

    where m is hᵀ𝕎x, or of rank R, P((A x) ⊙ (B h)), or α ⊙ (V x) ⊙ (U h), the multiplicative integration of Wu et al.,
    2016. γ, 𝕎, P and α start at zero, and at zero it is ``torch.nn.LSTM``.
    """

    columns: Int[Tensor, " multiplied"]
    """Where the gates that have the multiplicative term stand among all."""

    def __init__(self, features_dim: int, context_dim: int, config: MiLstmConfig) -> None:
        size = config.size
        super().__init__(features_dim, 2 * size, config)
        self.form = config.form
        self.main = Affine(features_dim, 4 * size, gain=0, bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * size))
        self.recur = Affine(size, 4 * size, gain=0, bias=False)
        for layer in (self.main, self.recur):
            start_gates(layer.weight.T, size)
        open_forget_gate(self.bias)
        scaled = config.scaled_by_context and context_dim > 0
        self.to_scale = Affine(context_dim, 4 * size, gain=0, bias=False) if scaled else None
        chosen = torch.tensor([gate in config.gates for gate in get_args(Gate)]).repeat_interleave(size)
        self.register_buffer("columns", chosen.nonzero().flatten(), persistent=False)
        multiplied = len(self.columns)
        match config.form:
            case "full":
                self.weight = nn.Parameter(torch.zeros(features_dim, size, multiplied))
            case "low_rank":
                self.factor_features = Affine(features_dim, config.rank, gain=1, bias=False)
                self.factor_state = Affine(size, config.rank, gain=1, bias=False)
                self.weight = nn.Parameter(torch.zeros(config.rank, multiplied))
            case "diagonal":
                self.weight = nn.Parameter(torch.zeros(multiplied))
            case _:
                assert_never(config.form)

    def read(
        self, x: Tensor, state: Tensor, episodes: Episodes, z: Tensor | None, groups: Groups | None
    ) -> tuple[Tensor, Tensor]:
        sizes, x = episodes.sizes, episodes.pack(x)
        main, scale = self.main(x), self._scale(z, groups, episodes)
        factor = self._factor(x, main)
        weight = self.weight.new_zeros(*self.weight.shape[:-1], len(self.bias))
        weight = weight.index_copy(-1, self.columns, self.weight)
        h, c = episodes.first_states(state).chunk(2, dim=1)
        outputs, ended = [], []
        for main_t, factor_t, scale_t in zip(main.split(sizes), factor.split(sizes), scale.split(sizes), strict=True):
            if len(main_t) < len(h):  # the shortest pieces have ended
                ended.append(torch.cat([h[len(main_t) :], c[len(main_t) :]], dim=1))
                h, c = h[: len(main_t)], c[: len(main_t)]
            recurrent = self.recur(h)
            taken = main_t + recurrent + self._multiply(weight, factor_t, h, recurrent)
            i, f, g, o = torch.addcmul(self.bias, scale_t, taken).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        last = torch.cat([torch.cat([h, c], dim=1), *reversed(ended)])
        return episodes.unpack(torch.cat(outputs)), episodes.last_states(last)

    def _factor(self, x: Tensor, main: Tensor) -> Float[Tensor, "steps factor"]:
        """What of m depends on the input alone."""
        match self.form:
            case "full":
                return x
            case "low_rank":
                return self.factor_features(x)
            case "diagonal":
                return main
            case _:
                assert_never(self.form)

    def _multiply(self, weight: Tensor, factor: Tensor, h: Tensor, recurrent: Tensor) -> Float[Tensor, "pieces gates"]:
        """m(x_t, h_{t−1})"""
        match self.form:
            case "full":
                return multiply_row_by_row(h, factor, weight)
            case "low_rank":
                return (factor * self.factor_state(h)) @ weight
            case "diagonal":
                return weight * factor * recurrent
            case _:
                assert_never(self.form)

    def _scale(self, z: Tensor | None, groups: Groups | None, episodes: Episodes) -> Float[Tensor, "steps gates"]:
        """1 + γ(z) of each packed timestep."""
        if self.to_scale is None:
            return self.bias.new_ones(()).expand(sum(episodes.sizes), len(self.bias))
        if z is None:
            raise ValueError("the context scales the gates, and none was given")
        scale = 1 + self.to_scale(z)
        of_each = scale if groups is None else scale.index_select(0, groups.index)
        return episodes.pack(of_each.unflatten(0, episodes.shape))


class InChunks(Core):
    """A memory that computes some timesteps at once: what it costs grows with their square."""

    CHUNK = 64

    def read(
        self, x: Tensor, state: Tensor, episodes: Episodes, z: Tensor | None, groups: Groups | None
    ) -> tuple[Tensor, Tensor]:
        outputs = []
        for begin in range(0, len(x), self.CHUNK):
            chunk = slice(begin, begin + self.CHUNK)
            y, state = self.read_chunk(x[chunk], state, Episodes(episodes.starts[chunk], episodes.device))
            outputs.append(y)
        return torch.cat(outputs), state

    @abstractmethod
    def read_chunk(
        self, x: Float[Tensor, "time batch features"], state: Float[Tensor, "batch state"], episodes: Episodes
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """What is read, and the state afterwards."""


class FastWeights(InChunks):
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

    def read_chunk(self, x: Tensor, state: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        # (T, N, 3·H·d) -> three of (N, H, T, d)
        query, key, v = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 1, 3, 0, 4)
        q, k = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        strength = torch.sigmoid(self.write_strength(x)).permute(1, 2, 0).unsqueeze(-1)  # (T, N, H) -> (N, H, T, 1)
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


class WindowAttention(InChunks):
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
                nn.Parameter(torch.zeros(config.heads, 1, config.size // config.heads)) for _ in range(2)
            )

    def read_chunk(self, x: Tensor, state: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
        steps, _ = episodes.shape
        before, count = (
            state[:, :-1].unflatten(1, (self.past, self.features_dim)).transpose(0, 1),
            state[:, -1].detach(),
        )
        age = episodes.age(count)
        seen = torch.cat([before, x])  # (L − 1 + T, N, X)
        distance = self.past + torch.arange(steps, device=x.device)[:, None] - torch.arange(len(seen), device=x.device)
        visible = (distance >= 0) & (distance <= age.clamp(max=self.past).T.unsqueeze(-1))  # (N, T, L − 1 + T)
        located = seen if self.relative else seen + self._numbers(age, count)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)  # (T, N, H·d) -> (N, H, T, d)
            for projected in (self.query(located[self.past :]), *self.key_value(located).chunk(2, dim=-1))
        )
        mask = torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf).unsqueeze(1)
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
        encoded = sinusoids(torch.arange(self.past + 1, device=query.device, dtype=query.dtype), self.size)
        learned = self.distance(encoded).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)  # (L, H·d) -> (H, d, L)
        scores = (query + self.distance_bias) @ learned / math.sqrt(query.shape[-1])
        return scores.gather(-1, distance.clamp(0, self.past).expand(*scores.shape[:3], -1))

    def _numbers(
        self, age: Float[Tensor, "time batch"], count: Float[Tensor, " batch"]
    ) -> Float[Tensor, "seen batch features"]:
        """The encoding of each timestep's number in its episode."""
        before = count - torch.arange(self.past, 0, -1, device=count.device).unsqueeze(1)
        return sinusoids(torch.cat([before, age]), self.features_dim)

    def _state(self, seen: Float[Tensor, "past batch features"], count: Float[Tensor, " batch"]) -> Tensor:
        """The inputs before, as many as the episode had."""
        is_of_episode = torch.arange(self.past, 0, -1, device=count.device).unsqueeze(1) <= count
        kept = seen.masked_fill(~is_of_episode.unsqueeze(-1), 0)
        return torch.cat([kept.transpose(0, 1).flatten(1), count.unsqueeze(1)], dim=1)


def build_core(config: RecurrentConfig, features_dim: int, context_dim: int) -> Core:
    """The core that ``config`` names."""
    match config:
        case LstmConfig():
            return Recurrent(nn.LSTM(features_dim, config.size), config)
        case GruConfig():
            return Recurrent(nn.GRU(features_dim, config.size), config)
        case MiLstmConfig():
            return MiLstm(features_dim, context_dim, config)
        case FastWeightsConfig():
            return FastWeights(features_dim, config)
        case AttentionMemoryConfig():
            return WindowAttention(features_dim, config)
        case _:
            assert_never(config)
