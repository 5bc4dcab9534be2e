"""What is installed, and whether it keeps its contract: `ae plugins` and `ae plugin check`.

A stranger's package may do anything. Whatever it raises here is one sentence about it, and what
stands beside it is looked at all the same.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import SequenceMatcher
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from ae_toolkit import registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import SUPPLIED_ARGUMENTS, Shape, label_row
from ae_toolkit.data.examples import Examples, load_data
from ae_toolkit.errors import PluginError, RunError, UsageError, describe_error, did_you_mean
from ae_toolkit.files import outputs
from ae_toolkit.inference.model import load
from ae_toolkit.modality import Modality, read_items
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe, named, summary
from ae_toolkit.registry import THIS_PROCESS, Plugin, canonical
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing.contracts import check_arguments_are_keywords, check_modality, check_part
from ae_toolkit.training.optimizer import EMAOptimizer, StepCoefficients
from ae_toolkit.version import CONTRACT_VERSION

NUM_EXAMPLES = 4  #: examples that a recipe is tried on

#: What a part that no recipe uses is tried on, in order, until it fits: a shape, and classes.
TRIAL_SHAPES: tuple[tuple[Shape, int], ...] = (
    ((1, 8, 8), 0),
    ((1, 64), 0),
    ((6,), 5),
    ((3, 16, 16), 0),
)


class Entry(NamedTuple):
    """One installed distribution.

    Attributes:
        distribution: its name.
        version: of it.
        contract: that it was written for; empty: it does not say.
        parts: kind -> names.
        broken: what of it does not work, a sentence each.
    """

    distribution: str
    version: str
    contract: str
    parts: Mapping[str, list[str]]
    broken: list[str]

    def __str__(self) -> str:
        contract = f"contract {self.contract}" if self.contract else "no contract declared"
        name = f"{self.distribution} {self.version}".rstrip()
        return (
            name if self.distribution == THIS_PROCESS or not self.parts else f"{name}, {contract}"
        )


def list_plugins(*, verbs: Collection[str] = ()) -> list[Entry]:
    """Everything that is installed, by distribution, and what of it is broken and why.

    Args:
        verbs: commands that are not a plugin's to give.
    """
    found = []
    for plugin in registry.installed():
        broken = [sentence for sentence in (plugin.broken, plugin.outdated) if sentence]
        broken += _misnamed(plugin)
        parts: dict[str, list[str]] = {}
        for kind, name in _parts(plugin):
            parts.setdefault(kind, []).append(name)
            if plugin.outdated:
                continue
            if why := _load(plugin, kind, name) or _shadowed(plugin, kind, name, verbs):
                broken.append(why)
        found.append(Entry(*plugin.origin, ", ".join(plugin.contracts), parts, broken))
    here = {kind: parts.here() for kind, parts in registry.ALL_REGISTRIES.items() if parts.here()}
    return found + ([Entry(THIS_PROCESS, "", "", here, [])] if here else [])


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: was looked at.
        ok: whether it is as it should be.
        why: what is wrong; or, where it is ok, what might be better.
        tried: false where there was nothing to try it on.
    """

    what: str
    ok: bool
    why: str = ""
    tried: bool = True


def examine(name: str, *, verbs: Collection[str] = ()) -> list[Check]:
    """Checks everything that an installed distribution provides.

    Args:
        name: of the distribution.
        verbs: commands that are not a plugin's to give.

    Raises:
        UsageError: no such distribution is installed, or it provides nothing.
    """
    plugins = {canonical(plugin.origin.distribution): plugin for plugin in registry.installed()}
    plugin = plugins.get(canonical(name))
    if plugin is None:
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
    return list(_checks(plugin, verbs))


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
        if kind in SUPPLIED_ARGUMENTS:
            full = _full(plugin, name)
            yield _try(
                f"{kind} {name!r} names its arguments", check_arguments_are_keywords, kind, full
            )
        if kind == "command":
            yield _try(f"command {name!r} says what it does", _check_command, plugin, name)

    tried: set[tuple[str, str]] = set()
    seen, failed = _Seen({}, {}), ""
    with tempfile.TemporaryDirectory(prefix="ae-plugin-check-") as folder:
        for kind, name in good:
            if kind == "recipe":
                for check in _recipe_checks(plugin, name, Path(folder) / name, tried, seen):
                    failed = failed if check.ok else name
                    yield check
    for kind, name in good:
        if kind in SUPPLIED_ARGUMENTS and (kind, name) not in tried:
            if kind in ("modality", "dataset"):
                why = "no recipe of this package uses it, so it was not tried"
                if failed:
                    why = (
                        f"no recipe that works uses it, so it was not tried: first mend {failed!r}"
                    )
                yield Check(f"{kind} {name!r}", True, why, tried=False)
            else:
                yield _try(f"{kind} {name!r} keeps its contract", _check_part, plugin, kind, name)


