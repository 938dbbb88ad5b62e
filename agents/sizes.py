"""Batches of few sizes: a processor's kernels are made anew for each size of matrices, and kept."""

SIZES = 16
"""So many sizes a batch may have."""


def missing_rows(count: int, most: int) -> int:
    """How many rows to repeat, so that ``count`` becomes one of ``SIZES`` sizes up to ``most``."""
    return -count % -(-most // SIZES)
