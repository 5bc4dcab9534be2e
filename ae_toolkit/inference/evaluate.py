"""How good is it? ELBO and its terms, importance-weighted NLL, active units, probes, and the
modality's own metrics; on the test split, by the weights that lie on the disk.

What is no likelihood is called a distortion here, and no NLL is reported from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ae_toolkit.console import track
from ae_toolkit.contracts import flatten, repeat
from ae_toolkit.data.examples import Examples, from_option, load_data
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.inference.model import Model
from ae_toolkit.modality import modality_metrics
from ae_toolkit.parts.objective import logmeanexp

CHUNK_EXAMPLES = 500  #: examples at once
MAX_KNOWN_SAMPLES = 10_000  #: per example, that are drawn because a card says so
CHUNK_SAMPLES = 5000  #: decoded samples at once, in the importance-weighted estimate
MIN_PROBED_EXAMPLES = 101  #: by whose codes a label is predicted


def evaluate(
    model: Model,
    *,
    data: str | None = None,
    num_samples: int | None = 0,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures a model on the test split.

    Args:
        model: what to measure.
        data: a data set or path instead of the one that the model was trained on.
        num_samples: k of the importance-weighted NLL (Burda et al. 2016, eq. 8); 0: none; None:
            where the likelihood is a density of the data, as many as a shipped model's card has, or
            500.
        limit: measure only the first so many examples.
        seed: of posterior samples and corruptions.
        progress: show a bar.

    Returns:
        `distortion`, `rate` and their sum, means per example (the sum is the negative ELBO, in
        nats, where the likelihood is a density: then it is called `negative_elbo`), of which only
        the first where codes have no rate; `nll` where one was asked for; `active_units`;
        `metrics` of the modality; `probes`, accuracies of labels predicted from codes; and what all
        of it was measured on.

    Raises:
        UsageError: an NLL was asked for, but the likelihood is no density of this data, or codes
            have no rate.
        RunError: the data cannot be read.
    """
    recipe = model.recipe
    if data is not None:
        recipe = recipe.with_({"data": from_option(data).model_dump()})
    examples = load_data(recipe, model.modality, "test")
    if limit is not None:
        examples = examples.select(range(min(limit, len(examples))))
    found = _measure(model, examples, seed=seed, progress=progress)
    report: dict[str, Any] = {
        "data": recipe.data.name,
        "split": "test",
        "num_examples": len(examples),
        "corruption": recipe.corruption.name,
        "likelihood": recipe.likelihood.name,
        "is_density": found.is_density,
        "seed": seed,
        "distortion": found.distortion,
    }
    if model.has_rate:
        name = "negative_elbo" if found.is_density else "distortion_plus_rate"
        report |= {"rate": found.rate, name: found.distortion + found.rate}
    if num_samples := _num_samples(model, num_samples, is_density=found.is_density):
        report["nll"] = importance_weighted(model, examples, num_samples, seed, progress)
        report["nll_num_samples"] = num_samples
    report["z_dim"] = model.z_dim
    report["active_units"] = active_units(found.codes.float())
    report["metrics"] = found.metrics
    if found.baselines:
        report["baselines"] = found.baselines
    report["probes"] = _probes(model, examples, found.codes)
    return report


class Measured(NamedTuple):
    """What is measured in one pass; means per example.

    Attributes:
        distortion: in nats where the likelihood is a density.
        rate: likewise.
        metrics: of the modality, of the best guesses.
        baselines: the same of simple methods, by their names.
        codes: posterior means `(N, D)`, on the CPU.
        is_density: whether the likelihood is a density of this data.
    """

    distortion: float
    rate: float
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    codes: Tensor
    is_density: bool


@torch.inference_mode()
def _measure(model: Model, examples: Examples, *, seed: int, progress: bool) -> Measured:
    net, source = model.autoencoder, model.noise_source(seed, "evaluate")
    sums: dict[str, dict[str, float]] = {}  # of each method; "": the model
    codes, is_density = [], bool(net.likelihood.is_density)
    starts = range(0, len(examples), CHUNK_EXAMPLES)
    for start in track(starts, "evaluating", shown=progress):
        batch, step = model.to_device(examples, start, start + CHUNK_EXAMPLES), source.step(start)
        forward = net(batch, step)
        z = net.bottleneck.mean(forward.h, forward.c)
        codes.append(flatten(z).cpu())
        is_density = is_density and net.likelihood.supports(forward.y)
        guesses = {"": net.decode(z, forward.c, step, mask=batch.mask)}
        guesses |= model.modality.baselines(forward.x, forward.y)
        for method, guess in guesses.items():
            values = modality_metrics(model.modality, forward.y, guess, batch.mask)
            if not method:
                distortion, rate, _ = forward.terms
                values = {"distortion": distortion[0], "rate": rate.sum(-1)[0], **values}
            mine = sums.setdefault(method, dict.fromkeys(values, 0.0))
            for name, value in values.items():
                mine[name] += float(value.double().sum())
    means = {m: {k: v / len(examples) for k, v in each.items()} for m, each in sums.items()}
    metrics = means.pop("")
    distortion, rate = metrics.pop("distortion"), metrics.pop("rate")
    return Measured(distortion, rate, metrics, means, torch.cat(codes), is_density)


