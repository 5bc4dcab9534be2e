"""What is installed, and whether it keeps its contract: `ae plugins` and `ae plugin check`.

A stranger's package may do anything. Whatever it raises here is one sentence about it, and what
stands beside it is looked at all the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import click

from ae_toolkit import registry
from ae_toolkit.contracts import SUPPLIED_ARGUMENTS
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import RunError, UsageError, describe_error, did_you_mean
from ae_toolkit.registry import THIS_PROCESS, Plugin, canonical
from ae_toolkit.testing.contracts import check_arguments_are_keywords, check_part
from ae_toolkit.testing.recipes import RecipeTrial
from ae_toolkit.version import CONTRACT_VERSION

#: What a part that no recipe uses is tried on, in order, until it fits.
PART_TRIALS: tuple[dict[str, Any], ...] = (
    {"shape": (1, 8, 8)},
    {"shape": (1, 64)},
    {"shape": (6,), "num_classes": 5},
    {"shape": (3, 16, 16)},
)

#: What fits beside a part whose codes are integers.
CHANGES_FOR_INTEGERS: dict[str, dict[str, Any]] = {
    "bottleneck": {"prior": {"name": "categorical"}},
    "prior": {"bottleneck": {"name": "fsq", "z_dim": 2, "num_levels": [3, 2]}},
}


class Entry(NamedTuple):
    """One installed distribution."""

    distribution: str
    version: str
    contract: str  #: that it was written for; empty: it does not say
    parts: Mapping[str, list[str]]  #: kind -> names
    broken: list[str]  #: what of it does not work, a sentence each

    def __str__(self) -> str:
        name = f"{self.distribution} {self.version}".rstrip()
        if self.distribution == THIS_PROCESS or not self.parts:
            return name
        return f"{name}, {f'contract {self.contract}' if self.contract else 'no contract declared'}"


def list_plugins(*, verbs: Collection[str] = ()) -> list[Entry]:
    """Everything that is installed; `verbs` are commands that are not a plugin's to give."""
    found = []
    for plugin in registry.installed():
        broken = [*filter(None, [plugin.broken, plugin.outdated]), *_misnamed(plugin)]
        parts: dict[str, list[str]] = {}
        for kind, name in _parts(plugin):
            parts.setdefault(kind, []).append(name)
            if plugin.outdated:
                continue
            why = _load(plugin, kind, name)
            if not why and plugin.origin.distribution != registry.OWN_DISTRIBUTION:
                why = _clash(plugin, kind, name, verbs)
            broken += [why] if why else []
        found.append(Entry(*plugin.origin, ", ".join(plugin.contracts), parts, broken))
    here = {kind: parts.here() for kind, parts in registry.ALL_REGISTRIES.items() if parts.here()}
    return found + ([Entry(THIS_PROCESS, "", "", here, [])] if here else [])


