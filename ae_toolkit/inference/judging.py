"""What people would notice of a generator: how its codes lie as a whole, what its samples are like.

Distances are those of `distances.py`; the features of samples are the data type's own
(`Modality.judge`).

Axes: N examples or samples, D numbers of a code, F features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ae_toolkit.console import track
from ae_toolkit.contracts import Posterior
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import PluginError, UsageError, wrap_plugin_errors
from ae_toolkit.inference.distances import (
    frechet_distance,
    kernel_distance,
    maximum_mean_discrepancy,
    nearest,
    precision_recall,
    told_apart,
)
from ae_toolkit.modality import Modality, describe
from ae_toolkit.randomness import Source

if TYPE_CHECKING:
    from ae_toolkit.inference.model import Model

Judged = tuple[Tensor, dict[str, Tensor]]  #: features `(N, F)`, logits of labels `(N, K)`

CHUNK_ROWS = 1000  #: of a matrix of distances
MAX_MMD_CODES = 2000
MAX_TESTED_CODES = 5000  #: of each kind, between which a classifier is to tell
#: Of codes, beside the posterior's own; each point of a curve costs √2 times as much noise.
POSTERIOR_SPREADS = (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
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
        Nothing of fewer than a hundred real codes.
    """
    if num_classes := model.autoencoder.num_classes:
        counts = torch.bincount(drawn.long().flatten(), minlength=num_classes).double()
        share = counts / counts.sum()
        return {
            "codebook_use": float((counts > 0).double().mean()),
            "codebook_perplexity": float(torch.special.entr(share).sum().exp()),
        }
    if len(drawn) < MIN_SAMPLES:
        return {}
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
    model: Model,
    examples: Examples,
    learned: Examples,
    *,
    num_samples: int,
    seed: int,
    progress: bool = False,
) -> dict[str, Any]:
    """How samples of a model compare with data, by the features that the data type gives.

    Args:
        model: what draws them, under the labels of the examples if it is conditioned.
        examples: of the test split.
        learned: of the training split.
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
    return found | _read_as_asked(known, made[1])


def _read_as_asked(known: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> dict[str, Any]:
    """The share of samples that are read as what was asked for, of each label that can be read."""
    shares = {
        name: float((logits[name].argmax(1) == column).double().mean())
        for name, column in known.items()
        if name in logits
    }
    return {"read_as_asked": shares} if shares else {}


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


@torch.inference_mode()
def rate_distortion(
    model: Model,
    examples: Examples,
    *,
    spreads: Sequence[float] = POSTERIOR_SPREADS,
    seed: int = 0,
    progress: bool = False,
) -> list[tuple[float, float, float]]:
    """What a model's codes cost and what is lost, where they are drawn wider or narrower.

    Codes are drawn from N(μ, (s·σ)²) for each spread s; the rate is E[log q_s(z) - log p(z)]. At 1
    they are the model's own; towards wider ones they cost less and say less.

    Args:
        model: with a Gaussian posterior.
        examples: to be measured on.
        spreads: s of each point.
        seed: of the draws.
        progress: show a bar.

    Returns:
        Spread, rate and distortion, means per example.

    Raises:
        UsageError: the codes have no Gaussian posterior.
    """
    net, source = model.autoencoder, model.noise_source(seed, "curve")
    if not hasattr(net.bottleneck, "posterior"):
        raise UsageError(
            f"a curve needs the mean and the variance of codes, which bottleneck "
            f"{model.recipe.bottleneck.name!r} does not give"
        )
    sums = torch.zeros(len(spreads), 2, dtype=torch.float64)
    starts = range(0, len(examples), CHUNK_ROWS)
    for start in track(starts, "drawing a curve", shown=progress):
        batch, step = model.to_device(examples, start, start + CHUNK_ROWS), source.step(start)
        x, y = net.corruption(batch.y, batch.y, batch.mask, step)
        c = net.embed(batch.labels, like=x)
        mean, logvar = net.bottleneck.posterior(net.encoder(x, c, batch.mask), c)
        noise = step.randn(tuple(mean.shape))
        for i, spread in enumerate(spreads):
            log_std = 0.5 * logvar + math.log(spread)
            z = model.unflatten(mean + log_std.exp() * noise)
            log_q = -(0.5 * noise.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)
            rate = log_q - net.bottleneck.prior.log_prob(z, c).sum(1)
            params = net.decoder(net.features(z, c), c, batch.mask, target=y, step=step).float()
            lost = net.likelihood.nll(params, y, batch.mask)
            sums[i] += torch.stack([rate.sum(), lost.sum()]).double().cpu()
    means = (sums / len(examples)).tolist()
    return [(spread, *mean) for spread, mean in zip(spreads, means, strict=True)]
