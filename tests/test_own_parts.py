"""Fusions, cores, contexts and encoders of a user, in Python and from the command line.

The classes are those of the template of docs/extending.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
import yaml
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from own_parts import CLASSES, OPTIONS, TEMPLATE, config_of, name_of, ownparts, words_of
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from toy_goal_envs import MirrorReachEnv

from mirl import eval as eval_command
from mirl.agents import A2C, PPO, load_policy
from mirl.agents.training import train
from mirl.configs.compose import compose_train, validate
from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    BaseContextConfig,
    BaseEncoderConfig,
    BaseFusionConfig,
    FilmConfig,
    NetworkConfig,
    RecurrentCoreConfig,
    network_config,
)
from mirl.configs.schema import TrainConfig
from mirl.envs import make_vec_env
from mirl.policies import FusionExtractor, FusionPolicy, RecurrentFusionPolicy, specialize
from mirl.policies.contexts import ContextEncoder
from mirl.policies.encoders import Encoder
from mirl.policies.features import Context
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion
from mirl.policies.memory.core import Core
from mirl.policies.off_policy import FusionDQNPolicy, FusionSACPolicy
from mirl.policies.specialize import specialize_fusion

ROOT = Path(__file__).parents[1]
GROUPS = tuple(CLASSES)
TINY = (
    "agent.n_envs=4",
    "agent.n_steps=16",
    "agent.batch_size=32",
    "agent.n_epochs=1",
    "agent.net_arch=[8]",
    "evaluation.episodes=2",
    "evaluation.test_episodes=2",
    "checkpoint_every=64",
    "evaluation.context_use=false",
    "precision=fp32",
    "videos=false",
    "progress=false",
)
TINY_NETWORK: dict[str, Any] = {"net_arch": [8], "sites": ("map", "vector", "heads")}


def own(*groups: str) -> dict[str, Any]:
    """Return the keyword arguments of a policy with own parts for some groups."""
    return {group: config_of(group) for group in groups}


def policy_class(groups: tuple[str, ...]) -> type[FusionPolicy]:
    return RecurrentFusionPolicy if "memory" in groups else FusionPolicy


@pytest.fixture(scope="module")
def door_env() -> Any:
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", n_envs=4, backend="gymnasium")
    yield env
    env.close()


# -------------------------------------------------------------------------------------- in Python


@pytest.mark.parametrize("group", GROUPS)
def test_every_form_names_the_class(group: str) -> None:
    part = CLASSES[group]
    for form in (part, part.Config(), name_of(group)):
        network = network_config(**{group: form})
        assert getattr(network, group) == part.Config()
        assert validate(NetworkConfig, network.model_dump(mode="json")) == network


@given(limit=st.floats(1e-3, 1e3), size=st.integers(1, 99), channels=st.integers(1, 99))
def test_stored_options_are_restored(limit: float, size: int, channels: int) -> None:
    network = network_config(
        fusion=ownparts.BoundedFilm.Config(limit=limit),
        memory=ownparts.Leaky.Config(size=size),
        encoder=ownparts.PooledCells.Config(channels=channels),
    )
    text = yaml.safe_dump(network.model_dump(mode="json"))
    assert validate(NetworkConfig, yaml.safe_load(text)) == network


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("groups", [*((group,) for group in GROUPS), GROUPS])
def test_on_policy_agents_learn(door_env: Any, algorithm: Any, groups: tuple[str, ...]) -> None:
    kwargs = {**TINY_NETWORK, **own(*groups)}
    options = {"batch_size": 16} if algorithm is PPO else {}
    agent = algorithm(
        policy_class(groups), door_env, n_steps=8, policy_kwargs=kwargs, device="cpu", **options
    )
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(64)
    after = agent.policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for group in groups:
        modules = list(agent.policy.modules())
        assert any(isinstance(module, CLASSES[group]) for module in modules), group


def test_fusion_is_built_at_every_site(door_env: Any) -> None:
    policy = FusionPolicy(
        door_env.observation_space,
        door_env.action_space,
        lambda _: 0.0,
        **TINY_NETWORK,
        **own("fusion"),
    )
    extractor = policy.features_extractor
    assert isinstance(extractor, FusionExtractor)
    fused = [extractor.map_fusion, extractor.vector_fusion]
    fused += [policy.action_net.fusion, policy.value_net.fusion]
    assert all(isinstance(fusion, ownparts.BoundedFilm) for fusion in fused)
    assert all(fusion.limit == 0.5 for fusion in fused)


class CellFilm(ownparts.BoundedFilm):
    """Fuses the feature map in place of ``VectorFilm``."""


class VectorFilm(ownparts.BoundedFilm):
    """A fusion with another class for the feature map."""

    map_class = CellFilm


def test_another_class_fuses_the_map() -> None:
    config = VectorFilm.Config(limit=0.25)
    assert type(build_fusion(config, 3, 2, 4)) is VectorFilm
    of_map = build_map_fusion(config, 3, 2, 3)
    assert isinstance(of_map, CellFilm)
    assert of_map.limit == 0.25


def test_plain_sb3_trains_and_loads(door_env: Any, tmp_path: Path) -> None:
    """The extractor with own parts works in Stable-Baselines3's own PPO."""
    kwargs = {
        "features_extractor_class": FusionExtractor,
        "features_extractor_kwargs": own("fusion", "context", "encoder"),
    }
    agent = stable_baselines3.PPO(
        "MultiInputPolicy", door_env, n_steps=8, batch_size=32, policy_kwargs=kwargs, device="cpu"
    )
    agent.learn(32)
    agent.save(tmp_path / "agent.zip")
    loaded = stable_baselines3.PPO.load(tmp_path / "agent.zip", device="cpu")
    assert isinstance(loaded.policy.features_extractor, FusionExtractor)
    assert loaded.policy.features_extractor.network.fusion == config_of("fusion")


