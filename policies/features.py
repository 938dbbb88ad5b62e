"""Values that are passed between the parts of a network: contexts, distinct rows, and features."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirl.policies.grouped_matmul import ContextGroups

GOLDEN_RATIO_64 = -7046029254386353131
"""2⁶⁴ divided by the golden ratio, as a signed 64-bit integer."""
HASH_MULTIPLIER = -4658895280553007687
"""Odd 64-bit multiplier of the second round of the hash."""


class Context(NamedTuple):
    """Encoded contexts of a batch, each distinct context once.

    ``values`` may end with padding contexts, which no row has.

    Examples:
        Two distinct contexts of five rows:

        >>> import torch
        >>> from mirl.policies.features import Context
        >>> from mirl.policies.grouped_matmul import ContextGroups
        >>> groups = ContextGroups(torch.tensor([0, 1, 1, 0, 1]), count=2)
        >>> context = Context(torch.tensor([[1.0], [2.0]]), groups)
        >>> context.per_row().flatten().tolist()
        [1.0, 2.0, 2.0, 1.0, 2.0]
    """

    values: Float[Tensor, "rows context"]
    """Distinct contexts, (G, Z); without ``groups`` one per row, (B, Z)."""
    groups: ContextGroups | None
    """Context of each row; None if every row has its own."""
    words: Float[Tensor, "rows words context"] | None = None
    """Vectors of the words of each context, (G, W, Z), or (B, W, Z) without ``groups``. The vector
    of a word does not depend on the other words, and shorter texts are padded with zeros. None for
    a context that is not a text."""

    def per_row(self) -> Float[Tensor, "batch context"]:
        """Return the context of every row, (B, Z)."""
        if self.groups is None:
            return self.values
        return self.values.index_select(0, self.groups.index)

    def select(self, index: Int[Tensor, " rows"]) -> "Context":
        """Return a context per row, without groups.

        Args:
            index: (rows,), for each row an index into ``values``.
        """
        ungrouped = self._replace(groups=None)
        return ungrouped.map(lambda vectors: vectors.index_select(0, index))

    def ungrouped(self) -> "Context":
        """Return the contexts of all rows, one per row, without groups."""
        if self.groups is None:
            return self
        return self.select(self.groups.index)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Context":
        """Apply a function to the contexts and, if they are texts, to their words.

        Args:
            function: function of vectors, (G, Z) or (G, W, Z).
        """
        words = self.words
        if words is not None:
            words = function(words)
        return self._replace(values=function(self.values), words=words)

    def take(self, rows: Int[Tensor, " taken"], *, keep_order: bool = True) -> "Context":
        """Return the contexts of some of the rows.

        Args:
            rows: (taken,), indices of the rows.
            keep_order: whether ``rows`` is non-decreasing, so that sorted rows stay sorted.
        """
        if self.groups is None:
            return self.select(rows)
        # all distinct contexts are kept, even those that none of these rows has
        return self._replace(groups=self.groups.take(rows, keep_order=keep_order))


def each_word(
    values: Float[Tensor, "rows context"], words: Float[Tensor, "rows words context"] | None
) -> Float[Tensor, "rows *words context"]:
    """Return the words of contexts; a context that is not a text counts as one word.

    Args:
        values: contexts, (G, Z).
        words: their words, (G, W, Z); None if they are not texts.

    Returns:
        The words, (G, W, Z).
    """
    return values.unsqueeze(1) if words is None else words


def is_word(words: Float[Tensor, "rows words context"]) -> Bool[Tensor, "rows words 1"]:
    """Return True for each word, and False for the zeros after the last one.

    Args:
        words: the words of contexts, (G, W, Z).

    Returns:
        (G, W, 1).
    """
    return words.any(-1, keepdim=True)


class UniqueRows(NamedTuple):
    """One key of a batch of observations as its distinct rows and an index.

    Examples:
        >>> import torch
        >>> from mirl.policies.features import unique_rows
        >>> missions = torch.tensor([[4, 7], [4, 9], [4, 7]])
        >>> distinct = unique_rows(missions)
        >>> distinct.rows.shape
        torch.Size([2, 2])
        >>> torch.equal(distinct.rows[distinct.groups.index], missions)
        True
    """

    rows: Int[Tensor, "groups *shape"]
    """The distinct rows."""
    groups: ContextGroups
    """Index of the distinct row that each row of the batch equals."""


Observations = Mapping[str, Tensor | UniqueRows]
"""A batch of observations after SB3's preprocessing; the context may be given as ``UniqueRows``."""


