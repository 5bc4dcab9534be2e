"""How far two sets of vectors are from each other, as samples of two distributions.

Fréchet and kernel distances are torchmetrics', classifiers scikit-learn's.

Axes: N vectors, D numbers of each, F features.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

CHUNK_ROWS = 1000  #: of a matrix of distances
NUM_NEIGHBOURS = 3  #: k of precision and recall, as the paper has it
KERNEL_SUBSET = 1000  #: samples of each kind in one estimate of the kernel distance …
KERNEL_SUBSETS = 20  #: … which is the mean of so many


class _Given(nn.Module):
    """Features that are there already, for metrics that would compute their own."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Of two sets of features `(N, F)`, as if both were Gaussian (Heusel et al. 2017)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_compared(FrechetInceptionDistance(feature=_Given(real.shape[1])), real, made))


def kernel_distance(real: Tensor, made: Tensor) -> tuple[float, float]:
    """The mean and its standard error, with a cubic kernel (Bińkowski et al. 2018)."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KERNEL_SUBSET, len(real) // 2, len(made) // 2)
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the memory that features need
        torch.manual_seed(0)
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size
        )
        mean, std = _compared(metric, real, made)
    return float(mean), float(std) / math.sqrt(KERNEL_SUBSETS)


def _compared(metric: Any, real: Tensor, made: Tensor) -> Any:
    metric.update(real.float(), real=True)
    metric.update(made.float(), real=False)
    return metric.compute()


def precision_recall(
    real: Tensor, made: Tensor, *, num_neighbours: int = NUM_NEIGHBOURS
) -> tuple[float, float]:
    """The shares of samples that lie among the data, and of data among the samples.

    One lies among others if it is nearer to one of them than that one's k-th neighbour is
    (Kynkäänniemi et al. 2019, eq. 1 and 2).
    """
    return (
        _share_within(made, real, num_neighbours=num_neighbours),
        _share_within(real, made, num_neighbours=num_neighbours),
    )


def _share_within(points: Tensor, others: Tensor, *, num_neighbours: int) -> float:
    radius = torch.cat(
        [  # its own distance of 0 is the first
            torch.cdist(rows, others).kthvalue(min(num_neighbours + 1, len(others)), 1).values
            for rows in others.split(CHUNK_ROWS)
        ]
    )
    within = [(torch.cdist(rows, others) <= radius).any(1) for rows in points.split(CHUNK_ROWS)]
    return float(torch.cat(within).double().mean())


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """The distance `(N,)` of each point to the nearest of the others."""
    return torch.cat([torch.cdist(rows, others).amin(1) for rows in points.split(CHUNK_ROWS)])


def maximum_mean_discrepancy(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD² of two sets `(N, D)`, with a Gaussian as wide as their median distance."""
    both = torch.cat([a, b]).double()
    square = torch.cdist(both, both).square()
    kernel = torch.exp(-square / square.median())
    n = len(a)
    aa, bb, ab = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    same = (aa.sum() - n) / (n * (n - 1)) + (bb.sum() - len(b)) / (len(b) * (len(b) - 1))
    return float(same - 2 * ab.mean())


def told_apart(a: Tensor, b: Tensor) -> float:
    """The share that a classifier tells rightly of two sets `(N, D)`: half of it is guessing.

    It has learned from every other one, and is asked about the rest.
    """
    from sklearn.neural_network import MLPClassifier

    halves = [torch.cat([x[i::2] for x in (a, b)]).double().numpy() for i in (0, 1)]
    kinds = [[0] * len(a[i::2]) + [1] * len(b[i::2]) for i in (0, 1)]
    mean, std = halves[0].mean(0), halves[0].std(0) + 1e-8
    classifier = MLPClassifier((128, 128), early_stopping=True, max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could go on learning
        classifier.fit((halves[0] - mean) / std, kinds[0])
    return float(classifier.score((halves[1] - mean) / std, kinds[1]))