def test_off_policy_agents_learn(door_env: Any) -> None:
    env = DummyVecEnv([MirrorReachEnv])
    sac = stable_baselines3.SAC(
        FusionSACPolicy,
        env,
        learning_starts=8,
        batch_size=4,
        policy_kwargs={"net_arch": [6], "sites": ("vector", "heads"), **own("fusion")},
        device="cpu",
    )
    sac.learn(12)
    dqn = stable_baselines3.DQN(
        FusionDQNPolicy,
        door_env,
        learning_starts=8,
        batch_size=4,
        buffer_size=64,
        policy_kwargs={**TINY_NETWORK, **own("fusion", "context", "encoder")},
        device="cpu",
    )
    dqn.learn(12)


def test_policy_is_specialized(door_env: Any) -> None:
    """The policy for one context computes what the policy does."""
    policy = FusionPolicy(
        door_env.observation_space,
        door_env.action_space,
        lambda _: 0.0,
        **TINY_NETWORK,
        **own("fusion", "context", "encoder"),
    )
    policy.set_training_mode(False)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    observations = door_env.reset()
    mission = observations["mission"][0]
    observations["mission"] = np.repeat(mission[None], 4, axis=0)
    specialized = specialize(policy, mission)
    inputs = {key: torch.from_numpy(observations[key]) for key in specialized.keys}
    logits, values = specialized(inputs)
    tensors, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        expected = policy.get_distribution(tensors).distribution.logits
        torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values, policy.predict_values(tensors), rtol=1e-4, atol=1e-4)


def test_core_resets_between_episodes() -> None:
    """Ten timesteps at once equal ten calls of one timestep."""
    core = ownparts.Leaky(5, 0, ownparts.Leaky.Config(size=8))
    features = torch.randn(10, 4, 5)
    starts = torch.rand(10, 4) < 0.3
    at_once, final = core(features, torch.ones(4, core.state_dim), starts)
    state = torch.ones(4, core.state_dim)
    for step in range(10):
        output, state = core(features[step : step + 1], state, starts[step : step + 1])
        torch.testing.assert_close(output[0], at_once[step])
    torch.testing.assert_close(state, final)


