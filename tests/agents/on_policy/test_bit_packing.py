"""Small integers are packed several to a byte."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mirl.agents.on_policy.bit_packing import BitPacking
from mirl.agents.on_policy.storage import build_column

close = torch.testing.assert_close
CPU = torch.device("cpu")


def test_minigrid_view_takes_56_bytes(door: spaces.Dict) -> None:
    """MiniGrid's view, 49 cells of 4 + 3 + 2 bits, takes 56 bytes."""
    assert (
        build_column("image", door["image"], (1, 1), CPU).nbytes == 56
    )  # 49 cells of 4 + 3 + 2 bits


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 10, (4,), np.uint8), True),
        (spaces.Box(0, 255, (4,), np.uint8), False),
        (spaces.Box(0, 255, (4,), np.int64), True),
        (spaces.Box(0, 256, (4,), np.int64), False),
        (spaces.Box(-1, 10, (4,), np.int8), False),
        (spaces.Box(0, 1, (4,), np.float32), False),
        (spaces.Discrete(3), False),
    ],
    ids=str,
)
def test_supported_spaces(space: spaces.Space[Any], expected: bool) -> None:
    """Packing is for integers in [0, 255] whose size it at least halves."""
    assert BitPacking.supports(space) is expected


@pytest.mark.parametrize("high", [[1, 1, 1], [1, 3, 7, 15, 100, 255], [255] * 3, [0, 0]])
def test_unpacking_undoes_packing(high: list[int]) -> None:
    space = spaces.Box(np.zeros(len(high), np.int64), np.array(high), dtype=np.int64)
    packing = BitPacking(space, CPU)
    values = np.random.default_rng(0).integers(0, space.high, (9, len(high)), endpoint=True)
    packed = packing.pack(values)
    assert packed.shape == (9, packing.n_bytes)
    close(packing.unpack(torch.from_numpy(packed)), torch.from_numpy(values), rtol=0, atol=0)
