"""Contract checks that plugin authors reuse: does a part of mine do what `contracts.py` promises?

    from ae_toolkit.testing import check_modality, check_part, check_plugin

    def test_my_package():
        check_plugin("my-package")

    def test_my_encoder():
        check_part("encoder", "wavelet", shape=(1, 64))

    def test_my_data_type(tmp_path):
        check_modality(Ecg(), [an_item, another], tmp_path)

Every check raises an `AssertionError` or a `PluginError` whose sentence names the
part and what it broke.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ae_toolkit import registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import (
    SUPPLIED_ARGUMENTS,
    Batch,
    Example,
    Shape,
    StepContext,
    Terms,
    flatten,
)
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import outputs
from ae_toolkit.modality import Modality
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint

BATCH_SIZE = 4


class Tensors(Modality):
    """The plainest data type: `.npy` files of one shape. For tests, and for a first try.

    Args:
        shape: of every file.
        num_classes: of elements; 0: real numbers.
        labels: name -> number of classes.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = (1, 8, 8),
        num_classes: int = 0,
        labels: dict[str, int] | None = None,
    ):
        self.shape, self.num_classes, self.labels = tuple(shape), num_classes, labels or {}

    def read(self, path: Path) -> Iterator[Tensor]:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{path}: is not a .npy file ({error})") from error
        if array.shape != self.shape:
            raise RunError(f"{path}: has shape {array.shape}, not {self.shape}")
        yield torch.from_numpy(array)

    def to_tensor(self, item: Tensor) -> Example:
        return Example(item, {}, "")

    def prepare(self, y: Tensor) -> Tensor:
        return y.long() if self.num_classes else y.float()

    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> Tensor:
        return y

    def write(self, items: Sequence[Tensor], path: Path) -> None:
        np.save(path, np.concatenate([item.numpy() for item in items]))


