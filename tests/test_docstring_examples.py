"""Every public class has an example in its docstring, and the examples run."""

import doctest
import inspect
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from mirl.policies.text import sentences

MODULES = (
    "mirl.agents",
    "mirl.agents.on_policy.rollout_buffer",
    "mirl.configs.comparison",
    "mirl.configs.tasks",
    "mirl.envs",
    "mirl.envs.worlds.context_wrappers",
    "mirl.policies",
    "mirl.policies.contexts",
    "mirl.policies.encoders",
    "mirl.policies.features",
    "mirl.policies.fusions",
    "mirl.policies.grouped_matmul",
    "mirl.policies.memory.core",
    "mirl.policies.off_policy",
    "mirl.policies.specialize",
)
"""Modules whose public classes have an example each."""
CHOSEN = {
    "mirl.configs.errors": ("ConfigError",),
    "mirl.configs.networks": ("NetworkConfig",),
    "mirl.configs.schema": ("EvalConfig", "TrainConfig"),
}
"""Other modules, and those of their classes that have an example."""
WITHOUT_EXAMPLE = {
    "mirl.policies.off_policy.ApplyToFeatures": "layers that the policies build",
    "mirl.policies.off_policy.MaskedQNetwork": "Q-network that FusionDQNPolicy builds",
    "mirl.policies.off_policy.OffPolicyFusion": "base class of the policies there",
}
"""Public classes without an example, because a user never builds them, and the reason."""


def public_classes(module_name: str) -> dict[str, type]:
    """Return the classes that a module exports by their names.

    These are the classes in its ``__all__``, or without one, all that are defined in it.
    """
    module = import_module(module_name)
    exported = getattr(module, "__all__", None)
    classes: dict[str, type] = {}
    for name, value in vars(module).items():
        is_public = not name.startswith("_") and getattr(value, "__module__", "") == module_name
        if exported is not None:
            is_public = name in exported
        if is_public and inspect.isclass(value):
            classes[f"{module_name}.{name}"] = value
    return classes


def all_public_classes() -> dict[str, type]:
    """Return the public classes of all modules, each class under the first of its names."""
    names: dict[type, str] = {}
    for module_name in MODULES:
        for name, public_class in public_classes(module_name).items():
            names.setdefault(public_class, name)
    for module_name, chosen in CHOSEN.items():
        for name in chosen:
            names[getattr(import_module(module_name), name)] = f"{module_name}.{name}"
    return {name: public_class for public_class, name in names.items()}


PUBLIC = all_public_classes()
DOCUMENTED = sorted(PUBLIC.keys() - WITHOUT_EXAMPLE.keys())


def examples_of(public_class: type) -> str:
    """Return the section ``Examples:`` of the docstring of a class, which is the last one."""
    docstring = inspect.cleandoc(public_class.__doc__ or "")
    return docstring.partition("\n\nExamples:\n")[2]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_class_has_example(name: str) -> None:
    """The last section of its docstring is ``Examples:``, and nothing in it is skipped."""
    examples = examples_of(PUBLIC[name])
    assert ">>> " in examples
    assert "+SKIP" not in examples
    assert all(line.startswith("    ") for line in examples.splitlines() if line)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports all that it names, shows what it says, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    # SentenceContext is built without the model, which it loads with the first text
    monkeypatch.setattr(sentences, "PACKAGES", ())
    example = doctest.DocTestParser().get_doctest(
        textwrap.dedent(examples_of(PUBLIC[name])),
        {"__name__": "example"},  # classes in it are those of a user's module
        name,
        inspect.getsourcefile(PUBLIC[name]),
        None,
    )
    report: list[str] = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert results.failed == 0, "".join(report)
    assert list(tmp_path.iterdir()) == []


def test_exceptions_are_public_classes() -> None:
    for name in WITHOUT_EXAMPLE:
        assert not examples_of(PUBLIC[name]), f"{name} needs no exception"
