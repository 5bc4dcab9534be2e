"""Pictures by name: MNIST and its kin through torchvision, and a sample of it that ships with us.

The files are looked for under `AE_DATA`, `./data`, `../shared/data` and the user's cache, in that
order. What is in none of them is downloaded, to `AE_DATA` if that is set and else to the cache.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout, suppress
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pictures
from torch import Tensor

from ae_image.modality import Image
from ae_toolkit import Examples, RunError, UsageError
from ae_toolkit.data.examples import Split, data_roots

CLASS_LABELS = {
    "mnist": "digit",
    "fashion-mnist": "garment",
    "kmnist": "character",
    "cifar10": "object",
    "mnist-sample": "digit",
}

SAMPLE_COLUMNS = 40  #: pictures in a row of a sample sheet


def mnist(*, modality: Image, split: Split) -> Examples:
    """60,000 + 10,000 handwritten digits (LeCun, Cortes and Burges; CC BY-SA 3.0)."""
    return _from_torchvision("MNIST", "mnist", modality, split)


def fashion_mnist(*, modality: Image, split: Split) -> Examples:
    """60,000 + 10,000 pictures of clothes (Zalando Research; MIT)."""
    return _from_torchvision("FashionMNIST", "fashion-mnist", modality, split)


def kmnist(*, modality: Image, split: Split) -> Examples:
    """60,000 + 10,000 characters of Japanese cursive (Clanuwat et al. 2018; CC BY-SA 4.0)."""
    return _from_torchvision("KMNIST", "kmnist", modality, split)


def cifar10(*, modality: Image, split: Split) -> Examples:
    """50,000 + 10,000 colour photographs, 32x32, of ten kinds of things (Krizhevsky 2009)."""
    return _from_torchvision("CIFAR10", "cifar10", modality, split)


def mnist_sample(*, modality: Image, split: Split) -> Examples:
    """1,000 + 200 of the digits of MNIST, which ship with the package and need no network."""
    names = files("ae_image") / "samples" / f"mnist-{split}.txt"
    digits = names.read_text(encoding="ascii").split()
    sheet = read_sheet(f"mnist-{split}.png")
    rows = sheet.unflatten(0, (-1, 28)).unflatten(2, (SAMPLE_COLUMNS, 28))  # r h c w
    pictures = rows.permute(0, 2, 1, 3).flatten(0, 1)[: len(digits)]
    classes = torch.tensor([int(d) for d in digits])
    return _examples(pictures[:, None], classes, "mnist-sample", modality, split)


def read_sheet(name: str) -> Tensor:
    """The grey pixels `(H, W)` in uint8 of a sheet of pictures that ships with the package."""
    with (files("ae_image") / "samples" / name).open("rb") as file:
        return torch.from_numpy(np.array(Pictures.open(file, formats=("PNG",))))


def _from_torchvision(source: str, name: str, modality: Image, split: Split) -> Examples:
    import torchvision.datasets

    folder = "cifar-10-batches-py" if source == "CIFAR10" else f"{source}/raw"
    make: Any = getattr(torchvision.datasets, source)
    roots = data_roots()
    home = roots[0] if os.environ.get("AE_DATA") else roots[-1]
    pattern = "*_batch*" if source == "CIFAR10" else "*-ubyte*"
    root = next((r for r in roots if any((r / folder).glob(pattern))), home)
    place = root / folder
    try:
        with redirect_stdout(sys.stderr):  # torchvision reports its attempts
            found = make(root, train=split == "train", download=True)  # what is not there
    except (OSError, RuntimeError, ValueError) as error:
        for empty in (place, place.parent, root):
            with suppress(OSError):
                empty.rmdir()
        files = "its batches" if source == "CIFAR10" else "the four idx-ubyte files"
        raise RunError(
            f"data set {name!r}: {_reason(error)} at {place}; put {files} there (or set AE_DATA to "
            f"the folder that holds {folder}), or use --data mnist-sample, which is bundled"
        ) from error
    pictures = torch.as_tensor(found.data)
    pictures = pictures[:, None] if pictures.dim() == 3 else pictures.permute(0, 3, 1, 2)
    return _examples(pictures, torch.as_tensor(found.targets), name, modality, split)


def _reason(error: Exception) -> str:
    text = str(error)
    if "not found" in text.lower() or "download" in text.lower() or "urlopen" in text.lower():
        return "the files are not there and cannot be downloaded"
    return f"the files are broken ({text.partition(chr(10))[0]})"


def _examples(
    pictures: Tensor, classes: Tensor, name: str, modality: Image, split: Split
) -> Examples:
    """Pictures `(N, C, H, W)` in uint8, brought to the modality's shape if it asks for another."""
    if not isinstance(modality, Image):
        raise UsageError(
            f"data set {name!r} holds pictures, which this recipe's data type does not read"
        )
    channels, *size = modality.shape
    y = pictures
    if channels < y.shape[1]:
        weights = torch.tensor([0.299, 0.587, 0.114])  # luma, as PIL's "L"
        y = torch.einsum("n c h w, c -> n h w", y.float(), weights)[:, None].round().byte()
    if list(y.shape[2:]) != size:
        y = F.interpolate(y.float(), size, mode="bilinear", antialias=True).round().byte()
    y = y.expand(-1, channels, -1, -1).contiguous()
    groups = [f"{split}/{i}" for i in range(len(y))]
    labels = {CLASS_LABELS[name]: classes.long()} if CLASS_LABELS[name] in modality.labels else {}
    return Examples(y, None, labels, groups)
