"""Networks: encoders of what is seen and of what is asked, the interactions that fuse them, and SB3's adapters."""

from mirl.policies.extractor import FusionExtractor, count_parameters
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion
from mirl.policies.policy import FusionPolicy
from mirl.policies.recurrent import RecurrentFusionPolicy
from mirl.policies.specialize import specialize, specialize_extractor

__all__ = [
    "Fusion",
    "FusionExtractor",
    "FusionPolicy",
    "RecurrentFusionPolicy",
    "build_fusion",
    "build_map_fusion",
    "count_parameters",
    "specialize",
    "specialize_extractor",
]