def _contract(plugin: Plugin) -> Check:
    what = "the contract that it was written for"
    if plugin.outdated:
        return Check(what, False, plugin.outdated)
    if unknown := [word for word in plugin.contracts if not word.isdecimal()]:
        return Check(
            what, False, f"a contract is a number such as {CONTRACT_VERSION}, not {unknown[0]!r}"
        )
    if not plugin.contracts:
        module = next(iter(plugin.points)).value.partition(":")[0].partition(".")[0]
        return Check(
            what,
            True,
            f"declare it in pyproject.toml, so that another version can say what to do: "
            f'[project.entry-points."{registry.CONTRACT_GROUP}"] {CONTRACT_VERSION} = "{module}"',
        )
    return Check(f"{what}, {', '.join(plugin.contracts)}", True)


def _recipe_checks(
    plugin: Plugin,
    name: str,
    folder: Path,
    tried: set[tuple[str, str]],
    seen: _Seen,
) -> Iterator[Check]:
    """One recipe from its data to a model that is loaded, each check where the one before is ok.

    What was `tried` and `seen` is noted for the recipes that follow.
    """
    label, kept = f"recipe {name!r}", _Kept(seen)
    steps: list[tuple[str, Callable[[], str | None]]] = [
        (f"{label} is sound", lambda: kept.make(plugin, name)),
        (f"{label}: its data set keeps its contract", lambda: kept.load_data()),
        (f"{label}: its data type keeps its contract", lambda: kept.try_modality(folder)),
        (f"{label} takes a training step", lambda: kept.train()),
        (f"{label} is saved, loaded and sampled from", lambda: kept.reload(folder / "model")),
    ]
    for what, step in steps:
        check = _try(what, step)
        yield check
        if not check.ok:
            return
    for kind in SUPPLIED_ARGUMENTS:
        if kept.recipe.origin(kind) == plugin.origin and not (kind == "dataset" and kept.instead):
            tried.add((kind, kept.recipe.part(kind).name.rpartition(":")[2]))


class _Seen(NamedTuple):
    """What the recipes before have found sound.

    Attributes:
        loaded: the training splits, by the settings of data and data type.
        pairs: two items of each, which the data type has written and read.
    """

    loaded: dict[str, Examples]
    pairs: dict[str, list[Any]]


