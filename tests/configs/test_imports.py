"""Modules that may be imported, and those that a file may only name."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs import imports
from mirl.configs.errors import ConfigError
from mirl.configs.imports import (
    PluginWarning,
    allow_imports,
    allowed_modules,
    check_allowed,
    import_module,
    import_object,
    import_words,
    imported_modules,
    is_allowed,
    load_plugins,
    named_code,
    restore_imports,
)

SOURCE = """
import os
class Outer:
    class Inner: ...
value = 3
"""


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    keys = st.sampled_from(["imports", "kind", "env_id", "wrappers", "kwargs", "other"])
    return st.lists(inner) | st.dictionaries(keys, inner)


Plant = Callable[..., None]
"""Function that writes a module: its name, its source."""


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test allowed and imported."""
    monkeypatch.setattr(imports, "_allowed", set())
    monkeypatch.setattr(imports, "_imported", {})
    monkeypatch.setattr(imports, "_plugins", tuple)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Return a function that writes a module into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, source: str = SOURCE) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    return write


def error_of(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        import_object(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("named", "module", "expected"),
    [
        ("plantedparts", "plantedparts", True),
        ("plantedparts", "plantedparts.layers", True),
        ("plantedparts.layers", "plantedparts", True),
        ("plantedparts.layers", "plantedparts.other", False),
        ("plantedparts", "plantedparts2", False),
        ("plantedparts", "plantedparts.__main__", False),
        ("plantedparts", "other", False),
    ],
)
def test_package_allows_its_modules(named: str, module: str, expected: bool) -> None:
    allow_imports(named)
    assert is_allowed(module) == expected
    assert allowed_modules() == (named,)


def test_loaded_module_is_allowed(plant: Plant) -> None:
    assert is_allowed("json")
    assert not is_allowed("json.tool")


@pytest.mark.parametrize("name", ["", "a b", "a..b", "a:b", "../a", "a.__main__"])
def test_allowing_needs_module_name(name: str) -> None:
    with pytest.raises(ConfigError, match="expected the name of a module"):
        allow_imports(name)


@pytest.mark.parametrize(("name", "expected"), [("Outer", "Outer"), ("Outer.Inner", "Inner")])
def test_allowed_object_is_imported(plant: Plant, name: str, expected: str) -> None:
    plant("plantedparts.layers")
    allow_imports("plantedparts")
    found = import_object(f"plantedparts.layers:{name}")
    assert isinstance(found, type)
    assert found.__name__ == expected


def test_foreign_module_is_not_executed(plant: Plant) -> None:
    plant("plantedparts", "raise SystemExit")
    path_before = list(sys.path)
    message = error_of("plantedparts:Mine")
    assert message == (
        "'plantedparts:Mine' names code of 'plantedparts', which a file may not import by itself; "
        "add import=plantedparts (in Python, import plantedparts first)"
    )
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ownpart:Mine", "no module 'ownpart' .* Did you mean 'plantedparts'?"),
        (
            "plantedparts.layer:Mine",
            "no module 'plantedparts.layer' .* Did you mean 'plantedparts.layers'?",
        ),
        ("plantedparts.layers:Outr", "has no 'Outr'. Did you mean 'Outer'?"),
        ("plantedparts.layers:value.real", "only a module or a class can hold 'real'"),
        ("plantedparts.layers:os.system", "only a module or a class can hold 'system'"),
        ("plantedparts.layers", "expected module:Name"),
        ("plantedparts.layers:", "expected module:Name"),
        ("plantedparts.layers:a b", "expected module:Name"),
        ("fails:Mine", r"fails on import: ZeroDivisionError: .* \(.*fails.py, line 2\)"),
        ("ends:Mine", "fails on import: SystemExit: 1"),
        ("needs:Mine", "module 'needs' needs 'no_such_package'; pip install no_such_package"),
        ("__main__:NoSuchClass", "was defined in a script"),
    ],
)
def test_failed_import_says_why(plant: Plant, path: str, message: str) -> None:
    plant("plantedparts.layers")
    plant("plantedparts.__init__", "")
    plant("fails", "\n1 / 0")
    plant("ends", "raise SystemExit(1)")
    plant("needs", "import no_such_package.part")
    allow_imports("ownpart", "plantedparts", "fails", "ends", "needs")
    with pytest.raises(ConfigError, match=message):
        import_object(path)
    assert "\n" not in error_of(path)


def test_installed_module_comes_first(plant: Plant) -> None:
    """The current folder is the last one that is searched."""
    plant("colorsys", "raise SystemExit")
    sys.modules.pop("colorsys", None)
    allow_imports("colorsys")
    assert hasattr(import_module("colorsys"), "rgb_to_hsv")


