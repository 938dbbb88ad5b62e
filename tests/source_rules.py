"""Rules about source code, checked on syntax trees.

Nothing of the package is imported, so an import inside a function or under ``TYPE_CHECKING``
counts like one at the top of the file. The rules about docstrings look up which methods are
inherited, and import the base classes of other packages for that.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

FOLDERS = ("agents", "configs", "envs", "policies")
"""Folders of the package."""
SCRIPTS = ("train", "eval", "compare", "watch", "play", "card")
"""Modules at the root of the repository."""
UNPICKLERS = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
"""Modules that can run code while they load data."""
PARALLEL_NAMES = {"joblib.Parallel", "joblib.delayed", "joblib.cpu_count", "joblib.externals.loky"}
"""Names of joblib that start processes; its others load files by pickle."""

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


# ------------------------------------------------------------------------------------------ imports


def imported_names(tree: ast.AST, package: str) -> set[str]:
    """Return the absolute names that a module imports: modules, and each name taken from one.

    ``from mirl import envs`` gives ``mirl`` and ``mirl.envs``; so does ``from .. import envs`` in
    the package ``mirl.policies``.

    Args:
        tree: syntax tree of the module.
        package: package of the module, e.g. ``mirl.policies``.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                module = _absolute_module(node, package)
                names.add(module)
                names.update(f"{module}.{alias.name}" for alias in node.names)
            case ast.Call(
                func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                names.add(name)
    return names


def _absolute_module(node: ast.ImportFrom, package: str) -> str:
    """Return the module of ``from ... import``, with the dots of a relative import resolved."""
    parts: list[str] = []
    if node.level:
        # one dot is the package itself, each further dot its parent
        packages = package.split(".")
        parts = packages[: len(packages) + 1 - node.level]
    if node.module:
        parts.append(node.module)
    return ".".join(parts)


def imported_parts(names: set[str]) -> set[str]:
    """Return the folders and scripts of MIRL among imported names: ``mirl.envs.make`` is ``envs``.

    Args:
        names: absolute names, from ``imported_names``.
    """
    parts: set[str] = set()
    for name in names:
        words = name.split(".")
        if words[0] == "mirl" and len(words) > 1:
            parts.add(words[1])
    return parts & {*FOLDERS, *SCRIPTS}


def import_graph(trees: dict[str, ast.Module], packages: set[str]) -> dict[str, set[str]]:
    """Return the modules that each module imports.

    ``from a import b`` imports the module ``a.b`` if there is one, and ``a`` otherwise.

    Args:
        trees: syntax trees by the absolute name of the module.
        packages: names among them that are packages (``__init__.py``).
    """
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        package = module if module in packages else module.rpartition(".")[0]
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                source = _absolute_module(node, package)
                for alias in node.names:
                    submodule = f"{source}.{alias.name}"
                    names.add(submodule if submodule in trees else source)
            else:
                names |= imported_names(node, package) if _is_import(node) else set()
        graph[module] = names & set(trees)
    return graph


def _is_import(node: ast.AST) -> bool:
    """Return True for ``import a`` and for calls, such as ``importlib.import_module("a")``."""
    return isinstance(node, ast.Import | ast.Call)


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of modules that import each other, first and last the same; empty if none.

    Args:
        graph: the modules that each module imports.
    """
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


# ------------------------------------------------------------------------------- contents of a file


def forbidden_calls(tree: ast.AST) -> Iterator[str]:
    """Yield everything that can run code out of data.

    That is ``eval``, ``exec``, loading with pickle, and Hydra's ``_target_`` and ``instantiate``.

    Args:
        tree: syntax tree of a module.
    """
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("eval" | "exec" as name)):
                yield f"line {node.lineno}: {name}()"
            case ast.Attribute(value=ast.Name("builtins"), attr="eval" | "exec" as name):
                yield f"line {node.lineno}: builtins.{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name("torch"), attr="load")) if not any(
                keyword.arg == "weights_only" for keyword in node.keywords
            ):
                yield f"line {node.lineno}: torch.load() without weights_only=True"
            case ast.Import(names=[ast.alias("joblib")]):
                yield f"line {node.lineno}: import joblib, of which only some names are harmless"
            case ast.keyword(arg="weights_only", value=ast.Constant(False)):
                yield f"line {node.value.lineno}: weights_only=False"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(True)):
                yield f"line {node.value.lineno}: allow_pickle=True"
            case ast.Constant(str(text)) if "_target_" in text and id(node) not in docstrings:
                yield f"line {node.lineno}: {text!r}"
    for name in imported_names(tree, "mirl"):
        if name.split(".")[0] in UNPICKLERS or name == "hydra.utils.instantiate":
            yield f"imports {name}"
        if name.startswith("joblib.") and not name.startswith(tuple(PARALLEL_NAMES)):
            yield f"imports {name}"


def has_code(tree: ast.Module) -> bool:
    """Return True if a module defines a function or a class.

    Args:
        tree: syntax tree of the module.
    """
    definitions = FunctionNode | ast.ClassDef
    return any(isinstance(node, definitions) for node in ast.walk(tree))


def string_literals(tree: ast.AST, texts: set[str]) -> Iterator[str]:
    """Yield the line of every string literal that equals one of some texts.

    Args:
        tree: syntax tree of a module.
        texts: texts to look for.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in texts:
            yield f"line {node.lineno}: {node.value!r}"


# --------------------------------------------------------------------------------------- docstrings

NOUN_CLAUSE = re.compile(r"(What|Whether|Where|How|Which|Whose|So|As)\b")
"""Openings that a docstring must not have."""
SPHINX_FIELD = re.compile(r":(param|type|raises|return|returns|rtype)\b")
"""Sphinx fields, which Google style replaces by sections."""
SECTION = re.compile(
    r"\s*(Returns|Yields|Raises|References|Attributes|Examples?|Notes?|Warns):\s*$"
)
"""First line of a section other than ``Args:``."""
ARGUMENT = re.compile(r"\s+(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)(?:\s*\(.*?\))?:")
"""Line that documents one or several arguments: ``low, high: bounds``."""


def misstyled_docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield docstrings that open with a noun clause or use Sphinx fields.

    The strings under constants and fields count as docstrings too.

    Args:
        tree: syntax tree of a module.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(str(text))):
                opening = text.strip().partition("\n")[0]
                if NOUN_CLAUSE.match(opening):
                    yield f"line {node.lineno}: {opening!r}"
                if SPHINX_FIELD.search(text):
                    yield f"line {node.lineno}: Sphinx field in {opening!r}"


