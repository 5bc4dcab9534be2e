"""The recipes of the image plugin. Vary them with `--set`; each is a page of settings, no more."""

from __future__ import annotations

from typing import Any

from ae_toolkit import Recipe

DIGITS: dict[str, Any] = {"name": "image", "size": 28, "channels": 1, "labels": {"digit": 10}}
CLOTHES: dict[str, Any] = {"name": "image", "size": 28, "channels": 1, "labels": {"garment": 10}}


def mnist_2d() -> Recipe:
    """Dense VAE of digits with a two-number code and squared error, as in the lesson."""
    return Recipe.of(
        {
            "name": "mnist-2d",
            "data": {"name": "mnist"},
            "modality": DIGITS,
            "encoder": {"name": "mlp", "hidden": [512, 256], "activation": "silu"},
            "bottleneck": {"name": "gaussian", "z_dim": 2},
            "decoder": {"name": "mlp", "hidden": [256, 512], "activation": "silu"},
            "likelihood": {"name": "squared-error", "squash": True},
            "train": {"epochs": 30, "batch_size": 512, "lr": 2e-3},
        }
    )


def mnist_2d_bernoulli() -> Recipe:
    """The same with the cross-entropy of grey pixels in place of squared error."""
    return mnist_2d().with_({"name": "mnist-2d-bernoulli", "likelihood.name": "cross-entropy"})


def fashion_2d() -> Recipe:
    """Dense VAE of clothes with a two-number code and squared error."""
    return mnist_2d().with_(
        {"name": "fashion-2d", "data.name": "fashion-mnist", "modality": CLOTHES}
    )


def mnist_vae() -> Recipe:
    """Convolutional VAE of dynamically binarised digits."""
    return Recipe.of(
        {
            "name": "mnist-vae",
            "data": {"name": "mnist"},
            "modality": DIGITS,
            "corruption": {"name": "binarise"},
            "encoder": {"name": "resnet", "widths": [32, 64]},
            "bottleneck": {"name": "gaussian", "z_dim": 40},
            "decoder": {"name": "resnet", "widths": [64, 32]},
            "likelihood": {"name": "bernoulli"},
            "train": {"epochs": 30, "batch_size": 128, "lr": 1e-3, "clip": 10.0},
        }
    )
