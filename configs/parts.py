"""Parts of a network, each chosen by a config: fusions, contexts, encoders and recurrent cores.

A part is a class with a frozen ``Config``. Built-in parts and those of users follow the same
contract, and a config knows which class it belongs to, so the classes are not listed anywhere:

    class Mine(Fusion):
        class Config(BaseFusionConfig):
            rank: Width = 8

        def __init__(self, features_dim, context_dim, out_dim, config: Config, gain): ...

The ``kind`` of a built-in config is a short name. For any other it is ``module:Class``, after the
class that owns it; it is set when the class is defined and never typed.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import UnionType, new_class
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import Field, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from mirl.configs.config import Config
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.imports import import_object

PACKAGE = "mirl"
"""Package whose config classes define a short kind themselves."""
OWN_KIND = ":"
"""Character that distinguishes the kind of a user's part, ``module:Class``, from a built-in one."""
OTHER_SCRIPT = (
    "was defined in the script that saved the agent, which is not running; put the class at the "
    "top level of a module of its own and save the agent again"
)
"""End of a message about a class that was loaded with an agent."""

_part_classes: dict[type["PartConfig"], type["Part"]] = {}
"""The class that each config class is the ``Config`` of."""
_own_configs: dict[str, type["PartConfig"]] = {}
"""The config classes of users by their kind; a later definition replaces an earlier one."""


class PartConfig(Config):
    """Options of a part; base class of the families ``BaseFusionConfig`` and so on."""

    former_values: ClassVar[Mapping[str, object]] = {}
    """Values of the options that configs pickled by an earlier version lack."""
    kind: str = ""
    """Short name of a built-in part, ``module:Class`` of any other."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _is_of_package(cls.__module__):
            return
        # pydantic collects the fields after this method
        kind = f"{cls.__module__}:{cls.__qualname__.removesuffix('.Config')}"
        cls.__annotations__ = {**inspect.get_annotations(cls), "kind": Literal[kind]}
        cls.kind = kind
        _own_configs[kind] = cls

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore a pickled config; one from an earlier version lacks ``former_values``.

        Args:
            state: the pickled state.
        """
        super().__setstate__({**state, "__dict__": {**self.former_values, **state["__dict__"]}})


class Method(NamedTuple):
    """A method of a family of parts that a user's class may override."""

    expected: str
    """Its arguments and its result, as the end of a sentence that begins with "it"."""
    returns: type | None = None
    """Class of the return value; None for anything."""