def documented_arguments(docstring: str) -> set[str]:
    """Return the names in the ``Args:`` section of a docstring.

    Args:
        docstring: docstring without indentation, as ``ast.get_docstring`` returns it.
    """
    names: set[str] = set()
    inside = False
    for line in docstring.splitlines():
        if line.strip() == "Args:":
            inside = True
        elif SECTION.match(line):
            inside = False
        elif inside:
            found = ARGUMENT.match(line)
            if found is not None:
                names.update(name.strip(" *") for name in found[1].split(","))
    return names


@dataclass
class Module:
    """A module of the package, prepared to look up its classes."""

    name: str
    """Absolute name, e.g. ``mirl.envs.make``."""
    tree: ast.Module
    """Syntax tree."""
    imports: dict[str, str] = field(default_factory=dict)
    """Absolute names by the local names that imports bind: ``nn`` is ``torch.nn``."""
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    """Classes at the top level by their names."""


def load_module(name: str, tree: ast.Module, *, is_package: bool = False) -> Module:
    """Prepare a module to look up its classes.

    Args:
        name: absolute name.
        tree: syntax tree.
        is_package: True for an ``__init__.py``.
    """
    module = Module(name, tree)
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    if alias.asname:
                        module.imports[alias.asname] = alias.name
                    else:  # `import a.b` binds `a`
                        top = alias.name.partition(".")[0]
                        module.imports[top] = top
            case ast.ImportFrom():
                source = _absolute_module(node, package)
                for alias in node.names:
                    module.imports[alias.asname or alias.name] = f"{source}.{alias.name}"
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            module.classes[statement.name] = statement
    return module


