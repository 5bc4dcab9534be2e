"""A plugin package under a name of one's own, written from `template/`: where the tutorial ends.

`$name`, `$package`, `$version` and `$contract` stand for what they say in the files that end in
`.tmpl`; the folder `package` and the file `test_package.py` are named after the package.
"""

from __future__ import annotations

import keyword
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ae_toolkit import registry
from ae_toolkit.errors import UsageError
from ae_toolkit.files import replacing
from ae_toolkit.version import CONTRACT_VERSION, __version__

FOLDER_NAMES = ("test", "tests", "package", "build", "dist", "example")  #: beside a package
CLASS_NAMES = ("failure", "modality", "recipe")  #: what the class of its data type is made of


def write_plugin(name: str, out: Path) -> list[Path]:
    """Writes the package and returns its files, or writes nothing.

    Args:
        name: of the distribution, the data type and, with `_` for `-`, the Python package.
        out: the folder to make.

    Raises:
        UsageError: the name cannot be used, or the folder holds something.
        RunError: the folder cannot be written.
    """
    package = _package(name)
    used = out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir()))
    if used or out.resolve() == Path.cwd():
        raise UsageError(f"{out}: is there already; choose another folder with -o")
    template = files("ae_toolkit.testing") / "template"
    words = {
        "name": name,
        "package": package,
        "class_name": "".join(word.title() for word in package.split("_")),
        "version": __version__,
        "contract": str(CONTRACT_VERSION),
    }
    with replacing(out, folder=True) as folder:
        return [out / path for path in _copy(template, folder, words)]


def _copy(source: Traversable, target: Path, words: dict[str, str]) -> list[Path]:
    """Copies a folder, and returns the files below `target`."""
    made = []
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name):
        path = Path(entry.name.removesuffix(".tmpl").replace("package", words["package"]))
        if entry.is_dir():
            (target / path).mkdir()
            made += [path / below for below in _copy(entry, target / path, words)]
            continue
        text = entry.read_text(encoding="utf-8")
        filled = Template(text).substitute(words) if entry.name.endswith(".tmpl") else text
        (target / path).write_text(filled, encoding="utf-8")
        made.append(path)
    return made


def _package(name: str) -> str:
    """The Python package's name, or a `UsageError` where it is none or somebody has it."""
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", package):
        raise UsageError(
            f"{name!r} cannot be a package's name: choose lower-case letters and numbers, with '-' "
            f"between words, such as 'ecg' or 'my-sensor'"
        )
    if keyword.iskeyword(package) or package in FOLDER_NAMES + CLASS_NAMES:
        raise UsageError(f"{name!r} has a meaning of its own: choose another name")
    if owner := _taken(name, package):
        raise UsageError(f"{name!r} is taken by {owner}: choose another name")
    return package


def _taken(name: str, package: str) -> str:
    """Who has a name already; empty: nobody."""
    with suppress(PackageNotFoundError):
        distribution(name)
        return "an installed package"
    for parts, wanted in ((registry.modalities, name), (registry.recipes, f"{name}-vae")):
        if wanted in parts.names():
            return f"a {parts.noun} of {parts.origin(wanted)}"
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    # A folder without a module in it, as the one to be written may be, is no module.
    return "a Python module" if spec and spec.origin else ""
