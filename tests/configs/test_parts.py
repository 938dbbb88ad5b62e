"""Tests of the parts of a network, with a family of their own: shapes."""

import pickle
from typing import Annotated, Any, Literal

import pytest
from pydantic import PositiveInt, TypeAdapter, ValidationError

from mirl.configs import parts
from mirl.configs.config import Config
from mirl.configs.errors import ConfigError
from mirl.configs.parts import (
    BuiltInOrOwn,
    Part,
    PartConfig,
    check_can_be_stored,
    config_class_of,
    short_name,
)


class BaseShapeConfig(PartConfig):
    """Base class of the configs of the family."""


class Shape(Part):
    """Base class of the family."""

    Config = BaseShapeConfig

    def __init__(self, size: int, config: BaseShapeConfig) -> None:
        self.size = size
        self.config = config


class Ring(Shape):
    """A part with an option."""

    class Config(BaseShapeConfig):
        """Options of the ring."""

        width: PositiveInt = 1


class WideRing(Ring):
    """A part without a Config of its own."""


class Outer:
    """A class around a part."""

    class Inner(Shape):
        """A part with no options."""

        class Config(BaseShapeConfig):
            """No options."""


class CircleConfig(PartConfig):
    """Stands for a built-in config."""


class SquareConfig(PartConfig):
    """Stands for another built-in config."""


class Drawing(Config):
    """A config with a field for a shape."""

    shape: Annotated[PartConfig, BuiltInOrOwn(CircleConfig | SquareConfig, BaseShapeConfig)] = (
        CircleConfig()
    )


RING = f"{__name__}:Ring"


def test_kind_is_named_after_owner() -> None:
    assert Ring.Config().kind == RING
    assert WideRing.Config().kind == f"{__name__}:WideRing"
    assert Outer.Inner.Config().kind == f"{__name__}:Outer.Inner"


def test_kind_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError):
        Ring.Config(kind="ring")

    class Named(Shape):
        class Config(BaseShapeConfig):
            kind: Literal["named"] = "named"

    assert Named.Config().kind.endswith("Named")


def test_subclass_inherits_options() -> None:
    config = WideRing.Config(width=3)
    assert isinstance(config, Ring.Config)
    assert Shape.class_of(config) is WideRing
    assert Shape.class_of(Ring.Config(width=3)) is Ring


@pytest.mark.parametrize(
    "value",
    [
        Ring,
        Ring.Config,
        Ring.Config(),
        RING,
        {"kind": RING},
        {"kind": RING, "width": 1},
        {"kind": RING, "width": "1"},
    ],
)
def test_every_form_gives_the_config(value: Any) -> None:
    assert Drawing(shape=value).shape == Ring.Config(width=1)


def test_config_survives_round_trips() -> None:
    drawing = Drawing(shape=Ring.Config(width=4))
    assert drawing.model_dump() == {"shape": {"kind": RING, "width": 4}}
    assert Drawing.model_validate(drawing.model_dump(mode="json")) == drawing
    assert Drawing.model_validate_json(drawing.model_dump_json()) == drawing
    assert pickle.loads(pickle.dumps(drawing)) == drawing
    assert hash(drawing) == hash(drawing.model_copy())
    copied = drawing.model_copy(update={"shape": WideRing.Config()})
    assert copied != drawing


def test_different_classes_are_unequal() -> None:
    assert Ring.Config() != WideRing.Config()