def _num_samples(model: Model, wanted: int | None, *, is_density: bool) -> int:
    """Returns k of the NLL, where None asks for what the model's card has.

    Raises:
        UsageError: some are wanted, but there is no NLL.
        RunError: the card has no sensible number.
    """
    if wanted is None:
        shipped = model.config.card.get("metrics", {"nll_num_samples": 500})
        known = shipped.get("nll_num_samples", 0)
        if not isinstance(known, int) or not 0 <= known <= MAX_KNOWN_SAMPLES:
            raise RunError(f"{model.folder}: its card has nll_num_samples {known!r}; give --nll")
        return known if is_density and model.has_rate else 0
    if wanted and not model.has_rate:
        raise UsageError(
            f"bottleneck {model.recipe.bottleneck.name!r} has no rate, so there is neither an ELBO "
            f"nor an NLL; the distortion and the metrics say what there is"
        )
    if wanted and not is_density:
        raise UsageError(
            f"{model.recipe.likelihood.name!r} is no density of this data, so there is no NLL to "
            f"estimate; the distortion and the rate say what there is"
        )
    return wanted


def _probes(model: Model, examples: Examples, codes: Tensor) -> dict[str, float]:
    """Returns how well each class label is predicted from codes."""
    if model.autoencoder.num_classes:  # between integers there is no distance
        codes = model.features(codes, examples.labels).cpu()
    return {
        label: round(neighbour_accuracy(codes, column.cpu()), 4)
        for label, column in examples.labels.items()
        if model.modality.labels.get(label) and len(examples) >= MIN_PROBED_EXAMPLES
    }


def importance_weighted(
    model: Model, examples: Examples, num_samples: int, seed: int, progress: bool = False
) -> float:
    """The mean negative log-likelihood, estimated with k samples per example, in nats.

    An upper bound of the NLL in expectation, tighter with every sample.
    """
    net, source, total = model.autoencoder, model.noise_source(seed, "nll"), 0.0
    chunk = max(CHUNK_SAMPLES // num_samples, 1)
    each = min(num_samples, CHUNK_SAMPLES)
    title = f"estimating the nll, k = {num_samples}"
    starts = track(range(0, len(examples), chunk), title, shown=progress)
    with torch.inference_mode():
        for start in starts:
            batch = model.to_device(examples, start, start + chunk)
            step = source.step(start)
            x, y = net.corruption(batch.y, batch.y, batch.mask, step)
            c = net.embed(batch.labels, like=x)
            h = net.encoder(x, c, batch.mask)
            logs = []
            for done in range(0, num_samples, each):
                k = min(each, num_samples - done)
                # Two samples at least, so that rates are log q/p of the samples, not the KL.
                code = net.bottleneck(h, c, num_samples=max(k, 2), step=step)
                many_y, many_c, mask = (repeat(t, max(k, 2)) for t in (y, c, batch.mask))
                read = code.decoder_input
                params = net.decoder(read, many_c, mask, target=many_y, step=step).float()
                distortion = net.likelihood.nll(params, many_y, mask).unflatten(0, (max(k, 2), -1))
                logs.append(-(distortion + code.rate.sum(-1))[:k])
            total += float(-logmeanexp(torch.cat(logs)).double().sum())
    return total / len(examples)


def active_units(codes: Tensor, *, threshold: float = 0.01) -> int:
    """How many code dimensions are used: Var_x(E[z|x]) > 0.01 (Burda et al. 2016, section 5.2)."""
    return int((codes.var(0) > threshold).sum()) if len(codes) > 1 else 0


def principal_axes(x: Tensor, num: int) -> Tensor:
    """The projections `(N, num)` of `(N, D)` on their principal axes."""
    centred = x - x.mean(0)
    # Of the rows themselves: of few of them, their products have eigenvalues that are nearly equal.
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:num].T


def neighbour_accuracy(codes: Tensor, classes: Tensor, *, num: int = 10) -> float:
    """The share of classes that the other examples' `num` nearest codes name rightly."""
    right = 0
    for start in range(0, len(codes), 1000):
        rows = codes[start : start + 1000]
        distance = torch.cdist(rows, codes)
        own = torch.arange(len(rows))
        distance[own, own + start] = torch.inf
        nearest = classes[distance.topk(min(num, len(codes) - 1), largest=False).indices]
        right += int((nearest.mode(1).values == classes[start : start + 1000]).sum())
    return right / len(codes)