class Part:
    """Mixin of the base class of each family of parts, such as ``Fusion``.

    A class that inherits from the base class belongs to the config class that it defines as
    ``Config``. Without one, it gets a copy of the ``Config`` of the part that it inherits from; if
    it inherits from the base class, it is abstract and cannot be chosen.
    """

    Config: ClassVar[type[PartConfig]]
    """The options. In the base class of a family, this is the base class of the configs."""
    must_set: ClassVar[tuple[str, ...]] = ()
    """Attributes that every constructor of the family sets."""
    explained_methods: ClassVar[Mapping[str, Method]] = {}
    """Methods whose errors are explained if a user's class overrides them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Part in cls.__bases__:
            return
        if not _is_of_package(cls.__module__):
            _explain_methods(cls)
        config_class = cls.__dict__.get("Config")
        if config_class is None:
            if cls.Config not in _part_classes or _is_of_package(cls.__module__):
                return
            # the same options as the part that it inherits from, but for another class
            names = {
                "__module__": cls.__module__,
                "__qualname__": f"{cls.__qualname__}.Config",
                "__doc__": cls.Config.__doc__,
            }
            config_class = new_class(
                "Config", (cls.Config,), exec_body=lambda namespace: namespace.update(names)
            )
            cls.Config = config_class
        owner = _part_classes.setdefault(config_class, cls)
        if owner is not cls:
            raise ConfigError(
                f"{cls.__qualname__}: its Config already belongs to {owner.__qualname__}; give it "
                f"one of its own, class Config({owner.__qualname__}.Config)"
            )

    @classmethod
    def class_of(cls, config: PartConfig) -> type[Self]:
        """Return the class that a config belongs to.

        Args:
            config: the options of a part of this family.

        Raises:
            ConfigError: if no class of this family has it as its ``Config``.
        """
        found = _part_classes.get(type(config))
        if found is None and _is_of_other_script(type(config)):
            raise ConfigError(f"'{type(config).__qualname__}' {OTHER_SCRIPT}")
        if found is None or not issubclass(found, cls):
            raise ConfigError(
                f"expected the Config of a {cls.__name__}, got {type(config).__qualname__}"
            )
        return found

    @classmethod
    def construct(cls, **arguments: object) -> Self:
        """Build a part with the constructor signature that all parts of its family share.

        Args:
            arguments: the arguments in order. They are passed by position, so a class may give its
                parameters other names.

        Returns:
            The part, newly initialized.

        Raises:
            ConfigError: if the class has another constructor, or does not set an attribute.
        """
        found: Any = cls
        name = f"{cls.__module__}:{cls.__qualname__}"
        try:
            # not by a TypeError of the call itself, which may come from deeper in the stack
            inspect.signature(found).bind(*arguments.values())
        except TypeError as error:
            raise ConfigError(
                f"{name} expected to be built by ({', '.join(arguments)}), got an __init__ with "
                f"other parameters: {error}"
            ) from None
        if inspect.isabstract(found):
            methods = ", ".join(sorted(found.__abstractmethods__))
            raise ConfigError(f"{name} must define {methods}")
        given = f"was given ({', '.join(arguments)})"
        with explain_own_errors(found, "__init__", lambda: given):
            try:
                part: Self = found(*arguments.values())
            except AttributeError as error:
                # torch's message does not name the class
                if "Module.__init__() call" not in str(error):
                    raise
                raise ConfigError(f"{name}.__init__ must call super().__init__ first") from None
        missing = [attribute for attribute in cls.must_set if not hasattr(part, attribute)]
        if missing:
            raise ConfigError(f"{name}.__init__ must set self.{', self.'.join(missing)}")
        return part


class BuiltInOrOwn:
    """Validation of a field that holds the config of a built-in or of a user's part.

    Built-in configs stay a closed union, which errors and ``--help`` list. The field also takes an
    instance of a user's config class, a class, and the name ``module:Class``, by itself or as the
    ``kind`` of a dictionary of options.

        fusion: Annotated[BaseFusionConfig, BuiltInOrOwn(FusionConfig, BaseFusionConfig)]

    Args:
        union: union of the built-in config classes, each with its own ``kind``.
        base: base class of users' config classes.
    """

    def __init__(self, union: UnionType, base: type[PartConfig]) -> None:
        self.union = union
        self.base = base

    def __get_pydantic_core_schema__(
        self, _source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        by_kind: object = Annotated[self.union, Field(discriminator="kind")]
        return core_schema.no_info_wrap_validator_function(
            self._validate,
            handler.generate_schema(by_kind),
            # by the class of the value, because the union does not have the users' classes
            serialization=core_schema.simple_ser_schema("any"),
        )

    def _validate(self, value: object, validate_built_in: ValidatorFunctionWrapHandler) -> object:
        if isinstance(value, self.base) and type(value) not in get_args(self.union):
            Part.class_of(value)
            return value
        options: dict[object, object] = {}
        named: object = value
        if isinstance(value, dict):
            options = value
            named = value.get("kind")
        if isinstance(named, str) and OWN_KIND in named:
            config_class = find_config(named, self.base)
        elif isinstance(named, type):
            config_class = config_class_of(named, self.base)
        else:
            return validate_built_in(value)
        kind = config_class.model_fields["kind"].default
        options = {**options, "kind": kind}
        if config_class in get_args(self.union):
            return validate_built_in(options)
        try:
            return config_class.model_validate(options)
        except ValidationError as error:
            # add the kind to the location, as for an error in the union
            raise _put_below(error, kind) from None


def find_config(path: str, base: type[PartConfig], subject: str = "") -> type[PartConfig]:
    """Return the config class of the part that ``module:Class`` names.

    Args:
        path: name of the class of a part.
        base: base class that its config class must have.
        subject: start of the error message, e.g. ``fusion: ``.

    Raises:
        ConfigError: if the module may not be imported or has no such class, or if the class is not
            a part of this family.
    """
    known = _own_configs.get(path)
    # classes inside of functions cannot be imported, but are known once defined in this process
    found = known if known is not None else import_object(path, subject)
    return config_class_of(found, base, path, subject)


def config_class_of(
    found: object, base: type[PartConfig], path: str = "", subject: str = ""
) -> type[PartConfig]:
    """Return the config class of the class of a part.

    Args:
        found: the class of a part, or its config class.
        base: base class that the config class must have.
        path: name of the class in the error message; by default its own name.
        subject: start of the error message, e.g. ``fusion: ``.

    Raises:
        ConfigError: if the class is not a part of this family, or an abstract one.
    """
    config_class: object = found
    if isinstance(found, type) and issubclass(found, Part):
        config_class = found.Config
    if (
        isinstance(config_class, type)
        and issubclass(config_class, base)
        and config_class in _part_classes
    ):
        return config_class
    name = path or getattr(found, "__qualname__", repr(found))
    raise ConfigError(f"{subject}{_explain_no_part(found, base, name)}")


def _explain_no_part(found: object, base: type[PartConfig], name: str) -> str:
    """Explain why an object does not belong to the family with this base class of configs."""
    expected = f"a class with an inner class Config({base.__name__})"
    # unknown until its module has been imported, which also imports the family
    family = next((each for each in Part.__subclasses__() if issubclass(base, each.Config)), None)
    if not isinstance(found, type):
        return f"expected {expected}, got '{name}', which is not a class but {_kind_of(found)}"
    if issubclass(found, PartConfig):
        if not issubclass(found, base):
            return f"expected {expected}, got '{name}', which is the Config of another kind of part"
        return f"'{name}' is the Config of no class; define it inside of the class of the part"
    if not issubclass(found, Part):
        parent = "the base class of these parts" if family is None else _import_path(family)
        return f"expected {expected}, got '{name}', which does not inherit from {parent}"
    if found is family:
        return f"expected {expected}, got '{name}', which is the abstract base class itself"
    if family is not None and not issubclass(found, family):
        return f"expected {expected}, got '{name}', which is a part of another kind, {_kind(found)}"
    if _is_of_other_script(found):
        return f"'{name}' {OTHER_SCRIPT}"
    own = found.__dict__.get("Config")
    if own is None:
        return f"'{name}' has no inner class Config; give it one, class Config({base.__name__})"
    return (
        f"the inner class Config of '{name}' must inherit from {base.__name__}: "
        f"class Config({base.__name__})"
    )


def _is_of_other_script(found: type) -> bool:
    """Return True if a class comes from the file of an agent that another script saved.

    Such a file contains the classes of a script themselves, without MIRL's data about them.
    """
    if found.__module__ != "__main__":
        return False
    defined: object = sys.modules["__main__"]
    for name in found.__qualname__.split("."):
        defined = getattr(defined, name, None)
    return defined is not found


def _kind(part: type[Part]) -> str:
    """Return the name of the base class of a part's family."""
    families = [each.__name__ for each in Part.__subclasses__() if issubclass(part, each)]
    return f"a {families[0]}"


