"""What every contender is given, and what is measured of it in the same way for all.

The work is MNIST's IDX files in a folder, a batch size and a number of epochs. A smaller work is
the same with fewer digits in the files, so that nobody's loader has a path of its own.

Axes: B images, D code dimensions, P pixels.
"""

from __future__ import annotations

import gzip
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN, Z_DIM, PIXELS = 512, 16, 784
LEARNING_RATE = 1e-3

SPLITS = {"train": "train", "test": "t10k"}


class Work(NamedTuple):
    """One training, the same for everybody.

    Attributes:
        net: `dense` or `conv`.
        folder: holds `MNIST/raw`.
        num: images in its training split.
        num_test: images that the negative ELBO is the mean over.
        batch_size: images per step.
        epochs: passes over the training split.
        device: cpu or cuda.
    """

    net: str
    folder: str
    num: int
    num_test: int
    batch_size: int
    epochs: int
    device: str

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch; what does not fill a batch is left out."""
        return max(self.num // self.batch_size, 1)

    @property
    def steps(self) -> int:
        """In all."""
        return self.per_epoch * self.epochs

    @property
    def chunk(self) -> int:
        """Steps between two looks at the clock: a fifth of the training."""
        return max(self.steps // 5, 1)

    def __str__(self) -> str:
        return f"{self.net}, batch {self.batch_size}"


# The data.


def read_digits(folder: Path | str, split: str) -> np.ndarray:
    """Pictures `(N, 28, 28)` in uint8 out of the IDX file of a split, packed or not."""
    path = Path(folder) / "MNIST/raw" / f"{SPLITS[split]}-images-idx3-ubyte"
    data = path.read_bytes() if path.exists() else gzip.decompress(_packed(path).read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


def write_digits(folder: Path, split: str, pictures: np.ndarray) -> None:
    """The IDX files of a split; nobody here needs the labels, so they are all 0."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    sizes = np.array([2051, *pictures.shape], ">i4").tobytes()
    (raw / f"{SPLITS[split]}-images-idx3-ubyte").write_bytes(sizes + pictures.tobytes())
    labels = np.array([2049, len(pictures)], ">i4").tobytes() + bytes(len(pictures))
    (raw / f"{SPLITS[split]}-labels-idx1-ubyte").write_bytes(labels)


def find_digits(roots: Sequence[Path]) -> Path | None:
    """The first folder that holds all of MNIST, as IDX files."""
    names = [f"{split}-{kind}-ubyte" for split in SPLITS.values() for kind in KINDS]
    for root in roots:
        raw = root / "MNIST/raw"
        if all((raw / name).exists() or _packed(raw / name).exists() for name in names):
            return root
    return None


KINDS = ("images-idx3", "labels-idx1")


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


# The clock.


class Clock:
    """When what was done, in seconds since the process was asked for.

    Args:
        spawned: `time.time()` of the parent as it started this process.
    """

    def __init__(self, spawned: float):
        self.spawned, self.not_counted = spawned, 0.0
        self.started = math.nan
        self.marks: list[tuple[int, float]] = []  # images since the mark before, and when

    def now(self) -> float:
        return time.time() - self.spawned - self.not_counted

    def start(self) -> None:
        """The loop begins."""
        self.started = self.now()

    def mark(self, images: int) -> None:
        """So many images have been learned from since the last mark, and the device is done."""
        self.marks.append((images, self.now()))


class Speed(NamedTuple):
    """What a clock says.

    Attributes:
        steady: images/s, the median over all marks but the first.
        warm_up: seconds that the first stretch took beyond what its images take: compilation,
            first allocations.
        first_step: seconds from the start of the process to the end of the first step.
    """

    steady: float
    warm_up: float
    first_step: float


def speed_of(
    started: float,
    marks: Sequence[tuple[int, float]],
    batch_size: int,
    *,
    steady: float | None = None,
) -> Speed:
    """Reads a clock.

    Args:
        started: when the loop began.
        marks: pairs of images and the time, one at least.
        batch_size: images in the first step.
        steady: images/s, if that was measured better.
    """
    times = [started, *(when for _, when in marks)]
    speeds = [n / max(b - a, 1e-9) for (n, _), a, b in zip(marks, times[:-1], times[1:])]  # noqa: B905
    if steady is None:
        steady = statistics.median(speeds[1:] or speeds)
    images, end = marks[0]
    warm_up = max(end - started - images / steady, 0.0)
    first_step = max(end - max(images - batch_size, 0) / steady, started)
    return Speed(steady, warm_up, first_step)


# The limit.