def unique_rows(rows: Int[Tensor, "batch length"]) -> UniqueRows:
    """Find the distinct rows of a batch.

    Rows are compared by a 64-bit multiplicative hash, which is much cheaper than the sorting of
    whole rows in ``torch.unique(dim=0)``. The result is checked; after a collision
    ``torch.unique(dim=0)`` is used.

    Args:
        rows: (B, length), integers.

    Returns:
        The distinct rows and the index of each row among them.
    """
    columns = torch.arange(rows.shape[1], device=rows.device, dtype=torch.int64)
    # one factor per column, because the order of the numbers matters; int64 products wrap around
    odd_factors = (columns + 1) * GOLDEN_RATIO_64 | 1
    mixed = (rows.long() + 1) * odd_factors
    # without the XOR the sum would be linear in the numbers, and similar rows could collide
    hashes = (mixed ^ (mixed >> 29)).mul(HASH_MULTIPLIER).sum(1)
    _, index = torch.unique(hashes, return_inverse=True)
    n_groups = int(index.max()) + 1
    # any row of a group can represent it
    representatives = torch.empty(n_groups, dtype=torch.int64, device=rows.device)
    representatives.index_copy_(0, index, torch.arange(len(rows), device=rows.device))
    distinct = rows.index_select(0, representatives)
    if not torch.equal(distinct.index_select(0, index), rows):
        distinct, index = torch.unique(rows, dim=0, return_inverse=True)
    return UniqueRows(distinct, ContextGroups(index, len(distinct)))


class Features(NamedTuple):
    """Features of a batch of observations, as the heads of a policy take them.

    Examples:
        >>> import torch
        >>> from mirl.policies.features import Context, Features
        >>> context = Context(torch.zeros(5, 3), groups=None)
        >>> features = Features(torch.zeros(5, 8), context, task=torch.arange(5))
        >>> taken = features.index_select(0, torch.tensor([1, 4]))
        >>> taken.vector.shape, taken.task.tolist()
        (torch.Size([2, 8]), [1, 4])
    """

    vector: Float[Tensor, "batch features"]
    """Feature vectors."""
    context: Context
    """Encoded contexts."""
    task: Int[Tensor, " batch"] | None = None
    """Index of each row's task, if the observation has the key ``task``."""
    action_mask: Bool[Tensor, "batch actions"] | None = None
    """True for each available action, if the observation has the key ``action_mask``."""
    similarities: Float[Tensor, "batch similarities"] | None = None
    """Softmax over the cells of their similarities with the context, flattened; None if the heads
    use none."""

    def index_select(
        self, dim: int, rows: Int[Tensor, " taken"], *, keep_order: bool = True
    ) -> "Features":
        """Return the features of some of the rows, as ``Tensor.index_select`` does.

        Args:
            dim: 0, the axis of the rows.
            rows: (taken,), indices of the rows.
            keep_order: whether ``rows`` is non-decreasing, so that sorted rows stay sorted.
        """
        task = self.task
        if task is not None:
            task = task.index_select(dim, rows)
        mask = self.action_mask
        if mask is not None:
            mask = mask.index_select(dim, rows)
        similarities = self.similarities
        if similarities is not None:
            similarities = similarities.index_select(dim, rows)
        return Features(
            vector=self.vector.index_select(dim, rows),
            context=self.context.take(rows, keep_order=keep_order),
            task=task,
            action_mask=mask,
            similarities=similarities,
        )


def join_similarities(
    hidden: Float[Tensor, "batch hidden"],
    similarities: Float[Tensor, "batch similarities"] | None,
) -> Float[Tensor, "batch inputs"]:
    """Return the inputs of the heads: a hidden layer, and the similarities if there are any.

    Args:
        hidden: last hidden layer, (B, H).
        similarities: similarities of all cells with the context, (B, S); None if there are none.
    """
    if similarities is None:
        return hidden
    return torch.cat([hidden, similarities.to(hidden.dtype)], dim=1)