def tiny_recipe(
    *,
    shape: Shape = (1, 8, 8),
    num_classes: int = 0,
    condition: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe of small dense parts for `Tensors`, to put a part under test into.

    Args:
        shape: of the data.
        num_classes: of elements; 0: real numbers in [0, 1].
        condition: whether parts are conditioned on a class (of 3) and a real value.
        changes: as `Recipe.with_` takes them.
    """
    recipe = Recipe.of(
        {
            "name": "tiny",
            "data": {"name": "tensors"},
            "modality": {
                "name": "tensors",
                "shape": shape,
                "num_classes": num_classes,
                "labels": {"kind": 3, "level": 0},
            },
            "condition": ["kind", "level"] if condition else [],
            "encoder": {"name": "mlp", "hidden": [16]},
            "bottleneck": {"name": "gaussian", "z_dim": 4},
            "decoder": {"name": "mlp", "hidden": [16]},
            "likelihood": {"name": "categorical" if num_classes else "cross-entropy"},
            "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3},
        }
    )
    return recipe.with_(changes or {})


def tiny_batch(modality: Modality, *, num: int = BATCH_SIZE, seed: int = 0) -> Batch:
    """Random prepared targets: classes, or binary values, which every likelihood supports."""
    generator = torch.Generator().manual_seed(seed)
    high = modality.num_classes or 2
    y = torch.randint(high, (num, *modality.shape), generator=generator)
    labels = {
        name: torch.randint(classes, (num,), generator=generator)
        if classes
        else torch.rand(num, generator=generator)
        for name, classes in modality.labels.items()
    }
    return Batch(y if modality.num_classes else y.float(), None, labels)


def check_part(
    kind: str,
    name: str,
    *,
    shape: Shape = (1, 8, 8),
    num_classes: int = 0,
    condition: bool = False,
    arguments: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Puts a part into a tiny autoencoder and checks all that its contract promises.

    Checked: the shapes of everything that travels, finite values, a gradient for every parameter of
    the part, the same output for the same noise, equality after saving and loading, that an unknown
    argument is named, and that new items can be generated. Then what the kind of part is for: that
    a condition makes a difference, a temperature spreads what is drawn, draws come from the density
    that is given for them, every term counts in a loss, and noise is drawn for each example.

    Args:
        kind: encoder, decoder, bottleneck, prior, likelihood, corruption or objective.
        name: as registered.
        shape: of the data to try it on.
        num_classes: of elements; 0: real numbers.
        condition: whether to try it with a condition.
        arguments: the part's own.
        changes: to the tiny recipe around it.
    """
    part = {"name": name, **(arguments or {})}
    with (
        registry.modalities.temporarily(tensors=Tensors),
        registry.datasets.temporarily(tensors=_no_data),
    ):
        recipe = tiny_recipe(
            shape=shape, num_classes=num_classes, condition=condition, changes=changes
        ).with_({kind: part})
        recipe.check()
        _check_composed(recipe, kind, f"{kind} {name!r}")
        _check_effect(recipe, kind, f"{kind} {name!r}")
        try:
            recipe.with_({f"{kind}.no_such_argument": 1}).check()
        except UsageError as error:
            assert "no_such_argument" in str(error), f"{kind} {name!r}: {error}"
        else:
            raise AssertionError(f"{kind} {name!r}: takes any argument, even 'no_such_argument'")


def _no_data(*, modality: Modality, split: str) -> None:
    raise AssertionError("the checks make their own data")


def _check_composed(recipe: Recipe, kind: str, label: str) -> None:
    modality: Modality = recipe.make("modality")
    torch.manual_seed(0)
    model, objective = Autoencoder(recipe, modality=modality), recipe.make("objective")
    batch, source = tiny_batch(modality), Source(0, "check")

    for num_samples in (1, 3):
        step = source.step(0, progress=0.5)
        loss = model.check(batch, step, objective=objective, num_samples=num_samples)
        assert bool(torch.isfinite(loss).all()), f"{label}: the loss is not finite"
        model.zero_grad()
        torch.autograd.backward(loss.mean())
    with torch.autocast("cpu", torch.bfloat16):  # as on processors that multiply in it
        model.check(batch, source.step(0, progress=0.5), objective=objective)

    under_test = {"objective": model}.get(kind) or (
        model.bottleneck.prior if kind == "prior" else getattr(model, kind)
    )
    if isinstance(under_test, torch.nn.Module):
        for name, parameter in under_test.named_parameters():
            assert parameter.grad is not None, f"{label}: {name} gets no gradient"
            assert bool(torch.isfinite(parameter.grad).all()), f"{label}: {name} has a NaN gradient"

    model.eval()
    with torch.no_grad():
        again = [model(batch, source.step(1), num_samples=2).terms.distortion for _ in range(2)]
        assert torch.equal(*again), f"{label}: the same noise gives another result"

        step = source.step(2)
        x, _ = model.corruption(batch.y, batch.y, None, step)
        c = model.embed(batch.labels, like=x)
        drawn = model.sample(BATCH_SIZE, c, temperature=1.0, step=step)
        for i, (level, expected) in enumerate(zip(drawn, model.bottleneck.z_shapes, strict=True)):
            _same(label, f"code level {i}", level.shape, (BATCH_SIZE, *expected))
        density = model.bottleneck.prior.log_prob(drawn, c)
        assert bool(torch.isfinite(density).all()), f"{label}: a log density is not finite"
        for temperature in (0.0, 1.0):
            made = model.decode(drawn, c, step, temperature=temperature)
            _same(label, "what is generated", made.shape, batch.y.shape)
            assert bool(torch.isfinite(made.float()).all()), f"{label}: generates NaN"

    _check_reload(recipe, model, modality, batch, label)


def _check_effect(recipe: Recipe, kind: str, label: str) -> None:
    """Checks that a part does what its kind is for, on weights that have left where they begin."""
    modality: Modality = recipe.make("modality")
    torch.manual_seed(0)
    model = Autoencoder(recipe, modality=modality)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch, source = tiny_batch(modality), Source(0, "effect")
    if kind in ("encoder", "bottleneck", "decoder"):
        _check_gradients(model, recipe, kind, batch, label)
    model.eval()
    part = {"objective": recipe.make("objective"), "prior": model.bottleneck.prior}.get(kind)
    if kind in ("encoder", "bottleneck", "decoder") and model.condition:
        _check_condition(model, kind, batch, label)
    if kind == "corruption":
        _check_corruption(model.corruption, batch, source, label)
    elif kind == "bottleneck":
        _check_samples(model, batch, source, label)
    elif kind == "prior":
        _check_prior(part, model.embed(batch.labels, like=batch.y)[:1], source, label)
    elif kind == "likelihood":
        shape = (model.likelihood.num_params, *modality.shape)
        _check_likelihood(model.likelihood, shape, source, label)
    elif kind == "objective":
        _check_objective(part, source.step(0), label)


def _check_gradients(
    model: Autoencoder, recipe: Recipe, kind: str, batch: Batch, label: str
) -> None:
    """Checks that every parameter of a part makes a difference to the loss."""
    num, length = batch.y.shape[:2]
    mask = torch.arange(length).expand(num, -1) < length - torch.arange(num)[:, None]
    step, objective = Source(0, "check").step(0, progress=0.5), recipe.make("objective")
    forward = model(batch._replace(mask=mask if length >= num else None), step, num_samples=2)
    torch.autograd.backward(objective(forward.terms, step).mean())
    part = getattr(model, kind)
    if isinstance(part, torch.nn.Module):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()), (
                f"{label}: {name} makes no difference to the loss"
            )


