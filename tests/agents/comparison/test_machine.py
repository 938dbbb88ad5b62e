"""The machine and the versions behind a result."""

import pytest

from mirl.agents.comparison import machine


def test_missing_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no_such_package"))
    versions = machine.machine()["versions"]
    assert isinstance(versions, dict)
    assert list(versions) == ["numpy"]


def test_command_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/some/where/mirl-compare", "settings.a=fusion=film seed=1"])
    assert machine.command_line() == "mirl-compare 'settings.a=fusion=film seed=1'"
