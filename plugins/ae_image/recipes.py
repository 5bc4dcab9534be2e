"""The recipes of the image plugin. Vary them with `--set`; each is a page of settings, no more."""

from __future__ import annotations

from typing import Any

from ae_toolkit import Recipe

DIGIT_IMAGES: dict[str, Any] = {"name": "image", "size": 28, "channels": 1, "labels": {"digit": 10}}
CLOTHES_IMAGES: dict[str, Any] = {
    "name": "image",
    "size": 28,
    "channels": 1,
    "labels": {"garment": 10},
}

#: How many values each cause of a sprite has.
CAUSE_CLASSES = {"shape": 3, "scale": 6, "rotation": 40, "x": 32, "y": 32}

SPRITE_IMAGES: dict[str, Any] = {
    "name": "image",
    "size": 32,
    "channels": 1,
    "labels": CAUSE_CLASSES,
}

#: Patches of 4x4 pixels keep all work on 7x7 positions, where a CPU is fastest.
RESNET_SETTINGS: dict[str, Any] = {"patch": 4, "activation": "gelu", "norm": False}


def mnist_2d() -> Recipe:
    """Dense VAE of digits with a two-number code and squared error, as in the lesson."""
    return Recipe.of(
        {
            "name": "mnist-2d",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
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
        {"name": "fashion-2d", "data.name": "fashion-mnist", "modality": CLOTHES_IMAGES}
    )


def mnist_vae() -> Recipe:
    """Convolutional VAE of dynamically binarised digits, with a learned prior."""
    return Recipe.of(
        {
            "name": "mnist-vae",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
            "corruption": {"name": "binarise"},
            "encoder": {"name": "resnet", "widths": [64], "blocks": 1, **RESNET_SETTINGS},
            "bottleneck": {"name": "gaussian", "z_dim": 32},
            "prior": {"name": "flow"},
            "decoder": {"name": "resnet", "widths": [64], "blocks": 2, **RESNET_SETTINGS},
            "likelihood": {"name": "bernoulli"},
            "train": {"epochs": 80, "batch_size": 64, "lr": 1e-3, "ema": 0.9995},
        }
    )


def mnist_ae() -> Recipe:
    """Convolutional autoencoder of digits with a 4x4x8 code."""
    return Recipe.of(
        {
            "name": "mnist-ae",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
            "encoder": {"name": "resnet", "widths": [64, 128], "blocks": 1, **RESNET_SETTINGS},
            "bottleneck": {"name": "deterministic", "z_dim": 8, "spatial": True},
            "decoder": {"name": "resnet", "widths": [128, 64], "blocks": [2, 3], **RESNET_SETTINGS},
            "likelihood": {"name": "cross-entropy"},
            "train": {"epochs": 16, "batch_size": 64, "lr": 1.5e-3, "clip": 1.0},
        }
    )


def mnist_dense_ae() -> Recipe:
    """Dense autoencoder of digits with 49 numbers in its code, as in the lesson."""
    return Recipe.of(
        {
            "name": "mnist-dense-ae",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
            "encoder": {"name": "mlp", "hidden": [512, 256], "activation": "gelu"},
            "bottleneck": {"name": "deterministic", "z_dim": 49},
            "decoder": {"name": "mlp", "hidden": [256, 512], "activation": "gelu"},
            "likelihood": {"name": "cross-entropy"},
            "train": {"epochs": 30, "batch_size": 256, "lr": 1.5e-3, "clip": 1.0},
        }
    )


def mnist_sparse_ae() -> Recipe:
    """Dense autoencoder of digits whose 256 code numbers are made sparse by an L1 penalty."""
    return mnist_dense_ae().with_(
        {"name": "mnist-sparse-ae", "bottleneck.z_dim": 256, "bottleneck.l1": 0.05}
    )


def mnist_denoise() -> Recipe:
    """Takes noise N(0.5, 0.5), added and clipped, off digits, and off handwriting of any size."""
    return Recipe.of(
        {
            "name": "mnist-denoise",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
            "corruption": {"name": "noise", "mean": 0.5, "std": 0.5},
            "encoder": {"name": "resnet", "widths": [64], "blocks": 3, **RESNET_SETTINGS},
            "bottleneck": {"name": "deterministic", "z_dim": 64, "spatial": True},
            "decoder": {"name": "resnet", "widths": [64], "blocks": 5, **RESNET_SETTINGS},
            "likelihood": {"name": "cross-entropy"},
            "train": {"epochs": 14, "batch_size": 64, "lr": 1e-3, "clip": 1.0},
        }
    )


def mnist_superres() -> Recipe:
    """Doubles digits, which were halved by averaging, and handwriting of any size."""
    return Recipe.of(
        {
            "name": "mnist-superres",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
            "corruption": {"name": "downsample", "factor": 2},
            "encoder": {
                "name": "resnet",
                "widths": [64],
                "blocks": 2,
                **RESNET_SETTINGS,
                "patch": 2,
            },
            "bottleneck": {"name": "deterministic", "z_dim": 64, "spatial": True},
            "decoder": {"name": "resnet", "widths": [64], "blocks": 4, **RESNET_SETTINGS},
            "likelihood": {"name": "cross-entropy"},
            "train": {"epochs": 10, "batch_size": 64, "lr": 1e-3, "clip": 1.0},
        }
    )


def mnist_superres_4x() -> Recipe:
    """Makes digits of 7x7 pixels four times as large, and handwriting of any size."""
    return mnist_superres().with_(
        {"name": "mnist-superres-4x", "corruption.factor": 4, "encoder.patch": 1}
    )


def mnist_cvae() -> Recipe:
    """Convolutional VAE of digits that is told which digit: it writes the one that is asked for."""
    return Recipe.of(
        {
            "name": "mnist-cvae",
            "data": {"name": "mnist"},
            "modality": DIGIT_IMAGES,
            "condition": ["digit"],
            "encoder": {"name": "resnet", "widths": [64], "blocks": 1, **RESNET_SETTINGS},
            "bottleneck": {"name": "gaussian", "z_dim": 16},
            # What N(0, I) draws where no digit's code lies is no digit.
            "prior": {"name": "flow"},
            "decoder": {"name": "resnet", "widths": [64], "blocks": 2, **RESNET_SETTINGS},
            "likelihood": {"name": "cross-entropy"},
            "objective": {"name": "elbo", "warmup": 0.1},
            "train": {"epochs": 12, "batch_size": 64, "lr": 1e-3, "clip": 1.0},
        }
    )


def mnist_2d_ae() -> Recipe:
    """Dense plain autoencoder of digits with a two-number code, the lesson's first exercise."""
    return mnist_2d().with_(
        {
            "name": "mnist-2d-ae",
            "bottleneck.name": "deterministic",
            "bottleneck.z_dim": 2,
            "objective": {"name": "elbo"},
            "train.epochs": 30,
        }
    )


def mnist_rows_seq2seq() -> Recipe:
    """Autoencoder of digits as 28 rows, which one recurrent net reads and another writes."""
    return mnist_dense_ae().with_(
        {
            "name": "mnist-rows-seq2seq",
            "encoder": {"name": "recurrent", "width": 128},
            "bottleneck.z_dim": 32,
            "decoder": {"name": "unrolled", "width": 256},
            "train.batch_size": 128,
        }
    )


def _grey(name: str, **changes: Any) -> Recipe:
    """A convolutional autoencoder of grey digits, with other parts in its middle."""
    return mnist_vae().with_(
        {
            "name": name,
            "corruption": {"name": "none"},
            "prior": {"name": "standard-normal"},
            "likelihood": {"name": "cross-entropy"},
            "train.epochs": 20,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


def mnist_aae() -> Recipe:
    """Adversarial autoencoder of digits: a critic draws its codes to the prior."""
    return mnist_dense_ae().with_(
        {
            "name": "mnist-aae",
            "bottleneck": {"name": "adversarial", "z_dim": 8},
            "train.epochs": 60,
            "train.betas": (0.5, 0.9),  # with more momentum, codes and critic chase each other
            # What the critic says is no measure: it learns too.
            "train.monitor": "distortion",
        }
    )


def mnist_wae() -> Recipe:
    """Wasserstein autoencoder of digits: MMD draws its codes to the prior."""
    return mnist_dense_ae().with_(
        {"name": "mnist-wae", "bottleneck": {"name": "mmd", "z_dim": 8}, "train.epochs": 60}
    )


def mnist_vqvae() -> Recipe:
    """VQ-VAE of digits: 49 integers of 256 values, and a transformer that writes new ones."""
    return _grey(
        "mnist-vqvae",
        bottleneck={"name": "vq", "z_dim": 1, "spatial": True, "codebook_size": 256},
        prior={"name": "autoregressive-categorical", "width": 64, "layers": 3},
        train__epochs=5,
        train__ema=0.999,
    )


def mnist_fsq() -> Recipe:
    """Autoencoder of digits with 49 integers of 240 values, whose codebook need not be learned."""
    return _grey(
        "mnist-fsq",
        bottleneck={"name": "fsq", "z_dim": 1, "spatial": True, "num_levels": [8, 6, 5]},
        prior={"name": "autoregressive-categorical", "width": 64, "layers": 3},
    )


def mnist_ladder() -> Recipe:
    """VAE of dynamically binarised digits whose code has three levels, one below the other."""
    return mnist_vae().with_(
        {
            "name": "mnist-ladder",
            "bottleneck": {"name": "ladder", "z_dim": [8, 16, 32]},
            "objective": {"name": "elbo", "warmup": 0.1},
        }
    )


def mnist_vamp() -> Recipe:
    """VAE of dynamically binarised digits whose prior is a mixture of learned examples' codes."""
    return mnist_vae().with_({"name": "mnist-vamp", "prior.name": "vamp"})


def mnist_betatc() -> Recipe:
    """VAE of digits with ten numbers that shall not know of each other, by the batch."""
    return _grey("mnist-betatc", bottleneck={"name": "tc-vae"})


def mnist_factor() -> Recipe:
    """VAE of digits with ten numbers that shall not know of each other, by a critic."""
    return _grey("mnist-factor", bottleneck={"name": "factor-vae"})


def sprites_vae() -> Recipe:
    """Convolutional VAE of drawn squares, ellipses and hearts, whose causes are known."""
    return Recipe.of(
        {
            "name": "sprites-vae",
            "data": {"name": "sprites"},
            "modality": SPRITE_IMAGES,
            "encoder": {"name": "conv", "widths": [16, 32, 64]},
            "bottleneck": {"name": "gaussian", "z_dim": 10},
            "decoder": {"name": "conv", "widths": [64, 32, 16]},
            "likelihood": {"name": "cross-entropy"},
            "train": {"epochs": 14, "batch_size": 128, "lr": 1e-3},
        }
    )


def sprites_betatc() -> Recipe:
    """VAE of sprites with ten numbers that shall not know of each other, by the batch."""
    return sprites_vae().with_(
        {
            "name": "sprites-betatc",
            "bottleneck": {"name": "tc-vae", "weight": 6.0},
            "train.lr": 1.5e-3,
        }
    )


def sprites_factor() -> Recipe:
    """VAE of sprites with ten numbers that shall not know of each other, by a critic."""
    return sprites_vae().with_(
        {
            "name": "sprites-factor",
            "bottleneck": {"name": "factor-vae", "hidden": [256, 256, 256], "weight": 10.0},
            "train.epochs": 9,
            "train.batch_size": 64,
            # Codes that move faster than the critic learns escape it: more rate, less order.
            "train.lr": 2e-4,
            "train.lr_scale": {"bottleneck.critic": 5.0},
            "train.monitor": "distortion",  # what the critic says is no measure
        }
    )