class _Kept:
    """What one check of a recipe leaves for the next."""

    recipe: Recipe
    modality: Modality
    train_split: Examples
    instead: str = ""  #: the data set that stands in for one that is not here
    model: Autoencoder
    pair: list[Any]  #: two items

    def __init__(self, seen: _Seen):
        self.seen = seen

    def make(self, plugin: Plugin, name: str) -> None:
        self.recipe = named(_full(plugin, name)).check()
        assert self.recipe.name == name, (
            f"it is registered as {name!r}, but says {self.recipe.name!r}"
        )
        assert summary(registry.recipes.get(_full(plugin, name))), (
            "its function has no docstring, whose first line 'ae recipes' shows"
        )

    def load_data(self) -> str | None:
        self.modality = self.recipe.make("modality")
        assert isinstance(self.modality, Modality), "its data type is no ae_toolkit.Modality"
        if self._key in self.seen.loaded:
            self.train_split = self.seen.loaded[self._key]
            return None
        try:
            train = load_data(self.recipe, self.modality, "train")
        except RunError as error:
            if isinstance(error, PluginError) or not self._stand_in():
                raise
            return f"{error}; tried on {self.instead!r} instead"
        test, again = (load_data(self.recipe, self.modality, s) for s in ("test", "train"))
        declared = set(self.modality.labels)
        for split, data in (("train", train), ("test", test)):
            assert set(data.labels) == declared, (
                f"its {split} split has the labels {sorted(data.labels)}, and its data type "
                f"declares {sorted(declared)}"
            )
            for label, classes in self.modality.labels.items():
                column = data.labels[label]
                assert column.shape == (len(data),), f"label {label!r} has shape {column.shape}"
                assert not classes or bool(((column >= 0) & (column < classes)).all()), (
                    f"label {label!r} is a class from 0 to {classes - 1}, and some are not"
                )
        shared = set(train.groups) & set(test.groups)
        assert not shared, (
            f"the groups of its splits must differ, and both have {sorted(shared)[0]!r}"
        )
        for split, data in (("train", train), ("test", test)):
            for what, column in {"y": data.y, **data.labels}.items():
                _check_finite(column, what, data, split)
        assert torch.equal(train.y, again.y), "it gives other examples each time: seed it"
        self.train_split = self.seen.loaded[self._key] = train
        return None

    @property
    def _key(self) -> str:
        return f"{self.instead or self.recipe.data!r} {self.recipe.modality!r}"

    def _stand_in(self) -> bool:
        """Looks for another data set of the same package, as its files may not be here."""
        mine = self.recipe.data.name
        owner = self.recipe.origin("dataset")
        others = {name for name, origin, _ in registry.datasets.origins() if origin == owner}
        for name in sorted(others - {mine}, key=lambda n: -SequenceMatcher(None, mine, n).ratio()):
            full = f"{owner.distribution}:{name}"
            try:
                other = self.recipe.with_({"data": full})
                self.train_split, self.instead = load_data(other, self.modality, "train"), name
            except (UsageError, RunError):
                continue
            return True
        return False

    def try_modality(self, folder: Path) -> None:
        if self._key in self.seen.pairs:
            self.pair = self.seen.pairs[self._key]
            return
        some = self.train_split.at(range(min(NUM_EXAMPLES, len(self.train_split))))
        y = self.modality.prepare(some.y)
        items = [
            self.modality.from_tensor(row, labels=label_row(some.labels, i))
            for i, row in enumerate(y)
        ]
        self.pair = (2 * items)[:2]
        for name in ("made", "read"):
            (folder / name).mkdir(parents=True)
            check_modality(self.modality, items, folder / name)
            path = folder / f"{name}{self.modality.suffixes[0]}"
            with outputs():
                self.modality.write(items[:1], path)
            items = [item for _ in items for item in read_items(path, self.modality)]
        self.seen.pairs[self._key] = self.pair

    def train(self) -> None:
        data, modality = self.train_split, self.modality
        batch = data.at(range(min(NUM_EXAMPLES, len(data))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Autoencoder(self.recipe, modality=modality)
            objective = self.recipe.make("objective")
            step = Source(0, "check").step(0, progress=0.5)
            batch = batch._replace(y=modality.augment(modality.prepare(batch.y), step))
            loss = self.model.check(batch, step, objective=objective)
            if self.recipe.strangers():  # ours are known to work in it, and it is slow in software
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    self.model.check(batch, step, objective=objective)
            assert bool(torch.isfinite(loss).all()), "the loss is not finite"
            torch.autograd.backward(loss.mean())
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None, f"parameter {name} gets no gradient"
            assert bool(torch.isfinite(parameter.grad).all()), (
                f"parameter {name} has a NaN gradient"
            )
        train = self.recipe.train
        optimizer = EMAOptimizer(
            self.model, copy.deepcopy(self.model), train, prefer=self.recipe.distribution
        )
        [coefficients] = optimizer.coefficients([train.lr], first=0, steps=1)
        optimizer.step(StepCoefficients(*coefficients))

    def reload(self, folder: Path) -> None:
        checkpoint.save(folder, self.model.state_dict(), checkpoint.config_json(self.recipe))
        labels = label_row(self.train_split.labels, 0)
        loaded = load(folder)
        items = loaded.sample(2, {name: labels[name] for name in self.recipe.condition})
        assert len(items) == 2, f"2 items were asked for, and {len(items)} made"
        known = {name: labels[name] for name in self.recipe.condition}
        back = loaded.reconstruct(self.pair, known)
        assert len(back) == 2, f"2 items have {len(back)} reconstructions"
        if loaded.autoencoder.num_classes:  # between integers nothing lies
            return
        walk = loaded.interpolate(*self.pair, steps=3, labels=known)
        assert len(walk) == 3, f"an interpolation of 3 steps has {len(walk)} items"


#: What fits beside a part whose codes are integers.
CHANGES_FOR_INTEGERS: dict[str, dict[str, Any]] = {
    "bottleneck": {"prior": {"name": "categorical"}},
    "prior": {"bottleneck": {"name": "fsq", "z_dim": 2, "num_levels": [3, 2]}},
}


def _check_part(plugin: Plugin, kind: str, name: str) -> None:
    """Tries a part on some data, and with codes of integers; one trial that it passes is enough."""
    trials: list[dict[str, Any]] = [
        {"shape": shape, "num_classes": num_classes} for shape, num_classes in TRIAL_SHAPES
    ]
    if has_integers := kind in CHANGES_FOR_INTEGERS:
        trials.append({"changes": CHANGES_FOR_INTEGERS[kind]})
    complaints = []
    for trial in trials:
        try:
            check_part(kind, _full(plugin, name), **trial)
            return
        except Exception as error:
            complaints.append(error)
    # The first is about the commonest data. A part of integers is refused in all but the last.
    if has_integers and not isinstance(complaints[-1], UsageError):
        raise complaints[-1]
    raise complaints[0]


def _check_finite(column: Tensor, what: str, data: Examples, split: str) -> None:
    """Checks that a column of a data set is of numbers, and says where it is not."""
    bad = column.isfinite().reshape(len(data), -1).all(1).logical_not()
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise AssertionError(
            f"example {i} of its {split} split, of group {data.groups[i]!r}, has a NaN or an "
            f"infinite number as {what!r}"
        )


def _check_command(plugin: Plugin, name: str) -> None:
    command = registry.commands.get(_full(plugin, name))
    assert command.help or command.short_help, "it has no docstring, which 'ae --help' would show"


def _load(plugin: Plugin, kind: str, name: str) -> str:
    """Why a part cannot be had, in a sentence; empty: it can."""
    try:
        part = registry.ALL_REGISTRIES[kind].get(_full(plugin, name))
    except (UsageError, RunError) as error:
        return str(error)
    if kind == "command" and not isinstance(part, click.Command):
        return f"command {name!r} of {plugin.origin} is no click command, but {type(part).__name__}"
    return "" if callable(part) else f"{kind} {name!r} of {plugin.origin} cannot be called"


def _clash(plugin: Plugin, kind: str, name: str, verbs: Collection[str]) -> str:
    """Who else has the name of a part, in a sentence; empty: nobody."""
    owners = [
        origin for known, origin, _ in registry.ALL_REGISTRIES[kind].origins() if known == name
    ]
    others = [str(origin) for origin in owners if origin != plugin.origin]
    if kind == "command" and name in verbs:
        others.append("ae itself")
    full = _full(plugin, name)
    return f"{' and '.join(others)} has {kind} {name!r} too, so write {full!r}" if others else ""


def _shadowed(plugin: Plugin, kind: str, name: str, verbs: Collection[str]) -> str:
    """Why a part of a stranger's must be called by its full name; empty: its name is its own."""
    mine = plugin.origin.distribution == registry.OWN_DISTRIBUTION
    return "" if mine else _clash(plugin, kind, name, verbs)


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


def _try(what: str, function: Callable[..., Any], *arguments: Any) -> Check:
    try:
        advice = function(*arguments)
    except (UsageError, RunError, AssertionError) as error:
        return Check(what, False, str(error) or "an assertion of its own fails")
    except BaseException as error:  # whatever a stranger's code may raise
        if isinstance(error, KeyboardInterrupt):
            raise
        return Check(what, False, registry.find_plugin_in_traceback(error) or describe_error(error))
    return Check(what, True, advice or "")


def check_plugin(distribution: str) -> None:
    """Checks everything that an installed distribution provides, as `ae plugin check` does."""
    wrong = [f"{check.what}: {check.why}" for check in examine(distribution) if not check.ok]
    assert not wrong, "\n".join(wrong)
