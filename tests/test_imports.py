"""Imports point one way: from rooms that use to rooms that are used, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

#: The rooms of the core, each of which may import those that stand before it.
FLOORS = (
    "version",
    "errors",
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


def modules_below(folder: Path) -> dict[str, Path]:
    """The modules of a package by their names; a package itself is not one of them."""
    paths = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    parts = [path.relative_to(folder.parent).with_suffix("").parts for path in paths]
    return {".".join(names): path for names, path in zip(parts, paths, strict=True)}


def imports_of(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports anywhere, but for annotations only."""
    tree = ast.parse(path.read_text())
    hints = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(inner) for node in hints for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                if name in modules:
                    yield name


CORE = modules_below(ROOT / "ae_toolkit")
PLUGINS = ("ae_image", "ae_music", "ae_audio")


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_downward(name: str) -> None:
    room = FLOORS.index(name.split(".")[1])
    upward = [f for f in imports_of(CORE[name], CORE) if FLOORS.index(f.split(".")[1]) > room]
    assert not upward, f"{name} imports {upward}"


@pytest.mark.parametrize("package", ["ae_toolkit", *PLUGINS])
def test_no_imports_in_circles(package: str) -> None:
    folder = ROOT / ("" if package == "ae_toolkit" else "plugins") / package
    modules = modules_below(folder)
    graph = {name: {*imports_of(path, modules)} - {name} for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names them


@pytest.mark.parametrize("package", PLUGINS)
def test_commands_of_a_plugin_are_imported_by_nothing_else(package: str) -> None:
    modules = modules_below(ROOT / "plugins" / package)
    for name, path in modules.items():
        found = [m for m in imports_of(path, modules) if m.startswith(f"{package}.cli.")]
        assert not found or name.startswith(f"{package}.cli."), f"{name} imports {found}"
