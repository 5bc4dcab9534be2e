"""A plugin's recipe, tried out from its data to a model that is loaded and sampled from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch

from ae_toolkit import registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import SUPPLIED_ARGUMENTS, label_row
from ae_toolkit.data.examples import Examples, load_data, with_statistics
from ae_toolkit.errors import PluginError, RunError, UsageError
from ae_toolkit.files import outputs
from ae_toolkit.inference.loading import load
from ae_toolkit.modality import Modality, read_items
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe, named, summary
from ae_toolkit.registry import Plugin
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing.contracts import check_gradients, check_modality
from ae_toolkit.training.optimizer import EMAOptimizer, StepCoefficients

NUM_EXAMPLES = 4  #: examples that a recipe is tried on


class RecipeTrial:
    """One recipe from its data to a model that is loaded.

    Args:
        plugin: the distribution that it is of.
        name: of the recipe.
        folder: to write into, which is made.
        loaded: training splits that were found sound before, by the settings of data and data type.
        pairs: likewise two items of each, which the data type has written and read.
    """

    recipe: Recipe
    modality: Modality
    train_split: Examples
    model: Autoencoder
    pair: list[Any]  #: two items

    def __init__(
        self,
        plugin: Plugin,
        name: str,
        folder: Path,
        *,
        loaded: dict[str, Examples],
        pairs: dict[str, list[Any]],
    ):
        self.plugin, self.name, self.folder = plugin, name, folder
        self.loaded, self.pairs = loaded, pairs
        self.instead = ""  #: the data set that stands in for one that is not here

    def steps(self) -> list[tuple[str, Callable[[], str | None]]]:
        """What is checked, each where the one before is ok."""
        label = f"recipe {self.name!r}"
        return [
            (f"{label} is sound", self.make),
            (f"{label}: its data set keeps its contract", self.load_data),
            (f"{label}: its data type keeps its contract", self.try_modality),
            (f"{label} takes a training step", self.train),
            (f"{label} is saved, loaded and sampled from", self.reload),
        ]

    def parts(self) -> set[tuple[str, str]]:
        """The parts of the package, `(kind, name)`, that were tried with it."""
        return {
            (kind, self.recipe.part(kind).name.rpartition(":")[2])
            for kind in SUPPLIED_ARGUMENTS
            if self.recipe.origin(kind) == self.plugin.origin
            and not (kind == "dataset" and self.instead)
        }

    def make(self) -> None:
        full = f"{self.plugin.origin.distribution}:{self.name}"
        self.recipe = named(full).check()
        says, text = self.recipe.name, summary(registry.recipes.get(full))
        assert says == self.name, f"it is registered as {self.name!r}, but says {says!r}"
        assert text, "its function has no docstring, whose first line 'ae recipes' shows"

    def load_data(self) -> str | None:
        self.modality = self.recipe.make("modality")
        assert isinstance(self.modality, Modality), "its data type is no ae_toolkit.Modality"
        if self._key not in self.loaded:
            try:
                train = load_data(self.recipe, self.modality, "train")
            except RunError as error:
                if isinstance(error, PluginError) or not self._stand_in():
                    raise
                return f"{error}; tried on {self.instead!r} instead"
            test, again = (load_data(self.recipe, self.modality, s) for s in ("test", "train"))
            for split, data in (("train", train), ("test", test)):
                self._check_split(split, data)
            if shared := set(train.groups) & set(test.groups):
                raise AssertionError(
                    f"the groups of its splits must differ, and both have {min(shared)!r}"
                )
            assert train.y.equal(again.y), "it gives other examples each time: seed it"
            self.loaded[self._key] = train
        self.train_split = self.loaded[self._key]
        return None

    def _check_split(self, split: str, data: Examples) -> None:
        declared = self.modality.labels
        assert set(data.labels) == set(declared), (
            f"its {split} split has the labels {sorted(data.labels)}, and its data type declares "
            f"{sorted(declared)}"
        )
        for what, column in {"y": data.y, **data.labels}.items():
            classes = declared.get(what, 0)
            assert what == "y" or column.shape == (len(data),), (
                f"label {what!r} has shape {column.shape}"
            )
            assert not classes or bool(((column >= 0) & (column < classes)).all()), (
                f"label {what!r} is a class from 0 to {classes - 1}, and some are not"
            )
            bad = ~column.isfinite().reshape(len(data), -1).all(1)
            if bool(bad.any()):
                i = int(bad.nonzero()[0])
                raise AssertionError(
                    f"example {i} of its {split} split, of group {data.groups[i]!r}, has a NaN or "
                    f"an infinite number as {what!r}"
                )

    @property
    def _key(self) -> str:
        return f"{self.instead or self.recipe.data!r} {self.recipe.modality!r}"

    def _stand_in(self) -> bool:
        """Looks for another data set of the same package, as its files may not be here."""
        mine = self.recipe.data.name
        owner = self.recipe.origin("dataset")
        others = {name for name, origin, _ in registry.datasets.origins() if origin == owner}
        for name in sorted(others - {mine}, key=lambda n: -SequenceMatcher(None, mine, n).ratio()):
            with suppress(UsageError, RunError):
                other = self.recipe.with_({"data": f"{owner.distribution}:{name}"})
                self.train_split, self.instead = load_data(other, self.modality, "train"), name
                return True
        return False

    def try_modality(self) -> None:
        self.recipe = with_statistics(self.recipe, self.modality, self.train_split)
        self.modality = self.recipe.make("modality")
        if self._key not in self.pairs:
            some = self.train_split.at(range(min(NUM_EXAMPLES, len(self.train_split))))
            items = [
                self.modality.from_tensor(row, labels=label_row(some.labels, i))
                for i, row in enumerate(self.modality.prepare(some.y))
            ]
            pair = (2 * items)[:2]
            for name in ("made", "read"):
                folder = self.folder / name
                folder.mkdir(parents=True)
                check_modality(self.modality, items, folder)
                path = folder / f"one{self.modality.suffixes[0]}"
                with outputs():
                    self.modality.write(items[:1], path)
                items = [item for _ in items for item in read_items(path, self.modality)]
            self.pairs[self._key] = pair
        self.pair = self.pairs[self._key]

    def train(self) -> None:
        data, settings = self.train_split, self.recipe.train
        batch = data.at(range(min(NUM_EXAMPLES, len(data))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Autoencoder(self.recipe, modality=self.modality)
            objective = self.model.objective
            step = Source(0, "check").step(0, progress=0.5)
            y = self.modality.augment(self.modality.prepare(batch.y), step)
            loss = self.model.check(batch._replace(y=y), step, objective=objective)
            if self.recipe.strangers():  # ours are known to work in it, and it is slow in software
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    self.model.check(batch._replace(y=y), step, objective=objective)
            assert bool(loss.isfinite().all()), "the loss is not finite"
            torch.autograd.backward(loss.mean())
        check_gradients(self.model, label="parameter ")
        ema_model = copy.deepcopy(self.model)
        distribution = self.recipe.distribution
        optimizer = EMAOptimizer(self.model, ema_model, settings, prefer=distribution)
        [coefficients] = optimizer.coefficients([settings.lr], first=0, steps=1)
        optimizer.step(StepCoefficients(*coefficients))

    def reload(self) -> None:
        folder, labels = self.folder / "model", label_row(self.train_split.labels, 0)
        checkpoint.save(folder, self.model.state_dict(), checkpoint.config_json(self.recipe))
        loaded = load(folder)
        known = {name: labels[name] for name in self.recipe.condition}
        items = loaded.sample(2, known)
        assert len(items) == 2, f"2 items were asked for, and {len(items)} made"
        back = loaded.reconstruct(self.pair, known)
        assert len(back) == 2, f"2 items have {len(back)} reconstructions"
        if not loaded.autoencoder.num_classes:  # between integers nothing lies
            walk = loaded.interpolate(*self.pair, steps=3, labels=known)
            assert len(walk) == 3, f"an interpolation of 3 steps has {len(walk)} items"
