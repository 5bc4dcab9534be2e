"""Names -> parts, through Python entry points, imported only when asked for.

There is one registry per kind of part. Our own parts are declared in our own `pyproject.toml`
exactly as a stranger's are in theirs:

    [project.entry-points."ae_toolkit.encoders"]
    wavelet = "my_package.wavelet:WaveletEncoder"

A name of ours goes on meaning ours where a stranger's part has it too; that is `distribution:name`.
In a notebook, `@encoders.register("mine")` does the same for the running process. A distribution
says by one more entry point which contract it was written for, here contract 2:

    [project.entry-points."ae_toolkit.contract"]
    2 = "my_package"
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions, packages_distributions
from typing import Any, NamedTuple, TypeVar

from ae_toolkit.errors import RunError, UsageError, describe_error, did_you_mean
from ae_toolkit.version import CONTRACT_VERSION, OLDEST_CONTRACT, __version__

T = TypeVar("T")

THIS_PROCESS = "this process"  #: what `origin` answers for a part that was registered by hand
OWN_DISTRIBUTION = "ae-toolkit"  #: our own distribution
GROUP_PREFIX = "ae_toolkit."  #: of every group of entry points
CONTRACT_GROUP = "ae_toolkit.contract"


class Origin(NamedTuple):
    """Who provides a part."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


class Plugin(NamedTuple):
    """An installed distribution that provides something, as its metadata has it.

    Attributes:
        origin: its name and version.
        points: its entry points in groups of ours.
        broken: why its metadata cannot be read; empty: it can.
    """

    origin: Origin
    points: Sequence[EntryPoint]
    broken: str = ""

    @property
    def contracts(self) -> list[str]:
        """The contracts that it says it was written for, as written."""
        return sorted(point.name for point in self.points if point.group == CONTRACT_GROUP)

    @property
    def outdated(self) -> str:
        """Why this toolkit cannot run it, in a sentence; empty: it can, as far as it says."""
        known = [int(word) for word in self.contracts if word.isdecimal()]
        if not known or any(OLDEST_CONTRACT <= number <= CONTRACT_VERSION for number in known):
            return ""
        newer = max(known) > CONTRACT_VERSION
        return (
            f"{self.origin} was written for contract {max(known)} and this is ae-toolkit "
            f"{__version__} with contract {CONTRACT_VERSION}: pip install --upgrade "
            f"{'ae-toolkit' if newer else self.origin.distribution}"
        )


class Installed(NamedTuple):
    """What is installed.

    Attributes:
        plugins: by canonical name, or by the folder of a broken one.
        groups: group -> name -> its providers.
    """

    plugins: dict[str, Plugin]
    groups: dict[str, dict[str, list[EntryPoint]]]


@lru_cache(maxsize=1)
def _installed() -> Installed:
    """Reads every `ae_toolkit.*` entry point once."""
    found = Installed({}, {})
    for distribution in distributions():
        plugin = _plugin(distribution)
        name = canonical(plugin.origin.distribution)
        # An editable install can be met twice; the first on the path is the one that imports.
        if name in found.plugins or not (plugin.points or plugin.broken):
            continue
        found.plugins[name] = plugin
        for point in plugin.points:
            found.groups.setdefault(point.group, {}).setdefault(point.name, []).append(point)
    return found


def _plugin(distribution: Distribution) -> Plugin:
    try:
        points = [p for p in distribution.entry_points if p.group.startswith(GROUP_PREFIX)]
        if points and not distribution.metadata["Name"]:
            raise ValueError("its METADATA says no name")
        name = distribution.name if points else ""
        return Plugin(Origin(name, distribution.version if points else ""), points)
    except Exception as error:  # a folder of metadata may be broken in any way
        # Not public, and the only name that such a distribution has.
        folder = getattr(distribution, "_path", distribution.locate_file(""))
        return Plugin(
            Origin(str(folder), ""), [], f"{folder}: broken metadata, {describe_error(error)}"
        )


def installed() -> list[Plugin]:
    """Every distribution that provides something, by name; broken ones too."""
    return [plugin for _, plugin in sorted(_installed().plugins.items())]