def _kind_of(value: object) -> str:
    kind = type(value).__name__
    return f"an instance of {kind}" if kind not in ("function", "module") else f"a {kind}"


def _import_path(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


@contextmanager
def explain_own_errors(
    part: type[Part], method: str, expected: Callable[[], str]
) -> Iterator[None]:
    """Replace an error inside a user's part by one line; those of built-in parts pass through.

    Args:
        part: the class of the part.
        method: the method that is called.
        expected: describes what the method was given and must return, as the end of a sentence;
            called only after an error.

    Raises:
        ConfigError: the line, with the original error as its cause.
    """
    try:
        yield
    except Exception as error:
        explained = _explain_own_error(part, method, error, expected)
        if explained is None:
            raise
        raise explained from error


def _explain_own_error(
    part: type[Part], method: str, error: Exception, expected: Callable[[], str]
) -> ConfigError | None:
    """Return one line about an error, with the class, file and line of the user's code.

    None for a built-in part, and for errors that are explained elsewhere.
    """
    if _is_of_package(part.__module__) or isinstance(error, ConfigError | RunError):
        return None
    # running out of memory is not the class's fault; torch is not imported here
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return None
    if "can't allocate memory" in str(error):
        return None
    reason = (str(error).splitlines() or [""])[0]
    return ConfigError(
        f"{part.__module__}:{part.__qualname__}.{method} fails{_place(part, error)} with "
        f"{type(error).__name__}: {reason}; it {expected()}"
    )


def _explain_methods(part: type[Part]) -> None:
    """Wrap the methods that a user's class overrides, so that their errors are explained."""
    for name, method in part.explained_methods.items():
        function = part.__dict__.get(name)
        if inspect.isfunction(function):
            setattr(part, name, _explained(part, name, function, method))


def _explained(
    part: type[Part], name: str, function: Callable[..., object], method: Method
) -> Callable[..., object]:
    @wraps(function)
    def call(*arguments: object, **options: object) -> object:
        with explain_own_errors(part, name, lambda: method.expected):
            result = function(*arguments, **options)
        if method.returns is not None and not isinstance(result, method.returns):
            raise ConfigError(
                f"{part.__module__}:{part.__qualname__}.{name} returns {type(result).__name__}"
                f"{own_place(part, name)}; it {method.expected}"
            )
        return result

    return call


def own_place(part: type[Part], method: str) -> str:
    """Return the place where a user's class defines a method, for use inside an error message.

    Args:
        part: the class of the part.
        method: the name of the method.

    Returns:
        `` at file:line``; empty for a built-in part and for a class without a file.
    """
    if _is_of_package(part.__module__):
        return ""
    for found in (getattr(part, method, None), part):
        try:
            defined: Any = inspect.unwrap(found)  # type: ignore[arg-type]
            return f" at {inspect.getfile(defined)}:{inspect.getsourcelines(defined)[1]}"
        except (OSError, TypeError):  # code that was typed into a prompt has no file
            continue
    return ""


def _place(part: type[Part], error: Exception) -> str:
    """Return the file and the line of a user's class that an error came from."""
    try:
        file = inspect.getfile(part)
        line = inspect.getsourcelines(part)[1]
    except (OSError, TypeError):  # a class that was typed into a prompt has no file
        return ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file and frame.lineno is not None:
            line = frame.lineno
    return f" at {file}:{line}"


def own_config(kind: str) -> type[PartConfig] | None:
    """Return the user's config class with this kind; None if none is known.

    Args:
        kind: ``module:Class``.
    """
    return _own_configs.get(kind)


def short_name(config: PartConfig) -> str:
    """Return the kind of a config for the name of a run: ``Mine`` for ``own.layers:Mine``.

    Args:
        config: the config of any part.
    """
    _, _, names = config.kind.rpartition(OWN_KIND)
    return names.rpartition(".")[2]


def check_can_be_stored(config: Config) -> None:
    """Raise an error if a run directory could not name the class of a config.

    Args:
        config: the config of any part; one without a class passes.

    Raises:
        ConfigError: if the class was defined in a script or inside of a function.
    """
    if not isinstance(config, PartConfig) or OWN_KIND not in config.kind:
        return
    module, _, names = config.kind.partition(OWN_KIND)
    if module == "__main__" or "<locals>" in names:
        raise ConfigError(
            f"a run cannot store '{config.kind}', because no other process can import it; put the "
            "class at the top level of a module of its own"
        )


def _is_of_package(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _put_below(error: ValidationError, kind: str) -> ValidationError:
    """Return a validation error with a kind at the start of the location of each detail."""
    details: list[InitErrorDetails] = []
    for detail in error.errors(include_url=False):
        details.append(
            InitErrorDetails(
                # a custom error may have any error's type, and keeps its message
                type=PydanticCustomError(
                    detail["type"], "{message}", {**detail.get("ctx", {}), "message": detail["msg"]}
                ),
                loc=(kind, *detail["loc"]),
                input=detail["input"],
            )
        )
    return ValidationError.from_exception_data(error.title, details)