# ------------------------------------------------------------------------------- errors in one line


class FlatFusion(Fusion):
    """A fusion that loses the axis of the positions."""

    class Config(ownparts.BoundedFilm.Config):
        """No options of its own."""

    def __init__(
        self, features_dim: int, context_dim: int, out_dim: int, config: Config, gain: float
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)

    def interact(self, x: Tensor, z: Tensor, groups: Any) -> Tensor:
        return x[:, 0]


class OldFusion(ownparts.BoundedFilm):
    """A fusion with another constructor."""

    def __init__(self, features_dim: int, context_dim: int, out_dim: int) -> None: ...


class NarrowCore(Core):
    """A core whose output is narrower than it says."""

    class Config(RecurrentCoreConfig):
        """No options of its own."""

    def __init__(self, features_dim: int, context_dim: int, config: Config) -> None:
        super().__init__(features_dim, config.size, config)

    def run(self, x: Tensor, state: Tensor, episodes: Any, z: Any, groups: Any) -> Any:
        return x[..., :1], state


class TensorContext(ContextEncoder):
    """A context encoder that returns a tensor."""

    class Config(BaseContextConfig):
        """No options of its own."""

        key: str = "mission"

    def __init__(self, space: spaces.Dict, config: Config) -> None:
        super().__init__()
        self.keys = (config.key,)
        self.out_dim = 3

    def forward(self, observations: Any) -> Any:
        return observations[self.keys[0]][:, :3].float()


class WideContext(TensorContext):
    """A context encoder whose contexts are wider than it says."""

    def forward(self, observations: Any) -> Any:
        return Context(observations[self.keys[0]][:, :5].float(), None)


class FlatWordsContext(TensorContext):
    """A context encoder that returns its words without an axis for them."""

    def forward(self, observations: Any) -> Any:
        z = observations[self.keys[0]][:, :3].float()
        return Context(z, None, z)


class SilentEncoder(Encoder):
    """An encoder that does not say how large its vectors are."""

    class Config(BaseEncoderConfig):
        """No options of its own."""

    def __init__(self, space: spaces.Dict, config: Config) -> None:
        super().__init__()
        self.keys = tuple(space)

    def forward(self, observations: Mapping[str, Tensor], fuse: Any = None) -> Tensor:
        return observations["direction"].flatten(1)


class WideEncoder(SilentEncoder):
    """An encoder whose vectors are wider than it says."""

    def __init__(self, space: spaces.Dict, config: Any) -> None:
        super().__init__(space, config)
        self.out_dim = 2


@pytest.mark.parametrize(
    ("group", "form", "message"),
    [
        ("fusion", FlatFusion, "FlatFusion.interact must return (B, P, O) = (4, 1, "),
        ("fusion", OldFusion, "OldFusion expected to be built by (features_dim, context_dim, out"),
        ("fusion", ownparts.Leaky, "got 'Leaky', which is a part of another kind, a Core"),
        ("fusion", ownparts.Leaky.Config(), "expected one of concat, bilinear"),
        ("fusion", nn.Linear, "got 'Linear', which does not inherit from mirl.policies.fusions."),
        ("fusion", Fusion, "got 'Fusion', which is the abstract base class itself"),
        ("fusion", "ownparts:BoundedFlim", "Did you mean 'BoundedFilm'?"),
        ("fusion", "ownpart:BoundedFilm", "names code of 'ownpart'"),
        ("memory", NarrowCore, "NarrowCore.run must return (T, N, size) = (1, 4, 128)"),
        ("context", TensorContext, "TensorContext must return a mirl.policies.features.Context"),
        ("context", WideContext, "with out_dim=3, got shape (4, 5)"),
        ("context", FlatWordsContext, "words (rows, W, out_dim) with as many rows as contexts, 4,"),
        ("encoder", SilentEncoder, "SilentEncoder.__init__ must set self.out_dim"),
        ("encoder", WideEncoder, "with out_dim=2, got shape (4, 4)"),
    ],
)
def test_broken_part_is_named(door_env: Any, group: str, form: Any, message: str) -> None:
    def learn() -> None:
        kwargs = {group: form, "sites": ("vector", "heads")}
        policy = policy_class((group,))
        agent = A2C(policy, door_env, policy_kwargs=kwargs, device="cpu")
        agent.learn(32)

    with pytest.raises(ConfigError) as raised:
        learn()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_instance_of_a_layer_is_refused() -> None:
    layer = ownparts.BoundedFilm(3, 2, 4, ownparts.BoundedFilm.Config(), 1.0)
    with pytest.raises(ConfigError, match=r"pass BoundedFilm\.Config") as raised:
        network_config(fusion=layer)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_class_in_function_is_not_stored() -> None:
    class Local(ownparts.BoundedFilm):
        pass

    config = compose_train(["task=goto_door"]).model_copy(update={"fusion": Local.Config()})
    with pytest.raises(ConfigError, match="put the class at the top level of a module"):
        train(config)


