"""Config classes of the networks, chosen by name or given as objects."""

import pickle

import pytest

from mirl.configs.agents import A2CConfig, AgentConfig
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AutoConfig,
    AutoContextConfig,
    AutoEncoderConfig,
    AutoFusionConfig,
    BilinearConfig,
    FilmConfig,
    FusionConfig,
    GridEncoderConfig,
    LowRankConfig,
    LstmConfig,
    NetworkConfig,
    NoMemoryConfig,
    ProductConfig,
    TaskIdContextConfig,
    choose,
    network_config,
)


def test_choose_accepts_names_and_configs() -> None:
    film = FilmConfig()
    assert choose("bilinear", FusionConfig) == BilinearConfig()
    assert choose(film, FusionConfig) is film
    assert choose("a2c", AgentConfig) == A2CConfig()


def test_choose_suggests_nearest_kind() -> None:
    with pytest.raises(ConfigError, match=r"got 'biliner'\. Did you mean 'bilinear'"):
        choose("biliner", FusionConfig)


def test_choose_rejects_other_family() -> None:
    """A config object of another union is an error, even if it is valid by itself."""
    with pytest.raises(
        ConfigError, match="expected one of ppo, a2c, sac, td3, tqc, dqn, got FilmConfig"
    ):
        choose(FilmConfig(), AgentConfig)


def test_network_config_has_defaults() -> None:
    config = network_config()
    assert config == NetworkConfig()
    assert config.fusion == AutoFusionConfig()
    assert isinstance(config.memory, NoMemoryConfig)
    assert config.sites is None
    assert config.observation_keys is None


def test_network_config_builds_parts_by_name() -> None:
    config = network_config(
        fusion="film",
        context="task_id",
        encoder=GridEncoderConfig(channels=4),
        sites=["map"],
        memory="lstm",
        observation_keys=["image"],
    )
    assert config.fusion == FilmConfig()
    assert config.context == TaskIdContextConfig()
    assert config.encoder == GridEncoderConfig(channels=4)
    assert config.sites == ("map",)
    assert config.memory == LstmConfig()
    assert config.observation_keys == ("image",)


def test_network_config_suggests_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"got 'gird'\. Did you mean 'grid'"):
        network_config(encoder="gird")


def test_auto_parts_are_not_resolved() -> None:
    resolved = NetworkConfig(
        fusion=BilinearConfig(),
        context=TaskIdContextConfig(),
        encoder=GridEncoderConfig(),
        sites=("map",),
        observation_keys=("image",),
    )
    assert resolved.is_resolved
    open_choices = {
        "fusion": AutoFusionConfig(),
        "context": AutoContextConfig(),
        "encoder": AutoEncoderConfig(),
        "sites": None,
        "observation_keys": None,
    }
    for name, choice in open_choices.items():
        assert not resolved.model_copy(update={name: choice}).is_resolved


def test_train_config_gives_its_network() -> None:
    config = compose_train(["fusion=film", "memory=lstm", "sites=[vector]"])
    network = config.network
    assert network.fusion == config.fusion
    assert network.context == config.context
    assert network.encoder == config.encoder
    assert network.memory == config.memory
    assert network.sites == ("vector",)


@pytest.mark.parametrize("given", [3, "x", [1], None])
@pytest.mark.parametrize("auto", [AutoContextConfig, AutoEncoderConfig, AutoFusionConfig])
def test_auto_options_are_a_dictionary(auto: type[AutoConfig], given: object) -> None:
    with pytest.raises(ValueError, match="options must be a dictionary, got"):
        auto.model_validate({"kind": "auto", "options": given})


def test_old_pickle_has_scale_one() -> None:
    """A config that was pickled before the scale was an option computes as it did."""
    old = FilmConfig()
    del old.__dict__["context_scale"]
    assert pickle.loads(pickle.dumps(old)) == FilmConfig(context_scale=1.0)
    factored = LowRankConfig(context_scale=0.5)
    del factored.__dict__["features_scale"]
    restored = LowRankConfig(context_scale=0.5, features_scale=1.0)
    assert pickle.loads(pickle.dumps(factored)) == restored
    product = ProductConfig(context_scale=0.5)
    del product.__dict__["pool_words"]
    assert pickle.loads(pickle.dumps(product)) == ProductConfig(context_scale=0.5, pool_words=False)
    for current in (FilmConfig(), FilmConfig(context_scale=0.5), LowRankConfig(), ProductConfig()):
        assert pickle.loads(pickle.dumps(current)) == current