@torch.no_grad()
def _check_condition(model: Autoencoder, kind: str, batch: Batch, label: str) -> None:
    """Checks that a part gives something else where a label is another."""
    step, c = Source(0, "check").step(0), model.embed(batch.labels, like=batch.y)
    h, z = model.encoder(batch.y, c, None), model.features(model.encode(batch.y, c), c)

    def outputs(labels: Mapping[str, Tensor]) -> list[Tensor]:
        c = model.embed(labels, like=batch.y)
        if kind == "encoder":
            return [flatten(model.encoder(batch.y, c, None))]
        if kind == "bottleneck":
            return [flatten(model.bottleneck.mean(h, c))]
        seen: list[Tensor] = []

        def draw(params: Tensor) -> Tensor:
            seen.append(params)
            values: Tensor = model.likelihood.sample(params.float(), temperature=0.0, step=step)
            return values

        model.decoder.generate(z, c, None, draw=draw)
        return [model.decoder(z, c, None, target=batch.y, step=step), seen[0]]

    for name, num in model.condition.items():
        other = (batch.labels[name] + 1) % num if num else batch.labels[name] + 1
        for mine, its in zip(
            outputs(batch.labels), outputs({**batch.labels, name: other}), strict=True
        ):
            same = torch.isclose(mine, its, rtol=0, atol=1e-6).flatten(1).all(1)
            assert not bool(same.any()), f"{label}: gives the same whatever the label {name!r} is"


def _check_corruption(corruption: Any, batch: Batch, source: Source, label: str) -> None:
    """Checks that what is random is so for every example and every step, and repeats with it."""
    y = batch.y[:1].expand(len(batch.y), *batch.y.shape[1:])
    first, second, again = (corruption(y, y, None, source.step(i))[0] for i in (0, 1, 0))
    assert torch.equal(first, again), f"{label}: the same noise gives another input"
    if not torch.equal(first, second):
        assert not torch.equal(first[0], first[1]), f"{label}: treats all examples of a batch alike"


@torch.no_grad()
def _check_samples(model: Autoencoder, batch: Batch, source: Source, label: str) -> None:
    """Checks that samples are sample-major and lie about the code that stands for an example."""
    num, c = 200, model.embed(batch.labels, like=batch.y)
    h = model.encoder(batch.y, c, None)
    code = model.bottleneck(h, c, num_samples=num, step=source.step(0))
    middle = flatten(code.z).float().reshape(num, len(batch.y), -1).mean(0)
    nearest = torch.cdist(middle, flatten(model.bottleneck.mean(h, c)).float()).argmin(1)
    assert nearest.tolist() == [*range(len(batch.y))], (
        f"{label}: its samples are not sample-major, or not those of its codes"
    )


@torch.no_grad()
def _check_prior(prior: Any, c: Tensor, source: Source, label: str) -> None:
    """Checks that temperature spreads the codes, and that they come from the prior's density."""

    def draw(num: int, temperature: float, index: int = 0) -> tuple[Tensor, ...]:
        step = source.step(index)
        codes: tuple[Tensor, ...] = prior.sample(
            num, c.expand(num, -1), temperature=temperature, step=step
        )
        return codes

    num = 2000
    z = draw(num, 1.0)
    log_p = prior.log_prob(z, c.expand(num, -1)).double().sum(1)
    if not z[0].is_floating_point():
        log_q = torch.tensor(-flatten(z).shape[1] * math.log(prior.num_classes)).double()
        _check_density(log_q - log_p, label)
        return
    zeros, ones = ([flatten(draw(8, heat, i)) for i in (0, 1)] for heat in (0.0, 1.0))
    assert torch.equal(*zeros), f"{label}: is random at temperature 0"
    assert not torch.equal(*ones), f"{label}: draws the same at every step"
    _check_spread(label, [flatten(draw(200, heat)) for heat in (0.5, 1.0, 2.0)])
    codes = flatten(z).double() - flatten(z).double().mean(0)
    axes = codes @ torch.linalg.eigh(codes.T.cov()).eigenvectors
    narrow = 0.7 * axes.std(0)
    square = (axes / narrow).square()
    log_q = -(0.5 * (square + math.log(2 * math.pi)) + narrow.log()).sum(1)
    _check_density(log_q - log_p, label)