class Check(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    why: str = ""  #: what is wrong; or, where it is ok, what might be better
    tried: bool = True  #: false where there was nothing to try it on


def check_plugin(distribution: str) -> None:
    """Checks everything that an installed distribution provides, as `ae plugin check` does."""
    wrong = [f"{check.what}: {check.why}" for check in examine(distribution) if not check.ok]
    assert not wrong, "\n".join(wrong)


def examine(name: str, *, verbs: Collection[str] = ()) -> list[Check]:
    """Checks everything that a distribution provides; `verbs` are as in `list_plugins`.

    Raises:
        UsageError: no such distribution is installed, or it provides nothing.
    """
    plugins = {canonical(plugin.origin.distribution): plugin for plugin in registry.installed()}
    if plugin := plugins.get(canonical(name)):
        return list(_checks(plugin, verbs))
    try:
        version = distribution(name).version
    except (PackageNotFoundError, ValueError):
        raise UsageError(
            f"no plugin {name!r} is installed: {did_you_mean(name, plugins)}"
        ) from None
    raise UsageError(
        f"{name} {version} is installed and provides nothing: its pyproject.toml needs entry "
        f'points such as [project.entry-points."ae_toolkit.modalities"]'
    )


def _checks(plugin: Plugin, verbs: Collection[str]) -> Iterator[Check]:
    yield _contract(plugin)
    if plugin.outdated:
        return
    for sentence in _misnamed(plugin):
        yield Check("names of entry points and their groups", False, sentence)
    good: list[tuple[str, str]] = []
    for kind, name in _parts(plugin):
        broken = _load(plugin, kind, name)
        why = broken or _clash(plugin, kind, name, verbs)
        yield Check(f"{kind} {name!r} can be imported, by a name of its own", not why, why)
        if broken:
            continue
        good.append((kind, name))
        full = _full(plugin, name)
        if kind in SUPPLIED_ARGUMENTS:
            what = f"{kind} {name!r} names its arguments"
            yield _try(what, partial(check_arguments_are_keywords, kind, full))
        if kind == "command":
            command = registry.commands.get(full)
            ok = bool(command.help or command.short_help)
            why = "" if ok else "it has no docstring, which 'ae --help' would show"
            yield Check(f"command {name!r} says what it does", ok, why)
    yield from _trials(plugin, good)


def _trials(plugin: Plugin, good: list[tuple[str, str]]) -> Iterator[Check]:
    """Tries recipes, and then the parts that none of them uses."""
    tried: set[tuple[str, str]] = set()
    loaded: dict[str, Examples] = {}
    pairs: dict[str, list[Any]] = {}
    failed = ""
    with tempfile.TemporaryDirectory(prefix="ae-plugin-check-") as folder:
        for name in (name for kind, name in good if kind == "recipe"):
            place = Path(folder) / name
            trial = RecipeTrial(plugin, name, place, loaded=loaded, pairs=pairs)
            for what, step in trial.steps():
                check = _try(what, step)
                yield check
                if not check.ok:
                    failed = name
                    break
            else:
                tried |= trial.parts()
    for kind, name in good:
        if kind not in SUPPLIED_ARGUMENTS or (kind, name) in tried:
            continue
        if kind in ("modality", "dataset"):
            which = "that works" if failed else "of this package"
            why = f"no recipe {which} uses it, so it was not tried"
            why += f": first mend {failed!r}" if failed else ""
            yield Check(f"{kind} {name!r}", True, why, tried=False)
        else:
            what = f"{kind} {name!r} keeps its contract"
            yield _try(what, partial(_check_part, kind, _full(plugin, name)))


def _contract(plugin: Plugin) -> Check:
    what = "the contract that it was written for"
    if plugin.outdated:
        return Check(what, False, plugin.outdated)
    if unknown := [word for word in plugin.contracts if not word.isdecimal()]:
        why = f"a contract is a number such as {CONTRACT_VERSION}, not {unknown[0]!r}"
        return Check(what, False, why)
    if plugin.contracts:
        return Check(f"{what}, {', '.join(plugin.contracts)}", True)
    module = next(iter(plugin.points)).value.partition(":")[0].partition(".")[0]
    return Check(
        what,
        True,
        f"declare it in pyproject.toml, so that another version can say what to do: "
        f'[project.entry-points."{registry.CONTRACT_GROUP}"] {CONTRACT_VERSION} = "{module}"',
    )


def _check_part(kind: str, name: str) -> None:
    """Tries a part on some data, and with codes of integers; one trial that it passes is enough."""
    trials: list[dict[str, Any]] = [*PART_TRIALS]
    if has_integers := kind in CHANGES_FOR_INTEGERS:
        trials.append({"changes": CHANGES_FOR_INTEGERS[kind]})
    complaints = []
    for trial in trials:
        try:
            check_part(kind, name, **trial)
            return
        except Exception as error:
            complaints.append(error)
    # The first is about the commonest data. A part of integers is refused in all but the last.
    if has_integers and not isinstance(complaints[-1], UsageError):
        raise complaints[-1]
    raise complaints[0]


def _load(plugin: Plugin, kind: str, name: str) -> str:
    """Why a part cannot be had, in a sentence; empty: it can."""
    try:
        part = registry.ALL_REGISTRIES[kind].get(_full(plugin, name))
    except (UsageError, RunError) as error:
        return str(error)
    label = f"{kind} {name!r} of {plugin.origin}"
    if kind == "command" and not isinstance(part, click.Command):
        return f"{label} is no click command, but {type(part).__name__}"
    return "" if callable(part) else f"{label} cannot be called"


def _clash(plugin: Plugin, kind: str, name: str, verbs: Collection[str]) -> str:
    """Who else has the name of a part, in a sentence; empty: nobody."""
    origins = registry.ALL_REGISTRIES[kind].origins()
    others = [str(o) for known, o, _ in origins if known == name and o != plugin.origin]
    if kind == "command" and name in verbs:
        others.append("ae itself")
    full = _full(plugin, name)
    return f"{' and '.join(others)} has {kind} {name!r} too, so write {full!r}" if others else ""


def _misnamed(plugin: Plugin) -> list[str]:
    known = {parts.group for parts in registry.ALL_REGISTRIES.values()} | {registry.CONTRACT_GROUP}
    unknown = sorted({point.group for point in plugin.points} - known)
    colons = sorted(point.name for point in plugin.points if ":" in point.name)
    return [
        *(f"{plugin.origin}: there is no group {g!r}: {did_you_mean(g, known)}" for g in unknown),
        *(f"{plugin.origin}: the name {n!r} cannot be had: it has a colon" for n in colons),
    ]


def _parts(plugin: Plugin) -> list[tuple[str, str]]:
    """`(kind, name)` of all that a distribution provides."""
    kinds = {parts.group: kind for kind, parts in registry.ALL_REGISTRIES.items()}
    order = list(kinds)
    mine = [point for point in plugin.points if point.group in kinds]
    mine.sort(key=lambda point: (order.index(point.group), point.name))
    return [(kinds[point.group], point.name) for point in mine]


def _full(plugin: Plugin, name: str) -> str:
    return f"{plugin.origin.distribution}:{name}"


def _try(what: str, function: Callable[[], str | None]) -> Check:
    try:
        return Check(what, True, function() or "")
    except (UsageError, RunError, AssertionError) as error:
        return Check(what, False, str(error) or "an assertion of its own fails")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a stranger's code may raise
        return Check(what, False, registry.find_plugin_in_traceback(error) or describe_error(error))
