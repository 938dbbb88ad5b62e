"""Observations of on-policy algorithms, for their comparison with SB3's."""

import inspect
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


def assert_contains_sb3s_parameters(
    ours: type[OnPolicyAlgorithm], theirs: type[OnPolicyAlgorithm]
) -> None:
    """Check that an algorithm lists every parameter of SB3's and takes no others by **."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for method in ("__init__", "learn"):
        parameters = inspect.signature(getattr(ours, method)).parameters
        for name, parameter in inspect.signature(getattr(theirs, method)).parameters.items():
            assert name in parameters
            assert parameters[name].default == parameter.default
            assert parameters[name].kind == parameter.kind
        assert not any(parameter.kind in variable for parameter in parameters.values())


def logged_updates(model: OnPolicyAlgorithm, timesteps: int) -> list[dict[str, Any]]:
    """Train a model and return what each update recorded."""
    update, updates = model.train, list[dict[str, Any]]()

    def noted() -> None:
        update()
        updates.append(dict(model.logger.name_to_value))

    model.train = noted  # type: ignore[method-assign]
    model.learn(timesteps)
    return updates