def _check_density(log_ratio: Tensor, label: str) -> None:
    """Checks draws `(N,)` by the log of another density over their own, whose mean must be 1."""
    ratio = log_ratio.exp()
    far = float((ratio.mean() - 1).abs() / (ratio.std() / len(ratio) ** 0.5 + 1e-3))
    assert far < 6, f"{label}: what it draws does not come from its density"


def _check_likelihood(likelihood: Any, shape: Shape, source: Source, label: str) -> None:
    """Checks temperature, the mask, and that what is drawn comes from the density."""
    num, groups = 400, 20
    generator = torch.Generator().manual_seed(0)
    params = torch.randn((1, *shape), generator=generator).requires_grad_()
    many = params.expand(num, *shape)

    def draw(temperature: float, index: int = 0) -> Tensor:
        with torch.no_grad():
            step = source.step(index)
            values: Tensor = likelihood.sample(many, temperature=temperature, step=step)
        return values

    assert torch.equal(draw(0.0), draw(0.0, 1)), f"{label}: is random at temperature 0"
    y, length = draw(1.0), shape[1]
    mask = torch.arange(length).expand(num, -1) < length - 1
    elsewhere = torch.where(mask.reshape(num, length, *(1 for _ in shape[2:])), y, y.flip(0))
    masked = [likelihood.nll(many, values, mask) for values in (y, elsewhere)]
    assert torch.equal(*masked), f"{label}: what is masked makes a difference"
    if not likelihood.is_density:
        return
    assert not torch.equal(y, draw(1.0, 1)), f"{label}: draws the same at every step"
    assert likelihood.supports(y), f"{label}: does not support what it draws"
    _check_spread(label, [draw(heat).float() for heat in (0.2, 1.0, 5.0)])
    # The log density's slope is 0 in the mean over draws from that density.
    learned = [params, *getattr(likelihood, "parameters", list)()]
    slopes = [
        torch.autograd.grad(likelihood.nll(many[: len(part)], part, None).mean(), learned)
        for part in draw(1.0, 2).chunk(groups)
    ]
    for column in map(torch.stack, zip(*slopes, strict=True)):
        far = column.mean(0).abs() / (column.std(0) / groups**0.5 + 1e-4)
        assert float(far.max()) < 8, f"{label}: what it draws does not come from its density"


def _check_objective(objective: Any, step: StepContext, label: str) -> None:
    """Checks that a loss rises with every sample's distortion, with the penalty and the rate."""
    num = objective.num_samples
    terms = Terms(
        torch.full((num, BATCH_SIZE), 3.0),
        torch.full((num, BATCH_SIZE, 2), 3.0),
        torch.ones(BATCH_SIZE),
    )
    for term in terms:
        term.requires_grad_()
    slopes = torch.autograd.grad(objective(terms, step).sum(), terms)
    for name, slope in zip(Terms._fields, slopes, strict=True):
        assert bool((slope > 0).all()), f"{label}: its loss does not rise with the {name}"


def _check_spread(label: str, draws: Sequence[Tensor]) -> None:
    """Checks draws `(N, …)` at rising temperatures."""
    spreads = [float(values.std(0).mean()) for values in draws]
    assert spreads == sorted({*spreads}), (
        f"{label}: what it draws must spread with the temperature, and it spreads by {spreads}"
    )