def test_plugins_are_imported(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant("plugin.main")
    # a plugin is installed, so the current folder is not searched for it
    monkeypatch.syspath_prepend(str(Path.cwd()))
    plugin = EntryPoint("mine", "plugin.main", "mirl.plugins")
    monkeypatch.setattr(imports, "_plugins", lambda: (plugin,))
    assert is_allowed("plugin.main")
    load_plugins()
    assert "plugin.main" in sys.modules


def test_broken_plugin_is_a_warning(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = EntryPoint("mine", "no_such_plugin", "mirl.plugins")
    monkeypatch.setattr(imports, "_plugins", lambda: (plugin,))
    with pytest.warns(PluginWarning, match="plugin 'mine' .* no module 'no_such_plugin'"):
        load_plugins()


def test_file_adds_no_current_folder(plant: Plant) -> None:
    """A module that any file may name is not searched for in the current folder."""
    plant("gymnasium.planted")
    plant("missing_package")
    before = list(sys.path)
    with pytest.raises(ConfigError, match=r"no module .gymnasium\.not_yet."):
        import_module("gymnasium.not_yet")
    assert sys.path == before
    allow_imports("json.tool")
    import_module("json.tool")
    assert sys.path == before  # found elsewhere
    allow_imports("missing_package")
    import_module("missing_package")
    assert sys.path == [*before, str(Path.cwd())]


def test_module_alias_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in ``sys.modules`` that is not the module's own stands for another file elsewhere."""
    monkeypatch.setitem(sys.modules, "_alias_of_json", sys.modules["json"])
    assert is_allowed("json")
    assert not is_allowed("_alias_of_json")


def test_package_itself_is_not_allowed() -> None:
    """The name of MIRL allows nothing, because its folder may hold run directories."""
    with pytest.raises(ConfigError, match="expected a module of your own, got 'mirl'"):
        allow_imports("mirl")


def test_libraries_are_allowed() -> None:
    """Any file may name the code of MIRL and of the libraries whose ids it registers itself."""
    for module in ("mirl.envs.not_yet", "minigrid.not_yet", "gymnasium.wrappers.not_yet"):
        assert is_allowed(module)
    for module in ("mirl.runs.evil.planted", "minigrid.__main__", "gymnasium2"):
        assert not is_allowed(module)


NAMES_CODE = {
    "task": {
        "tasks": [
            {"env_id": "a.b:Id-v0", "kwargs": {"kind": "not:this", "env_id": "not:that"}},
            {"env_id": "Plain-v0", "wrappers": ["b:One", {"wrapper": "c:Two", "kwargs": {}}]},
        ],
        "wrappers": "d:Three",
    },
    "fusion": {"kind": "e:Part", "parts": [{"kind": "f:Deep"}, {"kind": "bilinear"}]},
    "imports": ["g", "h.i"],
    "success": "return>=3:4",
}


def test_named_code_is_found() -> None:
    assert sorted(named_code(NAMES_CODE)) == [
        *("a.b:Id-v0", "b:One", "c:Two", "d:Three", "e:Part", "f:Deep", "g", "h.i"),
    ]
    assert import_words(NAMES_CODE) == ["import=a,b,c,d,e,f,g,h"]


@given(st.recursive(st.none() | st.text() | st.integers(), nested, max_leaves=10))
def test_any_values_are_searched(values: object) -> None:
    for name in named_code(values):
        assert isinstance(name, str)


def test_advice_names_every_module() -> None:
    with pytest.raises(ConfigError) as caught:
        check_allowed(named_code(NAMES_CODE), "config.yaml: ")
    message = str(caught.value)
    assert "\n" not in message
    assert "add import=a,b,c,d,e,f,g,h " in message
    allow_imports(*"abcdefgh")
    check_allowed(named_code(NAMES_CODE))


@pytest.mark.parametrize("path", ["../x:Y", "a b", "a.__main__:Y"])
def test_path_is_no_module_name(path: str) -> None:
    with pytest.raises(ConfigError, match="must begin with the name of a module"):
        check_allowed([path])


def test_worker_imports_as_its_owner(plant: Plant) -> None:
    """A worker imports what its owner imported, and leaves out what it cannot."""
    plant("plantedparts.layers")
    restore_imports(("plantedparts",), ("plantedparts.layers", "made_in_a_notebook"))
    assert "plantedparts.layers" in imported_modules()
    assert "plantedparts.layers" in sys.modules
    assert allowed_modules() == ("plantedparts",)
