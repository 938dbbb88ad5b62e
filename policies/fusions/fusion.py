"""Base class of the fusions y = f(x, z), and a function that they share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import BaseFusionConfig
from mirl.configs.parts import Method, Part, explain_own_errors, own_place
from mirl.policies.features import each_word
from mirl.policies.fusions.affine import as_linear
from mirl.policies.grouped_matmul import ContextGroups


class Fusion(nn.Module, Part, ABC):
    """Base class of the fusions y = f(x, z).

    Every fusion is a class with a ``Config``, built by ``(features_dim, context_dim, out_dim,
    config, gain)``, where ``gain`` is the gain of V x + b, the map as which the fusion starts. A
    class that sets ``uses_attributes`` is built with one more argument, ``attribute_dims``: the
    number of features of each attribute of a cell, which are the first ones of x; empty if there
    are none. A class that sets ``reads_words`` gets the words of each context, (G, W, Z), as z.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.

    Examples:
        A custom fusion defines ``interact``; with a ``Config``, it can also be chosen by name
        (``docs/extending/fusion.md``):

        >>> import torch
        >>> from mirl.policies.fusions import Fusion, per_row
        >>> class Scale(Fusion):
        ...     def interact(self, x, z, groups):
        ...         return x * per_row(z, groups)
        >>> scale = Scale(features_dim=2, context_dim=2, out_dim=2)
        >>> scale(torch.ones(2, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[3.0, 4.0], [0.0, 1.0]]
    """

    Config: ClassVar[type[BaseFusionConfig]] = BaseFusionConfig
    explained_methods: ClassVar[Mapping[str, Method]] = {
        "forward": Method(
            "is given (features, context, index=None) and must return the fused features "
            "(*B, O); a fusion defines interact, which needs no other forward",
            Tensor,
        ),
        "specialize": Method(
            "is given (z) with z (1, Z) in float64, and must return a torch module of x",
            nn.Module,
        ),
    }
    map_class: ClassVar[type["Fusion"] | None] = None
    """Class that fuses a feature map instead of this class; None to use this class."""
    is_positionwise = True
    """True if each position is fused independently of the other positions."""
    uses_attributes: ClassVar[bool] = False
    """True if the constructor takes ``attribute_dims``."""
    reads_words: ClassVar[bool] = False
    """True if z is given as (G, W, Z), one vector per word, W = 1 for a context other than text."""
    similarities_dim = 0
    """S, the number of each position's similarities with the context, for the heads; 0 for none."""

    def __init__(self, features_dim: int, context_dim: int, out_dim: int) -> None:
        super().__init__()
        self.features_dim = features_dim
        self.context_dim = context_dim
        self.out_dim = out_dim

    def forward(
        self,
        features: Float[Tensor, "*batch features"],
        context: Float[Tensor, "*rows context"],
        index: ContextGroups | Int[Tensor, " batch"] | None = None,
        words: Float[Tensor, "contexts words context"] | None = None,
    ) -> Float[Tensor, "*batch out"]:
        """Fuse the features with the context.

        With ``index``, everything that depends only on the context is computed once for each of
        the G distinct contexts. Nothing is broadcast silently.

        Args:
            features: (*B, X), one vector per row, or (B, *positions, X), a map per row.
            context: (*B, Z), one context per row, which is shared by all positions of the row; or
                (G, Z), the distinct contexts, together with ``index``.
            index: (B,), for each row the index of its context in ``context``, or the
                ``ContextGroups`` of these indices.
            words: (B, W, Z) or (G, W, Z), the vectors of the words of each context; None for a
                context that is not a text. Only a fusion with ``reads_words`` uses them.

        Returns:
            The fused features, (*B, O) or (B, *positions, O).

        Raises:
            ValueError: if the sizes do not fit.
            ConfigError: if ``interact`` of a custom class returns another shape.
        """
        if isinstance(index, Tensor):
            groups: ContextGroups | None = ContextGroups(index, len(context))
        else:
            groups = index
        # without an index, only a map has more axes than its contexts
        has_positions = features.ndim != context.ndim or groups is not None
        rows = features.shape[:1] if has_positions else features.shape[:-1]
        self._check_shapes(features, context, groups, rows)
        if has_positions:
            # (B, *positions, X) -> (B, P, X)
            # len(features) would make the size of the batch a constant of an exported program
            x = features.reshape(features.shape[0], -1, self.features_dim)
            z = context
        else:
            # (*B, X) -> (B, 1, X)
            x = features.reshape(-1, 1, self.features_dim)
            z = context.reshape(-1, self.context_dim)
        z = self.choose_context(z, words)
        shape = (*x.shape[:2], self.out_dim)
        with explain_own_errors(
            type(self),
            "interact",
            lambda: (
                f"is given (x, z, groups) with x {tuple(x.shape)} and z {tuple(z.shape)}, and must "
                f"return (B, P, O) = {shape}; apply per_row(…, groups) to what depends on z"
            ),
        ):
            y = self.interact(x, z, groups)
        returned = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        if returned != shape:
            raise ConfigError(
                f"{type(self).__name__}.interact must return (B, P, O) = {shape}, got {returned}"
                f"{own_place(type(self), 'interact')}"
            )
        # (B, P, O) -> (*B, O) or (B, *positions, O)
        return y.reshape(*features.shape[:-1], self.out_dim)

    def choose_context(
        self,
        values: Float[Tensor, "G Z"],
        words: Float[Tensor, "G W Z"] | None,
    ) -> Float[Tensor, "G *chosen Z"]:
        """Return the z of ``interact``: the contexts, or their words if the class reads words.

        Args:
            values: contexts, (G, Z).
            words: the words of each, (G, W, Z); None if they are not texts.

        Returns:
            (G, Z), or (G, W, Z) for a class with ``reads_words``.
        """
        if not self.reads_words:
            return values
        return each_word(values, words)

    def _check_shapes(
        self,
        features: Tensor,
        context: Tensor,
        groups: ContextGroups | None,
        rows: torch.Size,
    ) -> None:
        n_contexts = rows if groups is None else context.shape[:1]
        expected = (*n_contexts, self.context_dim)
        if features.shape[-1] != self.features_dim or tuple(context.shape) != expected:
            raise ValueError(
                f"{type(self).__name__} expects features (..., {self.features_dim}) and context "
                f"{expected}, got {tuple(features.shape)} and {tuple(context.shape)}"
            )
        if groups is not None and tuple(groups.index.shape) != rows:
            raise ValueError(
                f"index must give one context per row, shape {tuple(rows)}, "
                f"got {tuple(groups.index.shape)}"
            )

    def interact_with_similarities(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> tuple[Float[Tensor, "B P O"], Float[Tensor, "B P S"]]:
        """Compute f(x, z) and the similarities of each position with its context.

        Only fusions with a ``similarities_dim`` define it. At site "map" the heads then receive the
        similarities of all cells instead of a fusion with the last hidden layer.

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            The fused features, (B, P, O), and the similarities, (B, P, S).
        """
        raise NotImplementedError(f"{type(self).__name__} has no similarities")

    @abstractmethod
    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute f(x, z).

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own, with G = B.

        Returns:
            The fused features, (B, P, O).
        """

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the factors by which the context acts on the features, for ``inside=true``.

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            Scales, gates, weights or similarities by name, of any shape; empty for a class that has
            none.
        """
        return {}

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the fusion for one fixed context, as a module y = f(x) of x only.

        It is called by ``mirl.policies.specialize`` and by the export, on a copy of the fusion in
        float64 on the CPU, without gradients. A fusion that is used with neither can omit it.

        Args:
            z: the encoded context in float64, (1, Z); (1, W, Z) for a class with ``reads_words``.

        Returns:
            A module that maps x of shape (B, X) or (B, P, X) to y, in float64.

        Raises:
            ConfigError: if the class does not define this method.
        """
        name = f"{type(self).__module__}:{type(self).__qualname__}"
        raise ConfigError(
            f"{name} has no form for one context alone; to export it, give it a method "
            "specialize(self, z) that returns a module of x (if y is affine in x, "
            "self.specialize_affine(z))"
        )

    def specialize_affine(self, z: Float[Tensor, "1 context"]) -> nn.Linear:
        """Specialize a fusion whose output is affine in x: the sum of its terms is one affine map.

        Args:
            z: the encoded context in float64, (1, Z).

        Returns:
            The linear layer y = W x + b, in float64.
        """
        return as_linear(lambda x: self(x.unsqueeze(0), z).squeeze(0), self.features_dim)


def per_row(
    per_context: Float[Tensor, "G D"], groups: ContextGroups | None
) -> Float[Tensor, "B 1 D"]:
    """Copy values that were computed once per distinct context to the rows with that context.

    Args:
        per_context: (G, D), one vector per distinct context.
        groups: the context of each row; None if every row has its own.

    Returns:
        (B, 1, D), one vector per row, with an axis that broadcasts over positions.
    """
    if groups is None:
        # (B, D) -> (B, 1, D)
        return per_context.unsqueeze(1)
    table = per_context
    if table.dtype == torch.bfloat16:
        table = table.float()  # the gradient of index_select is a long sum
    rows = table.index_select(0, groups.index).to(per_context.dtype)
    # (B, D) -> (B, 1, D)
    return rows.unsqueeze(1)
