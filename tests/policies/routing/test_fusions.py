"""Choice of the fusion and its sites by what is seen and what is asked."""

from typing import Any, get_args

import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from routing_spaces import dict_of
from space_kinds import ASKED, SEEN
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_goal_envs import SampledEnv

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AutoFusionConfig,
    BaseFusionConfig,
    BilinearConfig,
    FilmConfig,
    FusionConfig,
    GateConfig,
    GridEncoderConfig,
    LowRankConfig,
    NetworkConfig,
    ProductConfig,
    SentenceContextConfig,
    Site,
    network_config,
)
from mirl.envs.texts.codec import TextSpace
from mirl.policies import FusionExtractor, FusionPolicy
from mirl.policies.off_policy import FusionSACPolicy
from mirl.policies.routing import fusions, resolve_network
from mirl.policies.routing.fusions import CHOICES, Asked, Choice, Seen, kind_asked, kind_seen

PRODUCT = ProductConfig(products=2, main_rank=4)
SITES: tuple[tuple[Site, ...], ...] = (
    ("map",),
    ("heads",),
    ("vector",),
    ("map", "heads"),
    ("heads", "map"),
    ("map", "vector", "heads"),
)


@pytest.fixture
def fixed_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the table of the package, which measurements change."""
    table = {
        ("codes", "words"): Choice(PRODUCT, ("map", "heads")),
        ("vector", "task_id"): Choice(BilinearConfig(), ("vector", "heads")),
    }
    monkeypatch.setattr(fusions, "CHOICES", table)
    monkeypatch.setattr(fusions, "ELSEWHERE", BilinearConfig())


def resolved(*keys: str, has_heads: bool = True, **options: Any) -> NetworkConfig:
    network = network_config(**options)
    return resolve_network(network, dict_of(*keys), move_map_site=True, has_heads=has_heads)


def kinds(network: NetworkConfig) -> tuple[Seen, Asked]:
    encoder: Any = network.encoder
    context: Any = network.context
    return kind_seen(encoder), kind_asked(context)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("grid", "mission"), ("codes", "words")),
        (("grid", "direction", "mission", "task"), ("codes", "words")),
        (("grid", "mission", "desired_goal"), ("codes", "words")),
        (("grid", "task"), ("codes", "task_id")),
        (("grid", "desired_goal"), ("codes", "goal")),
        (("grid", "desired_goal", "task"), ("codes", "goal")),
        (("pixels", "mission"), ("map", "words")),
        (("pixels", "grid", "mission"), ("map", "words")),
        (("pixels", "task"), ("map", "task_id")),
        (("pixels", "desired_goal"), ("map", "goal")),
        (("observation", "mission"), ("vector", "words")),
        (("observation", "task"), ("vector", "task_id")),
        (("observation", "desired_goal"), ("vector", "goal")),
    ],
    ids=str,
)
def test_choice_is_that_of_the_table(keys: tuple[str, ...], expected: tuple[Seen, Asked]) -> None:
    """The kinds of what is seen and asked follow from the spaces, the choice from the kinds."""
    network = resolved(*keys)
    assert kinds(network) == expected
    assert (network.fusion, network.sites) == CHOICES[expected]
    assert network.is_resolved


def test_table_has_every_pair_of_kinds() -> None:
    pairs = [(seen, asked) for seen in get_args(Seen) for asked in get_args(Asked)]
    assert sorted(CHOICES) == sorted(pairs)
    for (seen, _), choice in CHOICES.items():
        assert not ("map" in choice.sites and seen == "vector")


def test_sentences_are_words() -> None:
    assert kind_asked(SentenceContextConfig()) == "words"


@pytest.mark.parametrize("encoder", [{"attributes": 0}, {"channels": 24}], ids=str)
def test_codes_without_attributes_are_a_map(encoder: dict[str, int]) -> None:
    """``product`` needs cells whose attributes have channels of their own."""
    network = resolved("grid", "mission", encoder=GridEncoderConfig.model_validate(encoder))
    assert kinds(network) == ("map", "words")


@given(st.sampled_from(get_args(FusionConfig)), st.sampled_from((None, *SITES)))
def test_given_fusion_stays(config: type[BaseFusionConfig], sites: tuple[Site, ...] | None) -> None:
    """A fusion that is given is kept, and so are given sites; else they follow the feature map."""
    fusion = config()
    heads: tuple[Site, ...] = ("heads",) if config.fits_heads else ()
    on_map = resolved("grid", "mission", fusion=fusion, sites=sites)
    assert (on_map.fusion, on_map.sites) == (fusion, sites or ("map", *heads))
    on_vector = resolved("observation", "mission", fusion=fusion, sites=sites)
    assert on_vector.fusion == fusion
    if sites is None:
        assert on_vector.sites == ("vector", *heads)


def test_gate_leaves_out_the_heads() -> None:
    """A factor between 0 and 1 cannot reverse what a head prefers."""
    assert resolved("grid", "mission", fusion=GateConfig()).sites == ("map",)


@pytest.mark.usefixtures("fixed_table")
@pytest.mark.parametrize("sites", SITES, ids=str)
def test_choice_is_for_its_sites(sites: tuple[Site, ...]) -> None:
    """At sites that are not those of the table, the fusion is the general one."""
    network = resolved("grid", "mission", sites=sites)
    is_measured = set(sites) == {"map", "heads"}
    assert network.fusion == (PRODUCT if is_measured else BilinearConfig())
    assert network.sites == sites


@pytest.mark.usefixtures("fixed_table")
def test_extractor_has_no_heads() -> None:
    """Without heads the choice is another one, because `product` is slow on the map alone."""
    network = resolved("grid", "mission", has_heads=False)
    assert (network.fusion, network.sites) == (BilinearConfig(), ("map",))
    assert resolved("observation", "task", has_heads=False).sites == ("vector",)
    extractor = FusionExtractor(dict_of("grid", "mission"))
    assert extractor.network.fusion == BilinearConfig()
    assert extractor.network.sites == ("map",)


@pytest.mark.usefixtures("fixed_table")
@pytest.mark.parametrize(
    ("keys", "options", "expected"),
    [
        (("grid", "mission"), {"rank": 8}, ProductConfig(products=2, main_rank=4, rank=8)),
        (("grid", "mission"), {"products": 2}, ProductConfig(products=2, main_rank=4)),
        (("observation", "task"), {"products": 2}, ProductConfig(products=2)),
        (("observation", "task"), {"products": 2, "rank": 8}, ProductConfig(products=2, rank=8)),
    ],
    ids=str,
)
def test_option_goes_to_its_fusion(
    keys: tuple[str, ...], options: dict[str, Any], expected: BaseFusionConfig
) -> None:
    """An option goes to the chosen fusion, or chooses the only one that has it."""
    network = resolved(*keys, fusion=AutoFusionConfig(options=options))
    assert network.fusion == expected
    assert network.sites == (("map", "heads") if "grid" in keys else ("vector", "heads"))


@pytest.mark.usefixtures("fixed_table")
@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        (
            ("observation", "task"),
            {"rank": 8},
            r"fusion\.rank is not an option of bilinear, .*; use one of fusion=low_rank, "
            r"fusion=attention, fusion=metric, fusion=product, or remove fusion\.rank$",
        ),
        (
            ("grid", "mission"),
            {"rank": 8, "hidden": 32},
            r"fusion\.hidden is not an option of product, .* call for; remove fusion\.hidden$",
        ),
        (
            ("grid", "mission"),
            {"hidden": [32]},
            r"of product, .*; use one of fusion=hyper, fusion=adapter, or remove fusion\.hidden$",
        ),
    ],
    ids=str,
)
def test_unused_option_names_its_fusions(
    keys: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(*keys, fusion=AutoFusionConfig(options=options))
    for kind in get_args(FusionConfig):
        if f"fusion={kind().kind}" in str(caught.value):
            # the advice works
            assert resolved(*keys, fusion=kind(**options)).fusion == kind(**options)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option 'rnk'"):
        AutoFusionConfig(options={"rnk": 8})


def test_resolved_network_is_kept() -> None:
    """A second resolution, as in the features extractor of a policy, changes nothing."""
    network = resolved("grid", "mission")
    assert resolve_network(network, dict_of("grid", "mission")) == network
    given_low_rank = resolved("grid", "mission", fusion=LowRankConfig(rank=2), sites=("heads",))
    assert given_low_rank.fusion == LowRankConfig(rank=2)
    assert resolved("grid", "task", fusion="film").fusion == FilmConfig()


SHORT = {"codes": "codes", "map": "planes", "vector": "vector"}
"""A name in ``SEEN`` for each kind of what is seen."""
TARGETS = {
    "words": "mission",
    "task_id": "tasks",
    "goal": "named_goal",
    "nothing": "constant_mission",
}
"""A name in ``ASKED`` for each kind of what is asked."""


@pytest.mark.parametrize("seen", get_args(Seen))
@pytest.mark.parametrize("asked", get_args(Asked))
def test_default_policies_train_in_sb3(seen: Seen, asked: Asked) -> None:
    """``FusionPolicy`` and ``FusionSACPolicy`` without options train and keep their choice."""
    space = spaces.Dict({**SEEN[SHORT[seen]], **ASKED[TARGETS[asked]]})
    discrete = DummyVecEnv([lambda: SampledEnv(space, spaces.Discrete(2))])
    ppo = PPO(FusionPolicy, discrete, n_steps=16, batch_size=8, n_epochs=1, device="cpu")
    box = spaces.Box(-1, 1, (2,))
    continuous = DummyVecEnv([lambda: SampledEnv(space, box)])
    sac = SAC(FusionSACPolicy, continuous, learning_starts=4, batch_size=8, device="cpu")
    for model in (ppo.learn(16), sac.learn(8)):
        policy: Any = model.policy
        assert (policy.network.fusion, policy.network.sites) == CHOICES[seen, asked]


def text_space(*, is_constant: bool) -> TextSpace:
    return TextSpace(21, 6, is_constant=is_constant)


def test_constant_mission_asks_for_nothing() -> None:
    """A text that never changes is no reason for a fusion of words; beside another, it is none."""
    codes = SEEN["codes"]

    def chosen(**texts: spaces.Space[Any]) -> NetworkConfig:
        return resolve_network(NetworkConfig(), spaces.Dict({**codes, **texts}))

    constant = chosen(mission=text_space(is_constant=True))
    assert (constant.fusion, constant.sites) == CHOICES["codes", "nothing"]
    varied = chosen(mission=text_space(is_constant=False))
    assert (varied.fusion, varied.sites) == CHOICES["codes", "words"]
    both = chosen(mission=text_space(is_constant=True), order=text_space(is_constant=False))
    assert (both.fusion, both.sites) == CHOICES["codes", "words"]
    goal = chosen(mission=text_space(is_constant=True), desired_goal=spaces.Box(-1, 1, (3,)))
    assert (goal.fusion, goal.sites) == CHOICES["codes", "goal"]
