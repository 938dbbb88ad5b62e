"""Observation encoders.

Image encoders have two stages, cells and then a vector, so that a fusion can act in between.

Shapes in these modules: B rows, H height, W width, C channels, P = H * W cells.
"""

from mirl.policies.encoders.build import build_encoder
from mirl.policies.encoders.cell_layouts import code_sizes, image_layout, to_channels_last
from mirl.policies.encoders.cell_table import CellTable, gather_rows
from mirl.policies.encoders.cells import CellsEncoder, GridEncoder, ImageEncoder, cells_key
from mirl.policies.encoders.combined import CombinedEncoder
from mirl.policies.encoders.encoder import (
    Encoder,
    FuseMap,
    flatten_keys,
    flattened_dim,
    in_float32,
)
from mirl.policies.encoders.grid import GridCells, default_attributes
from mirl.policies.encoders.image import ImageCells
from mirl.policies.encoders.space_kinds import Kind, is_text, kind_of, reads_pixels, space_text
from mirl.policies.encoders.text import TextEncoder
from mirl.policies.encoders.vector import VectorEncoder

__all__ = [
    "CellTable",
    "CellsEncoder",
    "CombinedEncoder",
    "Encoder",
    "FuseMap",
    "GridCells",
    "GridEncoder",
    "ImageCells",
    "ImageEncoder",
    "Kind",
    "TextEncoder",
    "VectorEncoder",
    "build_encoder",
    "cells_key",
    "code_sizes",
    "default_attributes",
    "flatten_keys",
    "flattened_dim",
    "gather_rows",
    "image_layout",
    "in_float32",
    "is_text",
    "kind_of",
    "reads_pixels",
    "space_text",
    "to_channels_last",
]
