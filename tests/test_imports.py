"""Imports point one way: from rooms that use to rooms that are used, and never in a circle."""

from __future__ import annotations

import pytest
from house import PACKAGES, import_circles, imports_of, modules_of

#: The rooms of the core, each of which may import those that stand before it.
FLOORS = (
    "version",
    "errors",
    "texts",
    "files",
    "console",
    "contracts",
    "randomness",
    "device",
    "figures",
    "registry",
    "parts",
    "modality",
    "recipe",
    "autoencoder",
    "runs",
    "data",
    "training",
    "inference",
    "testing",
    "cli",
    "__main__",
)


CORE = modules_of("ae_toolkit")
PLUGINS = [name for name in PACKAGES if name != "ae_toolkit"]


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_downward(name: str) -> None:
    room = FLOORS.index(name.split(".")[1])
    upward = [f for f in imports_of(CORE[name], CORE) if FLOORS.index(f.split(".")[1]) > room]
    assert not upward, f"{name} imports {upward}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_in_circles(package: str) -> None:
    assert not import_circles(package)


@pytest.mark.parametrize("package", PLUGINS)
def test_commands_of_a_plugin_are_imported_by_nothing_else(package: str) -> None:
    modules = modules_of(package)
    for name, path in modules.items():
        found = [m for m in imports_of(path, modules) if m.startswith(f"{package}.cli.")]
        assert not found or name.startswith(f"{package}.cli."), f"{name} imports {found}"
