"""Networks: encoders, fusions of observation and context, and policies for Stable-Baselines3."""

from mirl.policies.extractor import FusionExtractor, count_parameters
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion
from mirl.policies.policy import FusionPolicy
from mirl.policies.recurrent import RecurrentFusionPolicy
from mirl.policies.specialize import specialize, specialize_extractor
from mirl.policies.text.sentence_context import SentenceContext

__all__ = [
    "Fusion",
    "FusionExtractor",
    "FusionPolicy",
    "RecurrentFusionPolicy",
    "SentenceContext",
    "build_fusion",
    "build_map_fusion",
    "count_parameters",
    "specialize",
    "specialize_extractor",
]