def canonical(distribution: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def find_plugin_in_traceback(error: BaseException) -> str:
    """Says which installed stranger's code raised an error, and where; empty: none of them."""
    owners: dict[str, Origin] = {}
    for plugin in sorted(
        installed(), key=lambda plugin: plugin.origin.distribution == OWN_DISTRIBUTION
    ):
        for point in plugin.points:  # ours last: nobody else owns what we declare
            owners[point.value.partition(":")[0].partition(".")[0]] = plugin.origin
    known = packages_distributions()
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        owner = owners.get(package)
        # An entry point may name a module of anybody's; who ships it answers for it.
        if (
            owner
            and owner.distribution != OWN_DISTRIBUTION
            and owner.distribution in known.get(package, [owner.distribution])
        ):
            return (
                f"{owner} raises {describe_error(error)} ({frame.f_code.co_filename}, line {line})"
            )
    return ""


def _origin(point: EntryPoint) -> Origin:
    return _origin_of(point.dist) if point.dist else Origin("unknown", "")


@cache
def _origin_of(distribution: Distribution) -> Origin:
    return Origin(distribution.name, distribution.version)  # each of the two parses its metadata


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
        self._loaded: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Every name, sorted; reads metadata only and imports nothing."""
        return sorted({*self._local, *self._points()})

    def get(self, name: str, *, prefer: str = "") -> Any:
        """Imports and returns one part.

        Args:
            name: a plain name, or `distribution:name` to say whose.
            prefer: the distribution that wins when several provide a plain name, which is the
                one that the recipe came from; after it, the toolkit's own part wins.

        Raises:
            UsageError: nobody provides the name, or several strangers do and none is preferred.
            RunError: the plugin that provides it is broken.
        """
        if name in self._local:
            return self._local[name]
        point = self._find(name, prefer=prefer)
        owner = _origin(point)
        plugin = _installed().plugins.get(canonical(owner.distribution))
        if plugin and plugin.outdated:
            raise RunError(plugin.outdated)
        label = f"{self.noun} {point.name!r} of {owner}"
        try:
            self._loaded[label] = point.load()
        except BaseException as error:  # whatever a stranger's module may raise
            if isinstance(error, KeyboardInterrupt):
                raise
            raise RunError(
                f"{label} cannot be imported from {point.value!r}: {describe_error(error)}"
            ) from error
        return self._loaded[label]

    def here(self) -> list[str]:
        """The names that were registered by hand, sorted."""
        return sorted(self._local)

    def describe(self, part: Any) -> str:
        """Says what a part is and whose, such as `modality 'ecg' of ecg 0.1`."""
        for label, known in self._loaded.items():
            if known is part:
                return label
        for name, known in self._local.items():
            if known is part:
                return f"{self.noun} {name!r} of {THIS_PROCESS}"
        return f"{self.noun} {getattr(part, '__qualname__', part)}"

    def origin(self, name: str, *, prefer: str = "") -> Origin:
        """Says which distribution provides `name`, without importing it."""
        if name in self._local:
            return Origin(THIS_PROCESS, "")
        return _origin(self._find(name, prefer=prefer))

    def full_name(self, name: str, origin: Origin) -> str:
        """What names a part: its plain name, unless that means another's or nobody's."""
        with suppress(UsageError):
            if self.origin(name) == origin:
                return name
        return f"{origin.distribution}:{name}"

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
            raise UsageError(
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
        return _installed().groups.get(self.group, {})

    def _find(self, name: str, *, prefer: str) -> EntryPoint:
        distribution, _, plain = name.rpartition(":")
        points = self._points().get(plain, [])
        if distribution:
            wanted = canonical(distribution)
            points = [p for p in points if canonical(_origin(p).distribution) == wanted]
        for winner in (prefer, OWN_DISTRIBUTION):
            if len(points) > 1:
                points = [p for p in points if _origin(p).distribution == winner] or points
        if not points:
            raise UsageError(
                f"there is no {self.noun} {name!r}: {did_you_mean(name, self.names())}"
            )
        if len(points) > 1:
            full = " or ".join(sorted(f"'{_origin(p).distribution}:{plain}'" for p in points))
            raise UsageError(f"several packages provide {self.noun} {name!r}: write {full}")
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
optimizers = Registry("ae_toolkit.optimizers", noun="optimizer")
trackers = Registry("ae_toolkit.trackers", noun="tracker")
callbacks = Registry("ae_toolkit.callbacks", noun="callback")

#: Every registry, by the noun of its parts.
ALL_REGISTRIES: dict[str, Registry] = {
    value.noun: value
    for value in list(vars(sys.modules[__name__]).values())
    if isinstance(value, Registry)
}