# ------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("group", GROUPS)
def test_words_choose_class_and_options(group: str) -> None:
    config = compose_train([*words_of(group), "seed=3"])
    assert getattr(config, group) == config_of(group)
    if group in ("fusion", "memory"):
        assert CLASSES[group].__name__ in config.run_name
    assert validate(TrainConfig, config.model_dump(mode="json")) == config


def test_words_choose_all_parts_together() -> None:
    words: list[str] = []
    for group in GROUPS:
        words += words_of(group)
    config = compose_train(words)
    for group in GROUPS:
        assert getattr(config, group) == config_of(group)


def test_last_word_of_a_group_counts() -> None:
    words = ["fusion=film", "fusion=ownparts:BoundedFilm"]
    assert compose_train(words).fusion == ownparts.BoundedFilm.Config()
    assert compose_train(words[::-1]).fusion == FilmConfig()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["fusion.limits=1"],
            "unknown option 'fusion.limits' of ownparts:BoundedFilm. Did you mean",
        ),
        (["fusion.limit=0"], "fusion.limit: input should be greater than 0, got 0"),
        (["fusion.limit=wide"], "fusion.limit: input should be a valid number"),
        (["fusion.rank=8"], "unknown option 'fusion.rank' of ownparts:BoundedFilm"),
    ],
)
def test_wrong_options_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_train(["fusion=ownparts:BoundedFilm", *argv])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_own_preset_names_a_class(tmp_path: Path) -> None:
    (tmp_path / "fusion").mkdir()
    preset = tmp_path / "fusion" / "bounded.yaml"
    preset.write_text("kind: ownparts:BoundedFilm\nlimit: 0.25\n", encoding="utf-8")
    words = ["--config-dir", str(tmp_path), "fusion=bounded"]
    assert compose_train(words).fusion == ownparts.BoundedFilm.Config(limit=0.25)
    changed = compose_train([*words, "fusion.limit=0.75"])
    assert changed.fusion == ownparts.BoundedFilm.Config(limit=0.75)


