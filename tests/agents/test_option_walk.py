"""Every pair of a kind of space and an option: it trains, or the advice of the error does."""

import re
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from space_kinds import CODE_GRID, PAIRS, PICTURE, VECTOR, observation_of

from mirl.agents.builder import build_policy, resolve_auto
from mirl.configs.compose import compose_train, validate
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.policies import FusionPolicy, RecurrentFusionPolicy

GROUPS = ("context", "encoder", "fusion", "memory")
BASE: dict[str, Any] = {
    **compose_train(["task=Some-v0"]).model_dump(include={"task", "agent"}),
    "fusion": {"kind": "bilinear"},
    "context": {"kind": "auto"},
    "encoder": {"kind": "auto"},
}
BATCH = 4
TRAINED: set[str] = set()
"""Networks that took a step already."""

OPTIONS: list[dict[str, str]] = [
    {},
    *[{"context": kind} for kind in ("auto", "goal", "mission", "task_id", "combined")],
    *[
        {"context.key": key}
        for key in ("observation", "image", "mission", "desired_goal", "misison", "front")
    ],
    {"context.dim": "8"},
    {"context.layers": "2"},
    {"context.hidden": "[8]"},
    {"context.normalize": "true"},
    {"context.relative_to": "achieved_goal"},
    {"context.relative_to": "observation"},
    *[{"context.encoder": kind} for kind in ("mlp", "grid", "image", "gru")],
    {"context": "goal", "context.key": "mission"},
    {"context": "goal", "context.key": "image"},
    {"context": "goal", "context.encoder": "grid"},
    {"context": "goal", "context.encoder": "image"},
    {"context": "mission", "context.key": "observation"},
    {"context": "task_id", "context.key": "observation"},
    {"context": "goal", "context.relative_to": "achieved_gaol"},
    *[{"encoder": kind} for kind in ("auto", "grid", "image", "vector", "text", "combined")],
    {"encoder.channels": "8"},
    {"encoder.features_dim": "16"},
    {"encoder.hidden": "[8]"},
    {"encoder.normalize": "true"},
    {"encoder.words": "gru"},
    {"encoder.channels": "8", "encoder.normalize": "true"},
    *[{"encoder.parts.image": kind} for kind in ("grid", "image", "vector", "text")],
    {"encoder.parts.observation": "image"},
    {"encoder.parts.mission": "text"},
    {"encoder.parts.camera": "{kind: image, channels: 8}"},
    {"encoder": "combined", "encoder.parts.imgae": "vector"},
    {"sites": "[map]"},
    {"sites": "[vector]"},
    {"sites": "[heads]"},
    {"sites": "[map]", "encoder": "vector"},
    {"sites": "[map]", "encoder.hidden": "[8]"},
    {"sites": "[map,vector,heads]", "fusion": "attention"},
    {"fusion": "film"},
    {"memory": "lstm"},
    {"observation_keys": "[image]"},
    {"observation_keys": "[observation,imgae]"},
    {"observation_keys": "[]"},
    {"observation_keys": "[mission]"},
]


def config_of(options: dict[str, str]) -> TrainConfig:
    """Return the configuration of some options as the command line takes them."""
    values: dict[str, Any] = {**BASE}
    for name in sorted(options):  # a group stands before its options
        value = yaml.safe_load(options[name])
        if name in GROUPS:
            value = {"kind": value}
        *path, last = name.split(".")
        place = values
        for part in path:
            place[part] = dict(place.get(part, {}))
            place = place[part]
        place[last] = value
    return validate(TrainConfig, values)


def train_step(config: TrainConfig, space: spaces.Dict) -> None:
    """Take one gradient step of the policy on sampled observations."""
    resolved = resolve_auto(config, space)
    # several options may stand for the same networks
    name = f"{resolved.network!r} {space!r}"
    if name in TRAINED:
        return
    torch.manual_seed(0)
    policy = build_policy(resolved, space, spaces.Discrete(2))
    assert isinstance(policy, FusionPolicy)
    space.seed(0)
    samples = [space.sample() for _ in range(BATCH)]
    batch: dict[str, torch.Tensor] = {}
    for key in space:
        batch[key] = torch.from_numpy(np.stack([np.asarray(sample[key]) for sample in samples]))
    if isinstance(policy, RecurrentFusionPolicy):
        state = torch.zeros(BATCH, policy.state_dim)
        starts = torch.ones(1, BATCH, dtype=torch.bool)
        _, values, log_probs, _ = policy(batch, state, starts)
    else:
        _, values, log_probs = policy(batch)
    (values.square().sum() + log_probs.sum()).backward()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    policy.optimizer.step()
    TRAINED.add(name)


def follow(
    advice: str, options: dict[str, str], space: spaces.Dict
) -> tuple[dict[str, str], list[spaces.Dict]]:
    """Return the options with the advice of an error message applied, and spaces that fit it."""
    options = dict(options)
    changed = [space]
    typed = re.sub(r" \(Python: .*?\)\)", "", advice)
    for step in typed.removesuffix(".").replace(" with ", " and use ").split(" and "):
        verb, _, rest = step.partition(" ")
        match verb:
            case "use":
                name, is_option, value = rest.partition("=")
                assert is_option, f"no option in '{step}'"
                options[name] = value
            case "remove":
                assert rest in options, f"'{rest}' was not given"
                del options[rest]
            case "add":
                # the user adds an input of the kind that the other options are about
                key = "desired_goal" if "goal" in rest else "image"
                kinds = (VECTOR,) if "goal" in rest else (VECTOR, PICTURE, CODE_GRID)
                changed = [spaces.Dict({key: kind, **space.spaces}) for kind in kinds]
            case _:
                raise AssertionError(f"cannot follow '{step}'")
    return options, changed


def problem_of(options: dict[str, str], space: spaces.Dict) -> str:
    """Return the message if a configuration is rejected; an empty string if it trains a step."""
    try:
        train_step(config_of(options), space)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("seen", "asked"), PAIRS)
def test_every_option_trains_or_advises(seen: str, asked: str) -> None:
    """An option trains a step, or its error is one line whose advice trains a step."""
    space = observation_of(seen, asked)
    failures: list[str] = []
    for options in OPTIONS:
        message = problem_of(options, space)
        if not message:
            continue
        shown = f"{options}: {message}"
        if "\n" in message or "; " not in message:
            failures.append(f"not one line with advice: {shown}")
            continue
        try:
            advised, changed = follow(message.rsplit("; ", 1)[1], options, space)
        except AssertionError as error:
            failures.append(f"{error}: {shown}")
            continue
        second = [problem_of(advised, one) for one in changed]
        if all(second):
            failures.append(f"{shown}\n    then {advised}: {second}")
    assert not failures, "\n".join(failures)
