"""Intermediate values of a network: contexts, distinct rows of a batch, and features for the heads."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mirl.policies.grouped_matmul import ContextGroups


class Context(NamedTuple):
    """Distinct contexts, and for each row of the batch which of them is its own; without ``groups``, one per row.

    After the contexts that ``groups`` counts others may follow, which belong to no row.
    """

    values: Float[Tensor, "rows context"]
    groups: ContextGroups | None

    def per_row(self) -> Float[Tensor, "batch context"]:
        """The context of every row."""
        return (
            self.values if self.groups is None else self.values.index_select(0, self.groups.index)
        )

    def take(self, rows: Int[Tensor, " taken"], *, keep_order: bool = True) -> "Context":
        """The context of some rows, which do not descend unless it is said."""
        if self.groups is None:
            return self._replace(values=self.values.index_select(0, rows))
        return self._replace(groups=self.groups.take(rows, keep_order=keep_order))


class UniqueRows(NamedTuple):
    """A column of an observation as its distinct rows, and for each row of the batch which of them it is."""

    rows: Int[Tensor, "groups *shape"]
    groups: ContextGroups


def unique_rows(rows: Int[Tensor, "batch length"]) -> UniqueRows:
    """The distinct rows of a batch.

    Rows are compared by a 64-bit multiplicative hash, which is far cheaper than ``torch.unique(dim=0)`` sorting whole
    rows; the result is checked, and a collision falls back on it.
    """
    powers = torch.arange(rows.shape[1], device=rows.device, dtype=torch.int64)
    odd = (powers + 1) * -7046029254386353131 | 1  # 2^64 / golden ratio
    mixed = (rows.long() + 1) * odd
    hashed = (mixed ^ (mixed >> 29)).mul(-4658895280553007687).sum(1)
    _, index = torch.unique(hashed, return_inverse=True)
    groups = int(index.max()) + 1
    first = torch.empty(groups, dtype=torch.int64, device=rows.device).index_copy_(
        0, index, torch.arange(len(rows), device=rows.device)
    )
    distinct = rows.index_select(0, first)
    if not torch.equal(distinct.index_select(0, index), rows):
        distinct, index = torch.unique(rows, dim=0, return_inverse=True)
    return UniqueRows(distinct, ContextGroups(index, len(distinct)))


class Features(NamedTuple):
    """What a policy's heads read."""

    vector: Float[Tensor, "batch features"]
    context: Context
    task: Int[Tensor, " batch"] | None = None
    """The number of each row's task, where the observation says it."""
    action_mask: Bool[Tensor, "batch actions"] | None = None
    """Which actions there are, where the observation says it."""

    def index_select(
        self, dim: int, rows: Int[Tensor, " taken"], *, keep_order: bool = True
    ) -> "Features":
        """As a tensor's; ``dim`` is 0, and the rows do not descend unless it is said."""
        return Features(
            self.vector.index_select(dim, rows),
            self.context.take(rows, keep_order=keep_order),
            None if self.task is None else self.task.index_select(dim, rows),
            None if self.action_mask is None else self.action_mask.index_select(dim, rows),
        )
