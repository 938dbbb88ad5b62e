"""Batches of few sizes: a processor's kernels are made anew for each size of matrices, and kept."""

import numpy as np

from mirl.agents.columns import Rows

SIZES = 16
"""So many sizes a batch may have."""


def padded(rows: Rows, most: int) -> Rows:
    """``rows``, the last of them repeated, so that they have one of ``SIZES`` sizes up to ``most``.

    Where there are more, in the same steps on.
    """
    return np.pad(rows, (0, -len(rows) % -(-most // SIZES)), mode="edge")
