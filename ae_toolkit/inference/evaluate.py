"""How good is it? ELBO and its terms, importance-weighted NLL, active units, probes, and the
modality's own metrics; on the test split, by the weights that lie on the disk.

What is no likelihood is called a distortion here, and no NLL is reported from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ae_toolkit.console import track
from ae_toolkit.contracts import Batch, StepContext, flatten, repeat
from ae_toolkit.data.examples import Examples, from_option, load_data
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.inference.model import Model
from ae_toolkit.modality import modality_metrics
from ae_toolkit.parts.objective import logmeanexp

CHUNK_EXAMPLES = 500  #: examples at once
MAX_KNOWN_SAMPLES = 10_000  #: per example, that are drawn because a card says so
CHUNK_SAMPLES = 5000  #: decoded samples at once, in the importance-weighted estimate


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
    totals, density = Totals(), model.autoencoder.likelihood.is_density
    beside: dict[str, Totals] = {}
    codes = []
    source = model.noise(seed, "evaluate")
    starts = track(range(0, len(examples), CHUNK_EXAMPLES), "evaluating", shown=progress)
    with torch.inference_mode():
        for start in starts:
            batch = model.to_device(examples, start, start + CHUNK_EXAMPLES)
            result, guesses, z, supported = _measure(model, batch, source.step(start))
            for name, values in guesses.items():
                beside.setdefault(name, Totals()).add(values, len(batch.y))
            density = density and supported
            totals.add(result, len(batch.y))
            codes.append(z)
    means = totals.means()
    if num_samples is None:
        shipped = model.config.card.get("metrics", {"nll_num_samples": 500})
        known = shipped.get("nll_num_samples", 0)
        if not isinstance(known, int) or not 0 <= known <= MAX_KNOWN_SAMPLES:
            raise RunError(f"{model.folder}: its card has nll_num_samples {known!r}; give --nll")
        num_samples = known if density and model.has_rate else 0
    report: dict[str, Any] = {
        "data": recipe.data.name,
        "split": "test",
        "num_examples": len(examples),
        "corruption": recipe.corruption.name,
        "likelihood": recipe.likelihood.name,
        "is_density": density,
        "seed": seed,
        "distortion": means.pop("distortion"),
    }
    rate = means.pop("rate")
    if model.has_rate:
        name = "negative_elbo" if density else "distortion_plus_rate"
        report |= {"rate": rate, name: report["distortion"] + rate}
    if num_samples:
        if not model.has_rate:
            raise UsageError(
                f"bottleneck {recipe.bottleneck.name!r} has no rate, so there is neither an ELBO "
                f"nor an NLL; the distortion and the metrics say what there is"
            )
        if not density:
            raise UsageError(
                f"{recipe.likelihood.name!r} is no density of this data, so there is no NLL to "
                f"estimate; the distortion and the rate say what there is"
            )
        report["nll"] = importance_weighted(model, examples, num_samples, seed, progress)
        report["nll_num_samples"] = num_samples
    flat = torch.cat(codes).cpu()
    report["z_dim"] = model.z_dim
    report["active_units"] = active_units(flat.float())
    report["metrics"] = means
    if beside:
        report["baselines"] = {name: others.means() for name, others in beside.items()}
    if model.autoencoder.num_classes:  # between integers there is no distance
        flat = model.features(flat, examples.labels).cpu()
    report["probes"] = {
        label: round(neighbour_accuracy(flat, column.cpu()), 4)
        for label, column in examples.labels.items()
        if model.modality.labels.get(label) and len(examples) > 100
    }
    return report


class Totals:
    """Sums of named values per example, and their means."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.num = 0

    def add(self, values: Mapping[str, Tensor], num: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.double().sum())
        self.num += num

    def means(self) -> dict[str, float]:
        return {name: value / self.num for name, value in self.sums.items()}


class Measured(NamedTuple):
    """Of one batch.

    Attributes:
        values: `(B,)` each.
        baselines: the same metrics of simple methods.
        z: posterior means `(B, D)`.
        supported: whether the likelihood is a density of these targets.
    """

    values: dict[str, Tensor]
    baselines: dict[str, dict[str, Tensor]]
    z: Tensor
    supported: bool


def _measure(model: Model, batch: Batch, step: StepContext) -> Measured:
    net = model.autoencoder
    forward = net(batch, step)
    y, c = forward.y, forward.c
    z = net.bottleneck.mean(forward.h, c)
    guess = net.decode(z, c, step, mask=batch.mask)
    values = {
        "distortion": forward.terms.distortion[0],
        "rate": forward.terms.rate.sum(-1)[0],
        **modality_metrics(model.modality, y, guess, batch.mask),
    }
    baselines = {
        name: modality_metrics(model.modality, y, simple, batch.mask)
        for name, simple in model.modality.baselines(forward.x, y).items()
    }
    return Measured(values, baselines, flatten(z), net.likelihood.supports(y))


def importance_weighted(
    model: Model, examples: Examples, num_samples: int, seed: int, progress: bool = False
) -> float:
    """The mean negative log-likelihood, estimated with k samples per example, in nats.

    An upper bound of the NLL in expectation, tighter with every sample.
    """
    net, source, total = model.autoencoder, model.noise(seed, "nll"), 0.0
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