class Docstrings:
    """Checks that public callables document their parameters.

    Excepted are private and magic methods, properties and overloads, and methods that a base class
    defines: their parameters are documented there.

    Args:
        modules: all modules of the package by their absolute names.
    """

    def __init__(self, modules: dict[str, Module]) -> None:
        self._modules = modules

    def undocumented(self, module: Module) -> Iterator[str]:
        """Yield the public callables of a module with undocumented parameters.

        Args:
            module: one of the modules of the package.
        """
        for statement in module.tree.body:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    if not statement.name.startswith("_"):
                        yield from _missing(statement, ast.get_docstring(statement), 0)
                case ast.ClassDef() if not statement.name.startswith("_"):
                    yield from self._undocumented_in_class(module, statement)

    def _undocumented_in_class(self, module: Module, node: ast.ClassDef) -> Iterator[str]:
        inherited = self._inherited_names(module, node)
        for method in node.body:
            if not isinstance(method, FunctionNode):
                continue
            decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
            first = 0 if "staticmethod" in decorators else 1  # without self or cls
            if method.name == "__init__":
                text = f"{ast.get_docstring(node)}\n\n{ast.get_docstring(method)}"
                yield from _missing(method, text, first, node.name)
            elif method.name.startswith("_") or method.name in inherited:
                continue
            elif not _is_property_or_overload(decorators):
                name = f"{node.name}.{method.name}"
                yield from _missing(method, ast.get_docstring(method), first, name)

    def _inherited_names(self, module: Module, node: ast.ClassDef) -> set[str]:
        """Return the names that the base classes of a class define."""
        names: set[str] = set()
        for base in node.bases:
            dotted = _dotted_name(base)
            if dotted:
                names |= self._names_of_class(module, dotted)
        return names

    def _names_of_class(self, module: Module, dotted: str) -> set[str]:
        """Return the names that a class and its base classes define."""
        first, _, rest = dotted.partition(".")
        if not rest and first in module.classes:
            node = module.classes[first]
            own = {item.name for item in node.body if isinstance(item, FunctionNode)}
            return own | self._inherited_names(module, node)
        absolute = module.imports.get(first, first) + ("." + rest if rest else "")
        owner, _, name = absolute.rpartition(".")
        if owner in self._modules:
            return self._names_of_class(self._modules[owner], name)
        if not owner or owner.split(".")[0] == "mirl":
            return set()  # a built-in class, or one that the package does not define
        return set(dir(getattr(importlib.import_module(owner), name, object)))


def _missing(
    function: FunctionNode, docstring: str | None, first: int, name: str = ""
) -> Iterator[str]:
    """Yield one line if parameters of a function are missing in its ``Args:`` section.

    Args:
        function: the function.
        docstring: text that may document the parameters.
        first: 1 to leave out ``self`` or ``cls``.
        name: name to report; empty for that of the function.
    """
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args][first:] + arguments.kwonlyargs
    for variadic in (arguments.vararg, arguments.kwarg):
        if variadic is not None:
            parameters.append(variadic)
    required = [item.arg for item in parameters if not item.arg.startswith("_")]
    missing = set(required) - documented_arguments(docstring or "")
    if missing:
        in_order = [item for item in required if item in missing]
        yield f"line {function.lineno}: {name or function.name} ({', '.join(in_order)})"


def _is_property_or_overload(decorators: set[str]) -> bool:
    """Return True if a method's parameters need no documentation because of a decorator."""
    for decorator in decorators:
        last = decorator.rpartition(".")[2]
        if last in ("property", "cached_property", "setter", "overload", "override"):
            return True
    return False


def _dotted_name(node: ast.expr) -> str:
    """Return ``a.b`` for the expression ``a.b`` or ``a.b[...]``; empty for any other."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            value = _dotted_name(node.value)
            return f"{value}.{node.attr}" if value else ""
        case ast.Subscript():
            return _dotted_name(node.value)
        case _:
            return ""