def run_script(folder: Path, script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a process in a folder, with the template's folder on the path."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(TEMPLATE), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, str(ROOT / script), *argv],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_commands_import_own_parts(tmp_path: Path) -> None:
    """A run with an own part of every kind goes through the commands in processes of their own."""
    words = [*TINY, "total_timesteps=64", "name=run"]
    for group in GROUPS:
        words += words_of(group)
    trained = run_script(tmp_path, "train.py", *words)
    assert trained.returncode == 0, trained.stderr
    assert "import=ownparts" in trained.stdout
    evaluation = ("run=runs/run", "checkpoint=last", "episodes=2")
    evaluated = run_script(tmp_path, "eval.py", *evaluation, "import=ownparts")
    assert evaluated.returncode == 0, evaluated.stderr
    refused = run_script(tmp_path, "eval.py", *evaluation)
    assert refused.returncode == 2
    assert "add import=ownparts" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("group", GROUPS)
def test_run_is_trained_resumed_evaluated(group: str, tmp_path: Path) -> None:
    """A run with an own part is stored, loaded, evaluated and resumed."""
    words = [*words_of(group), *TINY, "total_timesteps=128", "name=run", f"runs_dir={tmp_path}"]
    assert train(compose_train(words)).finished
    run = tmp_path / "run"
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert stored[group] == {**stored[group], "kind": name_of(group), **OPTIONS[group]}
    assert eval_command.run([f"run={run}", "checkpoint=last", "episodes=2"]) == 0
    # this process has imported the module already
    policy = load_policy(run, "last", device="cpu")
    assert any(isinstance(module, CLASSES[group]) for module in policy.modules())

    # resume from the first of two checkpoints
    shutil.rmtree(run / "checkpoints" / "step_000000128")
    lines: list[str] = []
    result = train(compose_train(words), lines.append)
    assert "Resuming at 64 of 128" in "\n".join(lines)
    assert result.finished


class NoPerRow(Fusion):
    """A fusion whose shapes do not broadcast, as ``per_row`` is missing."""

    class Config(BaseFusionConfig):
        """No options."""

    def __init__(
        self, features_dim: int, context_dim: int, out_dim: int, config: Config, gain: float
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = nn.Linear(features_dim, out_dim)
        self.scale = nn.Linear(context_dim, out_dim)

    def interact(self, x: Tensor, z: Tensor, groups: Any) -> Tensor:
        """Multiply (B, P, O) by (G, O)."""
        return self.main(x) * self.scale(z)


class OtherSignature(NoPerRow):
    """A fusion whose ``interact`` takes other arguments."""

    def interact(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Take no context."""
        return x


class NoSuchLayer(NoPerRow):
    """A fusion whose constructor fails."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.other = nn.Linear("wide", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fusion", "cause"),
    [(NoPerRow, RuntimeError), (OtherSignature, TypeError), (NoSuchLayer, TypeError)],
)
def test_own_error_is_one_line(fusion: type[Fusion], cause: type[Exception]) -> None:
    def build_and_call() -> None:
        layer = build_fusion(fusion.Config(), 6, 5, 7)
        layer(torch.randn(4, 9, 6), torch.randn(2, 5), torch.tensor([0, 1, 1, 0]))

    with pytest.raises(ConfigError) as raised:
        build_and_call()
    message = str(raised.value)
    assert "\n" not in message
    assert f"{__name__}:{fusion.__name__}." in message
    assert f"{__file__}:" in message
    assert isinstance(raised.value.__cause__, cause)


def failing_forward(*_arguments: object) -> None:
    raise KeyError("pixels")


@pytest.mark.parametrize("group", ["context", "encoder", "memory"])
def test_own_forward_error_names_class(
    group: str, door_env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "run" if group == "memory" else "forward"
    policy = policy_class((group,))(
        door_env.observation_space, door_env.action_space, lambda _: 0.0, **own(group)
    )
    monkeypatch.setattr(CLASSES[group], method, failing_forward)
    with pytest.raises(ConfigError, match=rf"{name_of(group)}\.{method} fails at .*KeyError"):
        policy.predict(door_env.reset())


def test_built_in_error_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = build_fusion(FilmConfig(), 6, 5, 7)
    monkeypatch.setattr(type(layer), "interact", failing_forward)
    with pytest.raises(KeyError):
        layer(torch.randn(4, 6), torch.randn(4, 5))


class OwnForward(ownparts.BoundedFilm):
    """A fusion with a ``forward`` of its own, which fails."""

    def forward(self, features: Tensor, context: Tensor, index: Any = None) -> Tensor:
        """Read a key that is not there."""
        return {"features": features}["pixels"]


class ListForward(ownparts.BoundedFilm):
    """A fusion whose ``forward`` returns no tensor."""

    def forward(self, features: Tensor, context: Tensor, index: Any = None) -> Any:
        """Return a list."""
        return [super().forward(features, context, index)]


class OwnCoreForward(ownparts.Leaky):
    """A core whose own ``forward`` returns the output alone."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Leave the state out."""
        return super().forward(*arguments, **options)[0]


class ListCore(ownparts.Leaky):
    """A core that returns the output alone."""

    def run(self, *arguments: Any) -> Any:
        """Leave the state out."""
        return super().run(*arguments)[0]


class FailingStatistics(ownparts.PooledCells):
    """An encoder whose statistics fail."""

    def update_statistics(self, observations: Any) -> None:
        """Read a key that is not there."""
        observations["pixels"].mean()


class ListEncoder(ownparts.PooledCells):
    """An encoder that returns no tensor."""

    def forward(self, observations: Any, fuse: Any = None) -> Any:
        """Return a list."""
        return [super().forward(observations, fuse)]


class NoModule(ownparts.BoundedFilm):
    """A fusion whose specialized form is no module."""

    def specialize(self, z: Tensor) -> Any:
        """Return a function."""
        return lambda x: self(x, z)


class FailingModule(ownparts.BoundedFilm):
    """A fusion whose specialized form fails."""

    def specialize(self, z: Tensor) -> nn.Module:
        """Return a layer of another size."""
        return nn.Linear(self.features_dim + 1, self.out_dim)


class SinglePrecision(ownparts.BoundedFilm):
    """A fusion whose specialized form has weights in torch's default type, float32."""

    def specialize(self, z: Tensor) -> nn.Module:
        """Copy the affine map into a new layer."""
        folded = self.specialize_affine(z)
        layer = nn.Linear(self.features_dim, self.out_dim)
        layer.load_state_dict(folded.state_dict())
        return layer


def run_part(part: Any) -> None:
    """Build a part and call the method of it that is broken."""
    if issubclass(part, Core):
        core = part(5, 0, part.Config())
        core(torch.randn(2, 3, 5), torch.zeros(3, core.state_dim), torch.zeros(2, 3))
    elif "specialize" in vars(part):
        specialize_fusion(build_fusion(part.Config(), 6, 5, 7), Context(torch.randn(1, 5), None))
    elif issubclass(part, Fusion):
        build_fusion(part.Config(), 6, 5, 7)(torch.randn(4, 6), torch.randn(4, 5))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (OwnForward, "OwnForward.forward fails"),
        (ListForward, "ListForward.forward returns list"),
        (OwnCoreForward, "OwnCoreForward.forward returns Tensor"),
        (ListCore, "ListCore.run must return"),
        (NoModule, "NoModule.specialize returns function"),
        (FailingModule, "FailingModule.specialize fails"),
    ],
)
def test_own_methods_are_explained(part: Any, message: str) -> None:
    source, first_line = inspect.getsourcelines(part)
    with pytest.raises(ConfigError) as raised:
        run_part(part)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    found = re.search(rf"{re.escape(__file__)}:(\d+)", str(raised.value))
    assert found is not None
    # the place is inside of the class
    assert first_line <= int(found[1]) < first_line + len(source)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (FailingStatistics, "FailingStatistics.update_statistics fails"),
        (ListEncoder, "ListEncoder must return feature vectors (B, out_dim)"),
    ],
)
def test_own_encoder_names_its_place(door_env: Any, part: Any, message: str) -> None:
    extractor = FusionExtractor(door_env.observation_space, encoder=part)
    observations = preprocess_obs(
        {key: torch.as_tensor(value) for key, value in door_env.reset().items()},
        door_env.observation_space,
    )

    def update_and_call() -> None:
        extractor.update_statistics(observations)
        extractor(observations)

    with pytest.raises(ConfigError) as raised:
        update_and_call()
    assert message in str(raised.value)
    assert f"{__file__}:" in str(raised.value)


def test_float32_module_is_accepted() -> None:
    fusion = build_fusion(SinglePrecision.Config(), 6, 5, 7)
    z = torch.randn(5)
    folded = specialize_fusion(fusion, Context(z.unsqueeze(0), None))
    x = torch.randn(4, 6)
    torch.testing.assert_close(folded(x), fusion(x, z.expand(4, 5)))
