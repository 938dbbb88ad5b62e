"""Fusions: the family of multiplicative interactions y = f(x, z) of features x and a context z.

At initialization the output of every fusion is independent of the context: either the weights that
multiply z start at zero, or the projection after them does. The main path V starts orthogonal.

Shapes in these modules: B rows, P positions (cells or tokens) of a row, G distinct contexts,
X features, Z context features, O outputs.

References:
    Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.
"""

from mirl.policies.fusions.adapter import Adapter
from mirl.policies.fusions.affine import RELU_GAIN, Affine, as_linear
from mirl.policies.fusions.attention import AttentionMask, CrossAttention
from mirl.policies.fusions.bilinear import Bilinear, Hyper, LowRank
from mirl.policies.fusions.build import build_fusion, build_map_fusion
from mirl.policies.fusions.concat import Concat
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.fusions.metric import MetricSimilarity
from mirl.policies.fusions.modulation import Film, Gate
from mirl.policies.fusions.product import ProductSimilarity

__all__ = [
    "RELU_GAIN",
    "Adapter",
    "Affine",
    "AttentionMask",
    "Bilinear",
    "Concat",
    "CrossAttention",
    "Film",
    "Fusion",
    "Gate",
    "Hyper",
    "LowRank",
    "MetricSimilarity",
    "ProductSimilarity",
    "as_linear",
    "build_fusion",
    "build_map_fusion",
    "per_row",
]
