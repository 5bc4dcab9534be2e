"""How good is it? ELBO and its terms, importance-weighted NLL, active units, probes, and the
modality's own metrics; on the test split, by the weights that lie on the disk.

What is no likelihood is called a distortion here, and no NLL is reported from it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ae_toolkit.console import track
from ae_toolkit.contracts import Posterior, flatten, repeat
from ae_toolkit.data.examples import Examples, from_option, load_data
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.inference import judging
from ae_toolkit.inference.disentanglement import disentanglement
from ae_toolkit.inference.model import Model
from ae_toolkit.modality import modality_metrics
from ae_toolkit.parts.objective import logmeanexp

CHUNK_EXAMPLES = 500  #: examples at once
MAX_KNOWN_SAMPLES = 10_000  #: per example, that are drawn because a card says so
CHUNK_SAMPLES = 5000  #: decoded samples at once, in the importance-weighted estimate
MAX_JUDGED = 10_000  #: samples that are compared with data
MIN_PROBED_EXAMPLES = 101  #: by whose codes a label is predicted


def evaluate(
    model: Model,
    *,
    data: str | None = None,
    num_samples: int | None = 0,
    limit: int | None = None,
    seed: int = 0,
    full: bool = False,
    num_judged: int = MAX_JUDGED,
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
        full: say too how the codes lie as a whole, what they tell, and what samples are like.
        num_judged: samples that are drawn for that.
        progress: show a bar.

    Returns:
        `distortion`, `rate` and their sum, means per example (the sum is the negative ELBO, in
        nats, where the likelihood is a density: then it is called `negative_elbo`), of which only
        the first where codes have no rate; `nll` where one was asked for, and the mean
        `nll_effective_samples` of those that it was estimated with; `standard_errors` of all these;
        `bits_per_dim` and `nll_bits_per_dim`, both per element of unpadded data in bits;
        `active_units`; `metrics` of the modality; `probes`, accuracies of labels predicted from
        codes by their neighbours; and what all of it was measured on. With `full`, `codes` and
        `samples` as in `judging.judge_codes` and `judge_samples`, and `linear_probes`.

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
    found = measure(model, examples, seed=seed, progress=progress)
    report: dict[str, Any] = {
        "data": recipe.data.name,
        "split": "test",
        "num_examples": len(examples),
        "corruption": recipe.corruption.name,
        "likelihood": recipe.likelihood.name,
        "is_density": found.is_density,
        "seed": seed,
    }
    means = {"distortion": found.distortion}
    if model.has_rate:
        name = "negative_elbo" if found.is_density else "distortion_plus_rate"
        means |= {"rate": found.rate, name: found.distortion + found.rate}
    if num_samples := _num_samples(model, num_samples, is_density=found.is_density):
        means["nll"], effective = importance_weighted(model, examples, num_samples, seed, progress)
    report |= {name: float(values.mean()) for name, values in means.items()}
    if num_samples:
        report |= {
            "nll_num_samples": num_samples,
            "nll_effective_samples": float(effective.mean()),
        }
    if len(examples) > 1:
        report["standard_errors"] = {
            name: float(values.std() / len(values) ** 0.5) for name, values in means.items()
        }
    if found.is_density and model.has_rate and examples.columns.mask is None:
        for name, bits in (("negative_elbo", "bits_per_dim"), ("nll", "nll_bits_per_dim")):
            if name in report:
                report[bits] = report[name] / (math.log(2) * math.prod(examples.shape))
    report["z_dim"] = model.z_dim
    report["active_units"] = active_units(found.codes.float())
    report["metrics"] = {name: float(values.mean()) for name, values in found.metrics.items()}
    if found.baselines:
        report["baselines"] = found.baselines
    classes = _classes(model, examples)
    features = found.codes
    if model.autoencoder.num_classes:  # between integers there is no distance
        features = model.features(features, examples.labels).cpu()
    report["probes"] = {
        label: round(neighbour_accuracy(features, column), 4) for label, column in classes.items()
    }
    if full:
        report["linear_probes"] = {
            label: round(judging.linear_accuracy(features, column), 4)
            for label, column in classes.items()
            if int(torch.bincount(column).max()) >= 5 and len(column.unique()) > 1
        }
        if len(classes) > 1 and not model.autoencoder.num_classes:
            report["disentanglement"] = disentanglement(features.float(), classes, seed=seed)
        report["codes"] = judging.judge_codes(
            model, found.drawn, found.posterior, examples, seed=seed
        )
        learned = load_data(recipe, model.modality, "train")
        report["samples"] = judging.judge_samples(
            model, examples, learned, num_samples=num_judged, seed=seed, progress=progress
        )
    return report


class Measured(NamedTuple):
    """What is measured in one pass, on the CPU.

    Attributes:
        distortion: `(N,)`, in nats where the likelihood is a density.
        rate: likewise.
        metrics: of the modality, of the best guesses, `(N,)` each.
        baselines: the same of simple methods, by their names; means.
        codes: posterior means `(N, D)`.
        drawn: codes that were drawn, `(N, D)`.
        posterior: the Gaussians that they were drawn from, where there are such.
        is_density: whether the likelihood is a density of this data.
    """

    distortion: Tensor
    rate: Tensor
    metrics: dict[str, Tensor]
    baselines: dict[str, dict[str, float]]
    codes: Tensor
    drawn: Tensor
    posterior: Posterior | None
    is_density: bool


@torch.inference_mode()
def measure(model: Model, examples: Examples, *, seed: int = 0, progress: bool = False) -> Measured:
    """Measures each example by one sample of its code, and by its best guess."""
    net, source = model.autoencoder, model.noise_source(seed, "evaluate")
    known = {name: column for name, column in examples.labels.items() if name in net.condition}
    model.condition(known, len(examples))  # a label that is missing is said
    metrics: dict[str, dict[str, list[Tensor]]] = {}  # of each method; "": the model
    is_density = bool(net.likelihood.is_density)
    columns: list[tuple[Tensor, ...]] = []
    starts = range(0, len(examples), CHUNK_EXAMPLES)
    for start in track(starts, "evaluating", shown=progress):
        batch, step = model.to_device(examples, start, start + CHUNK_EXAMPLES), source.step(start)
        forward = net(batch, step)
        z = net.bottleneck.mean(forward.h, forward.c)
        posterior = getattr(net.bottleneck, "posterior", lambda h, c: ())(forward.h, forward.c)
        distortion, rate = forward.terms[:2]
        terms = distortion[0].double(), rate.sum(-1)[0].double()
        columns.append((*terms, flatten(z), flatten(forward.code.z), *posterior))
        is_density = is_density and net.likelihood.supports(forward.y)
        guesses = {"": net.decode(z, forward.c, step, mask=batch.mask)}
        guesses |= model.modality.baselines(forward.x, forward.y)
        for method, guess in guesses.items():
            values = modality_metrics(model.modality, forward.y, guess, batch.mask)
            for name, value in values.items():
                mine = metrics.setdefault(method, {}).setdefault(name, [])
                mine.append(value.double().cpu())
    each = {m: {k: torch.cat(v) for k, v in found.items()} for m, found in metrics.items()}
    own = each.pop("")
    means = {m: {k: float(v.mean()) for k, v in found.items()} for m, found in each.items()}
    whole = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    distortions, rates, codes, drawn, *gaussians = whole
    return Measured(
        distortions, rates, own, means, codes, drawn,
        Posterior(*gaussians) if gaussians else None, is_density,
    )  # fmt: skip


def score(
    model: Model,
    examples: Examples,
    *,
    num_samples: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """How unlike its data a model finds each example: columns `(N,)`, by their names.

    Args:
        model: what judges.
        examples: what is judged.
        num_samples: k of the importance-weighted NLL; 0: none.
        seed: of posterior samples and corruptions.
        progress: show a bar.

    Returns:
        `negative_elbo` (`distortion_plus_rate` where the likelihood is no density), `nll` if asked
        for, `distortion`, `rate`, and the metrics of the modality; as far as there are such.

    Raises:
        UsageError: as `evaluate`.
    """
    found = measure(model, examples, seed=seed, progress=progress)
    columns: dict[str, Tensor] = {}
    if model.has_rate:
        name = "negative_elbo" if found.is_density else "distortion_plus_rate"
        columns[name] = found.distortion + found.rate
    if num_samples := _num_samples(model, num_samples, is_density=found.is_density):
        columns["nll"], _ = importance_weighted(model, examples, num_samples, seed, progress)
    columns["distortion"] = found.distortion
    if model.has_rate:
        columns["rate"] = found.rate
    return columns | found.metrics


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


def _classes(model: Model, examples: Examples) -> dict[str, Tensor]:
    """Returns the class labels that codes may be asked for."""
    return {
        label: column.cpu()
        for label, column in examples.labels.items()
        if model.modality.labels.get(label) and len(examples) >= MIN_PROBED_EXAMPLES
    }


def importance_weighted(
    model: Model, examples: Examples, num_samples: int, seed: int, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of each example `(N,)`, estimated with k samples, in nats.

    An upper bound of the NLL in expectation, tighter with every sample. Beside it, `(N,)`, how many
    samples of equal weight would be worth as much: (Σ w)² / Σ w².
    """
    net, source = model.autoencoder, model.noise_source(seed, "nll")
    found, effective = [], []
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
            log_w = torch.cat(logs)
            found.append(-logmeanexp(log_w).double().cpu())
            share = log_w.double().softmax(0)
            effective.append(1 / share.square().sum(0).cpu())
    return torch.cat(found), torch.cat(effective)


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
