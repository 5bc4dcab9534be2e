"""The recipes of the image plugin. Vary them with `--set`; each is a page of settings, no more."""

from __future__ import annotations

from typing import Any

from ae_toolkit import Recipe

DIGITS: dict[str, Any] = {"name": "image", "size": 28, "channels": 1, "labels": {"digit": 10}}
CLOTHES: dict[str, Any] = {"name": "image", "size": 28, "channels": 1, "labels": {"garment": 10}}

#: Patches of 4x4 pixels keep all work on 7x7 positions, where a CPU is fastest.
RESNET: dict[str, Any] = {"patch": 4, "activation": "gelu", "norm": False}


def mnist_2d() -> Recipe:
    """Dense VAE of digits with a two-number code and squared error, as in the lesson."""
    return Recipe.of(
        {
            "name": "mnist-2d",
            "data": {"name": "mnist"},
            "modality": DIGITS,
            "encoder": {"name": "mlp", "hidden": [512, 256, 256, 256, 256], "activation": "gelu"},
            "bottleneck": {"name": "gaussian", "z_dim": 2},
            "decoder": {"name": "mlp", "hidden": [256, 256, 256, 256, 512], "activation": "gelu"},
            "likelihood": {"name": "squared-error", "squash": True},
            # Without the warm-up, a deep decoder learns to ignore so small a code.
            "objective": {"name": "elbo", "warmup": 0.1},
            "train": {"epochs": 100, "batch_size": 320, "lr": 1.5e-3, "clip": 1.0},
        }
    )


def mnist_2d_bernoulli() -> Recipe:
    """Dense VAE of digits with a two-number code and the cross-entropy of grey pixels."""
    return mnist_2d().with_({"name": "mnist-2d-bernoulli", "likelihood.name": "cross-entropy"})


def fashion_2d() -> Recipe:
    """Dense VAE of clothes with a two-number code and squared error."""
    return mnist_2d().with_(
        {"name": "fashion-2d", "data.name": "fashion-mnist", "modality": CLOTHES}
    )


def mnist_vae() -> Recipe:
    """Convolutional VAE of dynamically binarised digits, with a learned prior."""
    return Recipe.of(
        {
            "name": "mnist-vae",
            "data": {"name": "mnist"},
            "modality": DIGITS,
            "corruption": {"name": "binarise"},
            "encoder": {"name": "resnet", "widths": [64], "blocks": 1, **RESNET},
            "bottleneck": {"name": "gaussian", "z_dim": 32},
            "prior": {"name": "flow"},
            "decoder": {"name": "resnet", "widths": [64], "blocks": 2, **RESNET},
            "likelihood": {"name": "bernoulli"},
            "train": {"epochs": 80, "batch_size": 64, "lr": 1e-3, "ema": 0.9995},
        }
    )
