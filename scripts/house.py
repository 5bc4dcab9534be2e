"""Prints the sizes of the code, its import circles and its constants of one word, and their limits.

    python scripts/house.py            # exits with 1 where a limit is passed
    python scripts/house.py --names    # and names what is counted

The core is `ae_toolkit/`. Files and functions are counted with their comments and docstrings.
`tests/test_imports.py` and `tests/test_project.py` hold the code to the same numbers.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ae_toolkit": ROOT / "ae_toolkit",
    **{name: ROOT / "plugins" / name for name in ("ae_image", "ae_music", "ae_audio")},
}

IMPORTS = (ast.Import, ast.ImportFrom)
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60


class Number(NamedTuple):
    """One row of the table.

    Attributes:
        title: what is counted.
        value: how many there are.
        limit: how many there may be.
        names: of what is counted, the largest first.
    """

    title: str
    value: int
    limit: int
    names: list[str]


def sources(*packages: str) -> list[Path]:
    """The Python files of packages; of all of them where none is named."""
    return sorted(path for name in packages or PACKAGES for path in PACKAGES[name].rglob("*.py"))


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def modules_of(package: str) -> dict[str, Path]:
    """The modules of a package, and the packages in it, by their names; not the package itself."""
    found = {}
    for path in sources(package):
        whole = path.parent if path.name == "__init__.py" else path.with_suffix("")
        found[".".join(whole.relative_to(PACKAGES[package].parent).parts)] = path
    del found[package]
    return found


def imports_of(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a file imports anywhere, but for annotations only."""
    tree = ast.parse(path.read_text())
    hints = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(inner) for node in hints for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, IMPORTS) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
        if id(node) not in skipped:
            yield from (name for name in names if name in modules)


def import_circles(package: str) -> list[str]:
    """Groups of modules each of which comes back to itself by way of the others."""
    modules = modules_of(package)
    graph = {name: {*imports_of(path, modules)} - {name} for name, path in modules.items()}
    reached = {name: _reached_from(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [" ".join(group) for group in sorted(groups)]


def _reached_from(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def long_functions(path: Path) -> list[tuple[int, str]]:
    """How many lines each function that is too long has, and where it is."""
    sizes = [
        (int(node.end_lineno or 0) - node.lineno + 1, node.name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    where = path.relative_to(ROOT)
    return [(size, f"{where}:{name}") for size, name in sizes if size > MAX_FUNCTION_LINES]


def one_word_constants(path: Path) -> list[str]:
    """The constants of a module whose names are one word, which can say no unit.

    Type variables and the constants of one letter that formulas have are none.
    """
    found = []
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for name in (leaf for target in targets for leaf in ast.walk(target)):
            if isinstance(name, ast.Name) and name.id.isupper():
                word = name.id.strip("_")
                if "_" not in word and len(word) > 1:
                    found.append(f"{path.relative_to(ROOT)}:{name.id}")
    return found


def numbers() -> list[Number]:
    """The rows of the table."""
    core, everything = sources("ae_toolkit"), sources()
    top = [path.name for path in core if path.parent == PACKAGES["ae_toolkit"]]
    modules = [name for name in top if not name.startswith("__")]
    long_files = sorted(((num_lines(path), path) for path in everything), reverse=True)
    long_files = [(size, path) for size, path in long_files if size > MAX_FILE_LINES]
    functions = sorted((f for path in everything for f in long_functions(path)), reverse=True)
    circles = [circle for package in PACKAGES for circle in import_circles(package)]
    constants = [name for path in everything for name in one_word_constants(path)]
    lines = sum(map(num_lines, core))
    return [
        Number("modules directly in ae_toolkit/", len(modules), 13, modules),
        Number("lines of the core", lines, 8000, []),
        Number(
            f"files over {MAX_FILE_LINES} lines",
            len(long_files),
            0,
            [f"{size} {path.relative_to(ROOT)}" for size, path in long_files],
        ),
        Number(
            f"functions over {MAX_FUNCTION_LINES} lines",
            len(functions),
            3,
            [f"{size} {where}" for size, where in functions],
        ),
        Number("import circles", len(circles), 0, circles),
        Number("constants of one word", len(constants), 0, constants),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", action="store_true", help="name what is counted")
    arguments = parser.parse_args()
    rows = numbers()
    for row in rows:
        passed = "  too many" if row.value > row.limit else ""
        print(f"{row.title:36}{row.value:8,}  at most {row.limit:,}{passed}")
        for name in row.names if arguments.names else ():
            print(f"    {name}")
    sys.exit(any(row.value > row.limit for row in rows))


if __name__ == "__main__":
    main()
