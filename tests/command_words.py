"""Valid and invalid command-line arguments, as strategies for hypothesis."""

from hypothesis import strategies as st

from mirl.configs.commands.words import option_names
from mirl.configs.compose import GROUPS, presets
from mirl.configs.schema import EvalConfig, TrainConfig

KEYS = sorted(set(option_names([TrainConfig])))
SYMBOLS = list("[]{}()$\\'\",:=+~@.%!#?*")
INTERPOLATIONS = [
    "${seed}",
    "${oc.env:NOT_THERE}",
    "${hydra:runtime.cwd}",
    "${agent}",
    "${oc.decode:'['}",
    "${oc.select:task}",
]
LITERALS = ["???", "null", "true", "nan", "-1", "1e999", "1,2", "[1,2]", "{kind: film}"]
SWEEPS = ["[{name: a}]", "range(1,4)", "int(x)", "choice(a,b)", "glob(*)", "extend_list(1)"]
NAMES = ["-v0", "film", "ppo", " ", "\t", "é", "..", "/"]
PIECES = [*SYMBOLS, *INTERPOLATIONS, *LITERALS, *SWEEPS, *NAMES]
"""Pieces with a meaning to Hydra or YAML, or of valid names; joined, they form values."""
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NUMBERS = st.one_of(st.integers(-1, 300), st.floats(0, 2), st.booleans()).map(str)
VALUES = st.one_of(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), NUMBERS, TEXTS)
CHOICES = st.sampled_from([f"{group}={preset}" for group in GROUPS for preset in presets(group)])
TRAIN_WORDS = st.one_of(CHOICES, st.builds("{}={}".format, st.sampled_from(KEYS), VALUES), TEXTS)
EVAL_WORDS = st.builds("{}={}".format, st.sampled_from(sorted(EvalConfig.model_fields)), VALUES)