def _check_reload(
    recipe: Recipe, model: Autoencoder, modality: Modality, batch: Batch, label: str
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        checkpoint.save(folder, model.state_dict(), checkpoint.config_json(recipe))
        config = checkpoint.load_config(folder)
        twin = Autoencoder(config.recipe, modality=modality)
        twin.load_state_dict(checkpoint.load_weights(folder))
    twin.eval()
    with torch.no_grad():
        mine, its = (m(batch, Source(0, "check").step(3)).terms.distortion for m in (model, twin))
    assert torch.equal(mine, its), f"{label}: is not the same after saving and loading"


def check_modality(modality: Modality, items: Sequence[Any], folder: Path) -> None:
    """Checks a data type on some of its items.

    Checked: shapes and labels, `prepare` and `augment`, a finite metric per example, and that what
    is written can be read again.

    Args:
        modality: constructed.
        items: two or more.
        folder: an empty one, to write into.
    """
    label = type(modality).__name__
    assert modality.suffixes and all(s.startswith(".") for s in modality.suffixes), (
        f"{label}: suffixes must be file endings such as '.csv', not {modality.suffixes}"
    )
    examples = [modality.to_tensor(item) for item in items]
    for example in examples:
        assert isinstance(example, Example) and isinstance(example.y, Tensor), (
            f"{label}: to_tensor must make an Example of a tensor"
        )
        assert len(example.y) <= modality.shape[0], f"{label}: to_tensor gives more than its shape"
        _same(label, "to_tensor gives y, and that", example.y.shape[1:], modality.shape[1:])
        unknown = set(example.labels) - set(modality.labels)
        assert not unknown, f"{label}: to_tensor gives labels that are not declared: {unknown}"
    same = [e.y for e in examples if e.y.shape == examples[0].y.shape]
    y = modality.prepare(torch.stack(same))
    _same(label, "prepare(y)", y.shape, (len(same), *examples[0].y.shape))
    assert bool(torch.isfinite(y.float()).all()), f"{label}: prepare(y) holds a NaN"
    if modality.num_classes:
        assert bool(((y >= 0) & (y < modality.num_classes)).all()), (
            f"{label}: prepare(y) holds other classes than 0 to {modality.num_classes - 1}"
        )
    augmented = modality.augment(y, Source(0, "check").step(0))
    _same(label, "augment(y)", augmented.shape, y.shape)
    for name, value in modality.metrics(y, y, None).items():
        _same(label, f"metric {name!r}", value.shape, (len(same),))
        assert bool(torch.isfinite(value).all()), f"{label}: metric {name!r} is not finite"
    label_rows = {
        name: torch.tensor([e.labels[name] for e in examples]) for name in examples[0].labels
    }
    mask = modality.mask(label_rows, len(examples))
    if mask is not None:
        _same(label, "mask(labels)", mask.shape, (len(examples), modality.shape[0]))
        found = [int(row.sum()) for row in mask]
        _same(label, "the lengths by mask(labels)", found, [len(e.y) for e in examples])
    prints = modality.fingerprints(torch.stack(same))
    assert len(prints) == len(same), f"{label}: fingerprints must give one for each example"
    for item in items:
        parts = [modality.prepare(part.y[None])[0] for part in modality.segments(item)]
        joined = modality.join(parts, like=item, labels=modality.segments(item)[0].labels)
        num = len(modality.segments(joined))
        assert num == len(parts), f"{label}: join of {len(parts)} parts gives an item of {num}"
    back = [modality.from_tensor(row, like=item) for row, item in zip(y, items, strict=False)]
    path = folder / f"written{modality.suffixes[0]}"
    with outputs():  # at once, even where a command would keep what it writes until its end
        modality.write(back[:1], path)
    assert path.is_file(), f"{label}: write wrote nothing at {path.name}"
    read = list(modality.read(path))
    assert read, f"{label}: what write wrote holds no item"
    again = modality.to_tensor(read[0]).y
    _same(label, "an item written and read", again.shape[1:], modality.shape[1:])
    with outputs():
        modality.figure({"written": back, "read": read[:1]}, folder / "figure.png")
    assert (folder / "figure.png").is_file(), f"{label}: figure drew nothing"


def check_arguments_are_keywords(kind: str, name: str) -> None:
    """Checks that a constructor is keyword-only and takes what is supplied to its kind."""
    import inspect

    parameters = inspect.signature(registry.ALL_REGISTRIES[kind].get(name)).parameters
    for supplied in SUPPLIED_ARGUMENTS[kind]:
        assert supplied in parameters, f"{kind} {name!r}: its constructor must take {supplied!r}"
    for parameter in parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), (
            f"{kind} {name!r}: takes any argument, by '*{parameter.name}'; it must name them"
        )
        assert parameter.kind is parameter.KEYWORD_ONLY, (
            f"{kind} {name!r}: argument {parameter.name!r} is not keyword-only"
        )


def _same(label: str, what: str, found: Sequence[int], expected: Sequence[int]) -> None:
    assert tuple(found) == tuple(expected), (
        f"{label}: {what} has shape {tuple(found)}, not {tuple(expected)}"
    )
