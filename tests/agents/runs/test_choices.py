"""A command that leaves choices open continues a run with the run's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_setup import resolve, start_run

from mirl.agents import train
from mirl.agents.runs.choices import adopt_choices
from mirl.configs.agents import PPOConfig
from mirl.configs.compose import compose_train
from mirl.configs.networks import (
    BilinearConfig,
    GateConfig,
    GridEncoderConfig,
    MissionContextConfig,
    ProductConfig,
    ScaledFusionConfig,
)
from mirl.configs.schema import ResolvedConfig, TrainConfig
from mirl.configs.stored import CONFIG

Build = Callable[..., TrainConfig]
SHORT = ("total_timesteps=128", "evaluation.test_episodes=4", "name=run")


def with_former_defaults(folder: Path) -> None:
    """Take from a config.yaml what earlier versions did not store."""
    path = folder / CONFIG
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values["encoder"]["attributes"]
    del values["context"]["zero_start"]
    del values["fusion_is_chosen"]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def test_former_run_is_resumed(tiny: Build) -> None:
    """The command that began a run of an earlier version finds what was the default then."""
    former = tiny(
        *("name=run", "fusion=bilinear", "sites=[map,heads]", "encoder.channels=32"),
        *("encoder.attributes=0", "context.zero_start=false"),
    )
    run = start_run(former)
    with_former_defaults(run.path)
    resolved = resolve(tiny("name=run", "encoder.channels=32"))
    assert resolved.fusion == BilinearConfig()
    assert resolved.sites == ("map", "heads")
    assert isinstance(resolved.encoder, GridEncoderConfig)
    assert resolved.encoder.attributes == 0
    assert isinstance(resolved.context, MissionContextConfig)
    assert not resolved.context.zero_start
    assert start_run(tiny("name=run", "encoder.channels=32")).config == resolved


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("fusion=film", "fusion.kind: 'bilinear' there, 'film' now"),
        ("sites=map", "sites: ('map', 'heads') there, ('map',) now"),
        ("encoder.attributes=2", "encoder.attributes: 0 there, 2 now"),
        ("context.zero_start=true", "context.zero_start: False there, True now"),
        ("task.kwargs.max_steps=9", "  task.tasks[0].kwargs.max_steps: None there, 9 now"),
    ],
)
def test_stated_options_stay(tiny: Build, word: str, difference: str) -> None:
    """Options that a command states are compared with the run."""
    former = ("fusion=bilinear", "sites=[map,heads]", "context.zero_start=false")
    start_run(tiny("name=run", *former, "encoder.attributes=0"))
    with pytest.raises(ValueError, match="holds a run of another") as caught:
        start_run(tiny("name=run", word))
    assert difference in str(caught.value)


def test_options_of_auto_choose_among_runs(tiny: Build) -> None:
    """An option beside ``fusion=auto`` is met by the fusion of the run, or is a difference."""
    start_run(tiny("name=run", "fusion=product", "fusion.products=2", "fusion.groups=3"))
    kept = resolve(tiny("name=run", "fusion.products=2"))
    assert kept.fusion == ProductConfig(products=2, groups=3)
    assert resolve(tiny("name=run", "fusion.products=4")).fusion == ProductConfig(products=4)


@pytest.mark.parametrize(("sites", "warns"), [("map", False), ("[map,heads]", True)])
def test_gate_in_heads_is_told(tiny: Build, sites: str, warns: bool) -> None:
    """A training command says where a fusion is unfit for a site."""
    lines: list[str] = []
    train(tiny("fusion=gate", f"sites={sites}"), log=lines.append)
    assert any("gate is unfit for the heads" in line for line in lines) == warns


def test_former_values_follow_the_weights(tiny: Build) -> None:
    """A run of an earlier version, and one that starts from it, keep what they computed with."""
    config = tiny("fusion=bilinear", "name=old")
    run = start_run(config)
    path = run.path / "config.yaml"
    added = ("context_scale", "advantage_floor", "kl_coef")
    text = path.read_text()
    assert all(option in text for option in added)
    lines = [line for line in text.splitlines() if not any(option in line for option in added)]
    path.write_text("\n".join(lines))
    assert former_values(start_run(config).config) == (1, 0, 0)

    warm = tiny("fusion=bilinear", "name=warm", f"start_from={run.path}")
    assert former_values(resolve(warm)) == (1, 0, 0)
    stated = ("fusion.context_scale=0.5", "agent.advantage_floor=0.1", "agent.kl_coef=0.2")
    given = tiny("fusion=bilinear", "name=given", *stated, f"start_from={run.path}")
    assert former_values(resolve(given)) == (0.5, 0.1, 0.2)
    other = tiny("fusion=gate", "name=other", f"start_from={run.path}")
    assert resolve(other).fusion == GateConfig()


def former_values(config: ResolvedConfig) -> tuple[float | None, float, float]:
    """Return the scale of the context, the floor of the advantages and the weight of the KL."""
    assert isinstance(config.fusion, ScaledFusionConfig)
    assert isinstance(config.agent, PPOConfig)
    return config.fusion.context_scale, config.agent.advantage_floor, config.agent.kl_coef


def test_combined_parts_keep_their_options(tmp_path: Path) -> None:
    """Each part of a combined encoder or context gets the option of the same part."""
    config = compose_train(["context=combined", "encoder=combined", f"runs_dir={tmp_path}"])
    resolved = resolve(config)
    values: dict[str, Any] = resolved.model_dump()
    for part in values["encoder"]["parts"].values():
        if "attributes" in part:
            part["attributes"] = 2
    for context in values["context"]["parts"]:
        if "zero_start" in context:
            context["zero_start"] = False
    stored = ResolvedConfig.model_validate(values)
    assert stored != resolved
    assert adopt_choices(config, resolved, stored) == stored
    assert adopt_choices(config, resolved, None) is resolved


def test_warm_start_adopts_choices(tiny: Build) -> None:
    """The weights of a run with other choices fit the run that starts from it."""
    first = tiny(
        *(*SHORT, "fusion=film", "sites=vector", "encoder.channels=32"),
        *("encoder.attributes=0", "context.zero_start=false"),
    )
    train(first)
    words = ("name=second", "encoder.channels=32", f"start_from={first.run_dir}")
    second = train(tiny(*SHORT, *words)).run.config
    assert (second.fusion, second.sites) == (train(first).run.config.fusion, ("vector",))
    assert second.encoder == resolve(first).encoder
    assert second.context == resolve(first).context


def test_default_run_is_resumed(tiny: Build) -> None:
    """A run without a stated fusion stores its choice, and the same command finds it."""
    words = (*SHORT[:-1], "encoder.channels=32")
    result = train(tiny(*words))
    assert result.run.path.name == "goto_door-ppo-seed0"
    assert result.run.config.fusion == ProductConfig(
        products=8, main_rank=4, main_attributes=1, combine="sum", bound=2.0
    )
    assert train(tiny(*words)).run.config == result.run.config
