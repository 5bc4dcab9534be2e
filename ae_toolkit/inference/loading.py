"""A model folder to a model: checked before it is built, and never any code from it."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.device import pick_device
from ae_toolkit.errors import PluginError, RunError
from ae_toolkit.inference import zoo
from ae_toolkit.inference.model import Model
from ae_toolkit.modality import Modality
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint
from ae_toolkit.training import memory

MAX_EXAMPLE_NUMBERS = 1 << 26  #: of a model that is loaded


def load(model: str | Path, *, device: str = "cpu") -> Model:
    """Loads a bundled name, a run directory (its best checkpoint), a model folder or a hub id.

    Raises:
        UsageError: there is no such model or device.
        RunError: the model is broken, or needs a plugin that is not installed.
    """
    folder = zoo.resolve(str(model))
    config = checkpoint.load_config(folder)
    modality = config.recipe.make("modality")
    with torch.random.fork_rng(devices=[]):  # random weights, which are replaced at once
        _need_fit(config.recipe, modality, folder)
        autoencoder = Autoencoder(config.recipe, modality=modality)
    weights, parameters = checkpoint.load_weights(folder), dict(autoencoder.named_parameters())
    for name, mine in autoencoder.state_dict().items():
        if weights[name].is_floating_point() != mine.is_floating_point():
            raise _misfit(folder, name)
        weights[name] = weights[name].to(mine.dtype)
        if not checkpoint.is_sound(weights[name], finite=name in parameters):
            raise RunError(
                f"{folder / checkpoint.WEIGHTS_FILE}: {name!r} is not finite; train it again"
            )
    autoencoder.load_state_dict(weights, assign=True)
    autoencoder.to(pick_device(device)).to(memory_format=torch.channels_last).eval()
    return Model(autoencoder.requires_grad_(False), modality=modality, config=config, folder=folder)


def _need_fit(recipe: Recipe, modality: Modality, folder: Path) -> None:
    """Compares the shapes of weights with those of a recipe, before memory is taken for any.

    Raises:
        UsageError: the recipe cannot be built.
        RunError: they are not the same, or an example of the recipe is too large.
    """
    if math.prod(modality.shape) > MAX_EXAMPLE_NUMBERS:
        raise RunError(
            f"{folder}: its examples have the shape {tuple(modality.shape)}, and more than "
            f"{MAX_EXAMPLE_NUMBERS:,} numbers are refused"
        )
    shapes = checkpoint.shapes(folder)
    with memory.bounded(shapes.values(), f"{folder}: the weights do not fit the recipe"):
        try:
            with memory.Planning():
                planned = Autoencoder(recipe, modality=modality)
        except PluginError:  # a part that calculates with its weights
            planned = Autoencoder(recipe, modality=modality)
    expected = {name: tuple(tensor.shape) for name, tensor in planned.state_dict().items()}
    for name in sorted({*expected, *shapes}):
        if expected.get(name) != shapes.get(name):
            raise _misfit(folder, name)


def _misfit(folder: Path, name: str) -> RunError:
    return RunError(f"{folder}: the weights do not fit the recipe, see {name!r}")