@pytest.mark.parametrize(
    ("value", "location"),
    [
        ({"kind": RING, "width": 0}, ("shape", RING, "width")),
        ({"kind": RING, "wdth": 1}, ("shape", RING, "wdth")),
        ("no_module_of_mine:Ring", ("shape",)),
        (f"{__name__}:Rnig", ("shape",)),
        (Shape, ("shape",)),
        (BaseShapeConfig, ("shape",)),
        (3, ("shape",)),
    ],
)
def test_errors_say_where(value: Any, location: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as raised:
        Drawing.model_validate({"shape": value})
    [detail] = raised.value.errors()
    assert detail["loc"] == location


def test_part_is_built_from_config() -> None:
    config = Ring.Config(width=2)
    ring = Shape.class_of(config).construct(size=5, config=config)
    assert isinstance(ring, Ring)
    assert (ring.size, ring.config) == (5, config)


def test_other_constructor_is_refused() -> None:
    class Stranger(Shape):
        class Config(BaseShapeConfig):
            pass

        def __init__(self, config: BaseShapeConfig) -> None: ...

    config = Stranger.Config()
    with pytest.raises(ConfigError, match=r"Stranger expected to be built by \(size, config\)"):
        Shape.class_of(config).construct(size=5, config=config)


def test_error_inside_constructor_is_cause() -> None:
    class Failing(Shape):
        class Config(BaseShapeConfig):
            pass

        def __init__(self, size: int, config: BaseShapeConfig) -> None:
            raise TypeError("from inside")

    config = Failing.Config()
    with pytest.raises(ConfigError, match=r"Failing\.__init__ fails at .*from inside") as raised:
        Shape.class_of(config).construct(size=5, config=config)
    assert isinstance(raised.value.__cause__, TypeError)


def test_config_belongs_to_one_class() -> None:
    with pytest.raises(ConfigError, match="already belongs to Ring"):
        type("Second", (Shape,), {"Config": Ring.Config})


def test_config_without_class_is_refused() -> None:
    class Lonely(BaseShapeConfig):
        pass

    with pytest.raises(ConfigError, match=r"expected the Config of a Shape, got .*Lonely"):
        Shape.class_of(Lonely())
    with pytest.raises(ConfigError, match=r"'.*Lonely' is the Config of no class"):
        config_class_of(Lonely, BaseShapeConfig)


def test_mistake_in_class_is_named() -> None:
    class Unconfigured(Shape):
        pass

    class Foreign(Shape):
        class Config:
            pass

    class NoPart:
        Config = Ring.Config

    mistakes = {
        Unconfigured: "has no inner class Config; give it one, class Config(BaseShapeConfig)",
        Foreign: "must inherit from BaseShapeConfig",
        NoPart: f"does not inherit from {__name__}.Shape",
        Shape: "is the abstract base class itself",
        test_mistake_in_class_is_named: "is not a class but a function",
        Ring(1, Ring.Config()): "is not a class but an instance of Ring",
    }
    for found, message in mistakes.items():
        with pytest.raises(ConfigError) as raised:
            config_class_of(found, BaseShapeConfig)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_class_of_other_script_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a class is loaded with an agent, and MIRL has never seen its definition."""
    config = type("Config", (BaseShapeConfig,), {"__module__": "__main__"})
    script = type("Script", (Shape,), {"__module__": "__main__", "Config": config})
    monkeypatch.setattr(parts, "_part_classes", {})
    with pytest.raises(ConfigError, match="put the class at the top level of a module"):
        config_class_of(script, BaseShapeConfig)
    with pytest.raises(ConfigError, match="put the class at the top level of a module"):
        Shape.class_of(config())


def test_redefined_class_replaces_earlier_one() -> None:
    def define() -> type[Shape]:
        class Again(Shape):
            class Config(BaseShapeConfig):
                pass

        return Again

    first = define()
    second = define()
    kind = second.Config().kind
    adapter = TypeAdapter(Drawing)
    assert type(adapter.validate_python({"shape": kind}).shape) is second.Config
    assert Shape.class_of(first.Config()) is first


@pytest.mark.parametrize(
    ("config", "name"), [(Ring.Config(), "Ring"), (Outer.Inner.Config(), "Inner")]
)
def test_short_name_is_the_class(config: PartConfig, name: str) -> None:
    assert short_name(config) == name


def test_only_importable_classes_are_stored() -> None:
    check_can_be_stored(Ring.Config())

    class Local(Shape):
        class Config(BaseShapeConfig):
            pass

    with pytest.raises(ConfigError, match="a module of its own"):
        check_can_be_stored(Local.Config())