class Product(NamedTuple):
    """A matrix product of a net, `(rows, inner) @ (inner, columns)` for each example.

    Attributes:
        rows: per example: 1 in a dense layer, the positions of a convolution.
        inner: what is summed over.
        columns: outputs.
        input_gradient: whether the backward pass needs the gradient of its input too.
    """

    rows: int
    inner: int
    columns: int
    input_gradient: bool = True


DENSE = (
    Product(1, PIXELS, HIDDEN, input_gradient=False),
    Product(1, HIDDEN, 2 * Z_DIM),
    Product(1, Z_DIM, HIDDEN),
    Product(1, HIDDEN, PIXELS),
)

#: pythae's `Encoder_Conv_VAE_MNIST` and `Decoder_Conv_AE_MNIST`, convolutions as products.
CONV = (
    Product(14 * 14, 16 * 1, 128, input_gradient=False),
    Product(7 * 7, 16 * 128, 256),
    Product(3 * 3, 16 * 256, 512),
    Product(1, 16 * 512, 1024),
    Product(1, 1024, 2 * Z_DIM),
    Product(1, Z_DIM, 1024 * 4 * 4),
    Product(4 * 4, 1024, 9 * 512),
    Product(7 * 7, 512, 9 * 256),
    Product(14 * 14, 256, 9 * 1),
)

PRODUCTS = {"dense": DENSE, "conv": CONV}


def flops(products: Sequence[Product]) -> int:
    """Of one training step, per example.

    Two per multiply-add in the forward pass, as many for the gradient of the weights, and as many
    for the gradient of the input, where that is needed.
    """
    return sum(
        2 * rows * inner * columns * (3 if needed else 2)
        for rows, inner, columns, needed in products
    )


def matmul_rate(
    products: Sequence[Product], batch_size: int, dtype: str, device: str, *, seconds: float = 0.5
) -> float:
    """FLOP/s of a step's matrix products alone, each at its own shape, the best of a few.

    Args:
        products: of the net.
        batch_size: multiplies the rows.
        dtype: fp32 or bf16.
        device: cpu or cuda.
        seconds: spent on each product, after one that is not counted; one is made at least.
    """
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]

    def best(rows: int, inner: int, columns: int) -> float:
        a = torch.randn(rows, inner, device=device).to(kind)
        b = torch.randn(inner, columns, device=device).to(kind)
        out = torch.empty(rows, columns, device=device, dtype=kind)
        least, until = math.inf, 0.0
        while not until or time.perf_counter() < until:
            if until == 0.0:
                torch.mm(a, b, out=out)
                until = time.perf_counter() + seconds
            synchronise(device)
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            synchronise(device)
            least = min(least, time.perf_counter() - began)
        return least

    total = 0.0
    for each in products:
        rows, inner, columns = batch_size * each.rows, each.inner, each.columns
        total += best(rows, inner, columns) + best(inner, rows, columns)
        if each.input_gradient:
            total += best(rows, columns, inner)
    return batch_size * flops(products) / total


def fast_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    import torch

    from ae_toolkit.device import has_fast_bf16

    return has_fast_bf16(torch.device(device))


def synchronise(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


# The judge.

Encode = Callable[["Tensor"], tuple["Tensor", "Tensor"]]
Decode = Callable[["Tensor"], "Tensor"]


def negative_elbo(
    encode: Encode, decode: Decode, pictures: np.ndarray, *, seed: int = 0
) -> dict[str, float]:
    """The mean over pictures of cross-entropy plus KL, in nats, in fp32, one sample of the code.

    Grey pixels under a Bernoulli are no likelihood: the number compares trainings of one net.

    Args:
        encode: `(B, 1, 28, 28)` in [0, 1] to the mean and the log variance, `(B, D)` each.
        decode: `(B, D)` to logits of `(B, P)`.
        pictures: `(N, 28, 28)` in uint8.
        seed: of the noise, which is the same for every contender.
    """
    import torch
    import torch.nn.functional as F

    noise = torch.Generator().manual_seed(seed)
    distortion = rate = 0.0
    with torch.inference_mode():
        for start in range(0, len(pictures), 500):
            x = torch.from_numpy(pictures[start : start + 500].copy())[:, None].float() / 255
            mean, logvar = encode(x)
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise)
            logits = decode(z).flatten(1).float()
            entropy = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
            distortion, rate = distortion + float(entropy), rate + float(kl)
    num = len(pictures)
    return {
        "distortion": distortion / num,
        "rate": rate / num,
        "negative_elbo": (distortion + rate) / num,
    }


def peak_mb(usage: Any) -> float:
    """The peak resident memory in MB out of `resource.getrusage` or `os.wait4`."""
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
