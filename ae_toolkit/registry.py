"""Names -> parts, through Python entry points, imported only when asked for.

There is one registry per kind of part. Our own parts are declared in our own `pyproject.toml`
exactly as a stranger's are in theirs, so nothing is privileged:

    [project.entry-points."ae_toolkit.encoders"]
    wavelet = "my_package.wavelet:WaveletEncoder"

In a notebook, `@encoders.register("mine")` does the same for the running process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions
from typing import Any, NamedTuple, TypeVar

from ae_toolkit.errors import Failure, Misuse, choose

T = TypeVar("T")

HERE = "this process"  #: what `origin` answers for a part that was registered by hand


class Origin(NamedTuple):
    """Who provides a part."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


@lru_cache(maxsize=1)
def _installed() -> dict[str, dict[str, list[EntryPoint]]]:
    """Reads every `ae_toolkit.*` entry point once: group -> name -> its providers."""
    found: dict[str, dict[str, list[EntryPoint]]] = {}
    seen: set[str] = set()
    for distribution in distributions():
        # An editable install can be met twice; the first on the path is the one that imports.
        if (name := distribution.name) in seen:
            continue
        seen.add(name)
        for point in distribution.entry_points:
            if point.group.startswith("ae_toolkit."):
                found.setdefault(point.group, {}).setdefault(point.name, []).append(point)
    return found


def _origin(point: EntryPoint) -> Origin:
    return Origin(point.dist.name, point.dist.version) if point.dist else Origin("unknown", "")


class Registry:
    """The parts of one kind.

    Args:
        group: the entry-point group, such as `ae_toolkit.encoders`.
        noun: what one part is called in messages, such as `encoder`.
    """

    def __init__(self, group: str, *, noun: str):
        self.group = group
        self.noun = noun
        self._local: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Every name, sorted; reads metadata only and imports nothing."""
        return sorted({*self._local, *self._points()})

    def get(self, name: str, *, prefer: str = "") -> Any:
        """Imports and returns one part.

        Args:
            name: a plain name, or `distribution:name` to say whose.
            prefer: the distribution that wins when several provide a plain name, which is the
                one that the recipe came from.

        Raises:
            Misuse: nobody provides the name, or several do and none is preferred.
            Failure: the plugin that provides it is broken.
        """
        if name in self._local:
            return self._local[name]
        point = self._find(name, prefer=prefer)
        try:
            return point.load()
        except (Exception, SystemExit) as error:  # whatever a stranger's module may raise
            raise Failure(
                f"{self.noun} {name!r} of {_origin(point)} cannot be imported from "
                f"{point.value!r}: {type(error).__name__}: {error}"
            ) from error

    def origin(self, name: str, *, prefer: str = "") -> Origin:
        """Says which distribution provides `name`, without importing it."""
        if name in self._local:
            return Origin(HERE, "")
        return _origin(self._find(name, prefer=prefer))

    def origins(self) -> list[tuple[str, Origin, str]]:
        """Lists `(name, origin, "module:object")` of everything installed, from metadata alone."""
        return [
            (name, _origin(point), point.value)
            for name, points in sorted(self._points().items())
            for point in points
        ]

    def register(self, name: str) -> Callable[[T], T]:
        """Decorates a part of the running process, in a notebook or a script.

        Registering the same name again replaces the former part, so that a notebook cell may be
        run twice. A name that an installed distribution provides is refused.
        """
        if name in self._points():
            raise Misuse(
                f"{self.noun} {name!r} is already provided by {_origin(self._points()[name][0])}; "
                f"register yours under another name"
            )

        def keep(part: T) -> T:
            self._local[name] = part
            return part

        return keep

    @contextmanager
    def temporarily(self, **parts: Any) -> Iterator[None]:
        """Registers parts for the length of a `with` block, over installed ones too."""
        before = dict(self._local)
        self._local.update(parts)
        try:
            yield
        finally:
            self._local = before

    def _points(self) -> dict[str, list[EntryPoint]]:
        return _installed().get(self.group, {})

    def _find(self, name: str, *, prefer: str) -> EntryPoint:
        distribution, _, plain = name.rpartition(":")
        points = self._points().get(plain, [])
        if distribution:
            points = [point for point in points if _origin(point).distribution == distribution]
        if len(points) > 1:
            points = [p for p in points if _origin(p).distribution == prefer] or points
        if not points:
            raise Misuse(f"there is no {self.noun} {name!r}: {choose(name, self.names())}")
        if len(points) > 1:
            full = " or ".join(sorted(f"'{_origin(p).distribution}:{plain}'" for p in points))
            raise Misuse(f"several packages provide {self.noun} {name!r}: write {full}")
        return points[0]


modalities = Registry("ae_toolkit.modalities", noun="modality")
datasets = Registry("ae_toolkit.datasets", noun="dataset")
corruptions = Registry("ae_toolkit.corruptions", noun="corruption")
encoders = Registry("ae_toolkit.encoders", noun="encoder")
bottlenecks = Registry("ae_toolkit.bottlenecks", noun="bottleneck")
priors = Registry("ae_toolkit.priors", noun="prior")
decoders = Registry("ae_toolkit.decoders", noun="decoder")
likelihoods = Registry("ae_toolkit.likelihoods", noun="likelihood")
objectives = Registry("ae_toolkit.objectives", noun="objective")
recipes = Registry("ae_toolkit.recipes", noun="recipe")
commands = Registry("ae_toolkit.commands", noun="command")

#: Every registry, by the noun of its parts.
ALL: dict[str, Registry] = {
    value.noun: value
    for value in list(vars(sys.modules[__name__]).values())
    if isinstance(value, Registry)
}
