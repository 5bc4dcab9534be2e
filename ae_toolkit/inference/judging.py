"""What people would notice of a generator: how its codes lie as a whole, what its samples are like.

Fréchet and kernel distances are torchmetrics', classifiers scikit-learn's; the features of samples
are the data type's own (`Modality.judge`).

Axes: N examples or samples, D numbers of a code, F features.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ae_toolkit.console import track
from ae_toolkit.contracts import Posterior
from ae_toolkit.data.examples import Examples, load_data
from ae_toolkit.errors import PluginError, wrap_plugin_errors
from ae_toolkit.modality import Modality, describe
from ae_toolkit.randomness import Source

if TYPE_CHECKING:
    from ae_toolkit.inference.model import Model

Judged = tuple[Tensor, dict[str, Tensor]]  #: features `(N, F)`, logits of labels `(N, K)`

CHUNK_ROWS = 1000  #: of a matrix of distances
MAX_MMD_CODES = 2000
MAX_TESTED_CODES = 5000  #: of each kind, between which a classifier is to tell
NUM_NEIGHBOURS = 3  #: k of precision and recall, as the paper has it
KERNEL_SUBSET = 1000  #: samples of each kind in one estimate of the kernel distance …
KERNEL_SUBSETS = 20  #: … which is the mean of so many
MIN_SAMPLES = 100  #: below, distances between distributions say nothing


def judge_codes(
    model: Model,
    drawn: Tensor,
    posterior: Posterior | None,
    examples: Examples,
    *,
    seed: int,
) -> dict[str, Any]:
    """How far the codes of a data set, all together, are from the prior, and what they tell.

    Args:
        model: whose codes.
        drawn: a sample of each example's code, `(N, D)`.
        posterior: their Gaussians, where there are such.
        examples: what they are the codes of.
        seed: of the prior's draws.

    Returns:
        Of integers `codebook_use`, the share of values that are used, and `codebook_perplexity`,
        the exponential of their entropy. Of real codes `prior_mmd2`, the squared maximum mean
        discrepancy of the prior (Gretton et al. 2012), and `prior_told_apart`, the share that a
        classifier tells rightly of codes and the prior's draws (Lopez-Paz and Oquab 2017; one half
        is perfect), on codes that it has not learned from; and `mutual_information` of data and
        codes, in nats, which cannot be found greater than its `mutual_information_limit`, log N.
    """
    if num_classes := model.autoencoder.num_classes:
        counts = torch.bincount(drawn.long().flatten(), minlength=num_classes).double()
        share = counts / counts.sum()
        return {
            "codebook_use": float((counts > 0).double().mean()),
            "codebook_perplexity": float(torch.special.entr(share).sum().exp()),
        }
    known = {name: examples.labels[name].cpu() for name in model.autoencoder.condition}
    prior = model.sample_codes(len(drawn), known, seed=seed).cpu()
    found: dict[str, Any] = {
        "prior_mmd2": maximum_mean_discrepancy(drawn[:MAX_MMD_CODES], prior[:MAX_MMD_CODES]),
        "prior_told_apart": told_apart(drawn[:MAX_TESTED_CODES], prior[:MAX_TESTED_CODES]),
    }
    if posterior is not None:
        found["mutual_information"] = mutual_information(drawn, posterior)
        found["mutual_information_limit"] = math.log(len(drawn))
    return found


def judge_samples(
    model: Model, examples: Examples, *, num_samples: int, seed: int, progress: bool = False
) -> dict[str, Any]:
    """How samples of a model compare with data, by the features that the data type gives.

    Args:
        model: what draws them, under the labels of the examples if it is conditioned.
        examples: of the test split.
        num_samples: how many are drawn; as many examples are compared with them, and no more than
            there are.
        seed: of the draws.
        progress: show a bar.

    Returns:
        `frechet` and `kernel` distances (Heusel et al. 2017; Bińkowski et al. 2018), `precision`
        and `recall` (Kynkäänniemi et al. 2019); `frechet_of_data` and `kernel_of_data`, the same of
        as many examples of the training split, which is what a perfect model would have; `copies`,
        the share of samples that lie nearer to an example of the training split than 99% of the
        test split do (.01 is as it should be); and `read_as_asked`, for each condition that the
        data type can read, the share of samples that are read as what was asked for. Nothing where
        the data type gives no features.
    """
    num = min(num_samples, len(examples))
    order = Source(seed, "judged").permutation(len(examples), 0)[:num]
    examples = examples.select(order.tolist())
    real = _judged(model, examples, title="judging data", progress=progress)
    if real is None or num < MIN_SAMPLES:
        return {}
    known = {name: examples.labels[name].cpu() for name in model.autoencoder.condition}
    codes = model.sample_codes(num, known, seed=seed)
    made = judge_values(model.modality, model.decode_tensor(codes, known))
    learned = load_data(model.recipe, model.modality, "train")
    train = _judged(model, learned, title="judging training data", progress=progress)
    assert made is not None and train is not None
    some = train[0][Source(seed, "judged").permutation(len(learned), 1)[:num]]
    kernel, kernel_error = kernel_distance(real[0], made[0])
    precision, recall = precision_recall(real[0], made[0])
    limit = nearest(real[0], train[0]).quantile(0.01)
    found: dict[str, Any] = {
        "num_samples": num,
        "frechet": frechet_distance(real[0], made[0]),
        "frechet_of_data": frechet_distance(real[0], some),
        "kernel": kernel,
        "kernel_standard_error": kernel_error,
        "kernel_of_data": kernel_distance(real[0], some)[0],
        "precision": precision,
        "recall": recall,
        "copies": float((nearest(made[0], train[0]) < limit).double().mean()),
    }
    as_asked = {
        name: float((made[1][name].argmax(1) == column).double().mean())
        for name, column in known.items()
        if name in made[1]
    }
    return found | ({"read_as_asked": as_asked} if as_asked else {})


def judge_values(modality: Modality, y: Tensor) -> Judged | None:
    """What the data type sees in prepared values `(N, *shape)`; None: it cannot judge them.

    Raises:
        RunError: it gives something else than its contract says.
    """
    features, logits = [], []
    for rows in y.split(CHUNK_ROWS):
        with wrap_plugin_errors(f"{describe(modality)} cannot judge its values"):
            found = modality.judge(rows)
        if found is None:
            return None
        if any(
            each.dim() != 2 or len(each) != len(rows) for each in (found[0], *found[1].values())
        ):
            raise PluginError(f"{describe(modality)}: judge must give a row of numbers per example")
        features.append(found[0].float().cpu())
        logits.append(found[1])
    return torch.cat(features), {
        k: torch.cat([each[k] for each in logits]).cpu() for k in logits[0]
    }


def _judged(model: Model, examples: Examples, *, title: str, progress: bool) -> Judged | None:
    """The same of a data set."""
    found = []
    for start in track(range(0, len(examples), CHUNK_ROWS), title, shown=progress):
        index = range(start, min(start + CHUNK_ROWS, len(examples)))
        judged = judge_values(model.modality, model.modality.prepare(examples.at(index).y))
        if judged is None:
            return None
        found.append(judged)
    features, logits = zip(*found, strict=True)
    return torch.cat(features), {k: torch.cat([each[k] for each in logits]) for k in logits[0]}


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

    size = min(KERNEL_SUBSET, len(real), len(made))
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


def mutual_information(z: Tensor, posterior: Posterior) -> float:
    """I(x; z) = E[log q(z|x) - log (Σ q(z|x') / N)], in nats, at most log N.

    Hoffman and Johnson 2016.

    Args:
        z: a sample of each example's posterior, `(N, D)`.
        posterior: of all examples.
    """
    mean, logvar = (each.double() for each in posterior)
    precision = torch.exp(-logvar)
    constant = -0.5 * ((mean.square() * precision) + logvar).sum(1)
    total = 0.0
    for start in range(0, len(z), CHUNK_ROWS):
        rows = z[start : start + CHUNK_ROWS].double()
        log_q = rows @ (mean * precision).T - 0.5 * rows.square() @ precision.T + constant
        own = log_q.diagonal(start)[: len(rows)]
        total += float((own - log_q.logsumexp(1)).sum())
    return total / len(z) + math.log(len(z))


def linear_accuracy(codes: Tensor, classes: Tensor) -> float:
    """The share of classes that a logistic regression names, on fifths that it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could go on, or that a class is rare
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
        scores = cross_val_score(model, codes.double().numpy(), classes.numpy(), cv=5)
    return float(scores.mean())
