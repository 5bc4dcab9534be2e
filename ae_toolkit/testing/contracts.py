"""Checks that plugin authors reuse: does a part of mine do what `contracts.py` promises?

    from ae_toolkit.testing import check_modality, check_part, check_plugin

    def test_my_encoder():
        check_part("encoder", "wavelet", shape=(1, 64))

    def test_my_data_type(tmp_path):
        check_modality(Ecg(), [an_item, another], tmp_path)

Every check raises an `AssertionError` or a `PluginError` whose sentence names the
part and what it broke.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ae_toolkit import registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import SUPPLIED_ARGUMENTS, Shape, Terms, flatten
from ae_toolkit.errors import UsageError
from ae_toolkit.modality import Modality
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing.modality import check_modality as check_modality
from ae_toolkit.testing.modality import same_shape
from ae_toolkit.testing.tiny import BATCH_SIZE, tiny_batch, tiny_recipe
from ae_toolkit.testing.tiny import Tensors as Tensors


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
    with (
        registry.modalities.temporarily(tensors=Tensors),
        registry.datasets.temporarily(tensors=lambda *, modality, split: None),
    ):
        recipe = tiny_recipe(
            shape=shape, num_classes=num_classes, condition=condition, changes=changes
        ).with_({kind: {"name": name, **(arguments or {})}})
        trial = _Trial(recipe.check(), kind)
        trial.check_training()
        trial.check_use()
        trial.check_reload()
        for check in _CHECKS_BY_KIND[kind]:
            check(trial)
        try:
            recipe.with_({f"{kind}.no_such_argument": 1}).check()
        except UsageError as error:
            trial.need("no_such_argument" in str(error), str(error))
        else:
            trial.need(False, "takes any argument, even 'no_such_argument'")


class _Trial:
    """A part in an autoencoder whose weights have left where they begin, and some data."""

    def __init__(self, recipe: Recipe, kind: str):
        self.recipe, self.kind = recipe, kind
        self.label = f"{kind} {recipe.part(kind).name!r}"
        self.modality: Modality = recipe.make("modality")
        torch.manual_seed(0)
        self.model = Autoencoder(recipe, modality=self.modality)
        self.objective = self.model.objective
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.batch, self.source = tiny_batch(self.modality), Source(0, "check")
        prior = self.model.bottleneck.prior
        self.part: Any = prior if kind == "prior" else getattr(self.model, kind)

    def need(self, met: bool | Tensor, complaint: str) -> None:
        assert bool(met), f"{self.label}: {complaint}"

    def embed(self, labels: Mapping[str, Tensor]) -> Tensor:
        return self.model.embed(labels, like=self.batch.y)

    def check_training(self) -> None:
        """Checks the loss and its gradients, where some examples are shorter, too."""
        num, length = self.batch.y.shape[:2]
        mask = torch.arange(length).expand(num, -1) < length - torch.arange(num)[:, None]
        masked = self.batch._replace(mask=mask if length >= num else None)
        objective = self.objective
        for batch, num_samples in ((self.batch, 1), (self.batch, 3), (masked, 2)):
            step = self.source.step(0, progress=0.5)
            loss = self.model.check(batch, step, objective=objective, num_samples=num_samples)
            self.need(loss.isfinite().all(), "the loss is not finite")
            torch.autograd.backward(loss.mean())
        module = self.model if self.kind == "objective" else self.part
        if isinstance(module, torch.nn.Module):
            check_gradients(module, label=f"{self.label}: ")
            if self.kind in ("encoder", "bottleneck", "decoder"):
                for name, parameter in module.named_parameters():
                    used = parameter.grad is not None and parameter.grad.any()
                    self.need(used, f"{name} makes no difference to the loss")
        with torch.autocast("cpu", torch.bfloat16):  # as on processors that multiply in it
            step = self.source.step(0, progress=0.5)
            self.model.check(self.batch, step, objective=objective)
        self.model.eval()

    @torch.no_grad()
    def check_use(self) -> None:
        """Checks that the same noise gives the same, and what is made anew."""
        model, step = self.model, self.source.step(2)
        mine, its = (
            model(self.batch, self.source.step(1), num_samples=2).terms.distortion for _ in range(2)
        )
        self.need(mine.equal(its), "the same noise gives another result")
        c = self.embed(self.batch.labels)
        z = model.sample(BATCH_SIZE, c, temperature=1.0, step=step)
        for i, (level, shape) in enumerate(zip(z, model.bottleneck.z_shapes, strict=True)):
            same_shape(self.label, f"code level {i}", level.shape, (BATCH_SIZE, *shape))
        density = model.bottleneck.prior.log_prob(z, c)
        self.need(density.isfinite().all(), "a log density is not finite")
        for temperature in (0.0, 1.0):
            made = model.decode(z, c, step, temperature=temperature)
            same_shape(self.label, "what is generated", made.shape, self.batch.y.shape)
            self.need(made.isfinite().all(), "generates NaN")

    @torch.no_grad()
    def check_reload(self) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            checkpoint.save(folder, self.model.state_dict(), checkpoint.config_json(self.recipe))
            recipe = checkpoint.load_config(folder).recipe
            twin = Autoencoder(recipe, modality=self.modality).eval()
            twin.load_state_dict(checkpoint.load_weights(folder))
        mine, its = (
            model(self.batch, self.source.step(3)).terms.distortion for model in (self.model, twin)
        )
        self.need(mine.equal(its), "is not the same after saving and loading")

    @torch.no_grad()
    def check_condition(self) -> None:
        """Checks that the part gives something else where a label is another."""
        model, y, c = self.model, self.batch.y, self.embed(self.batch.labels)
        step, h = self.source.step(0), model.encoder(y, c, None)
        z = model.features(model.bottleneck.mean(h, c), c)

        def outputs(c: Tensor) -> list[Tensor]:
            if self.kind == "encoder":
                return [flatten(model.encoder(y, c, None))]
            if self.kind == "bottleneck":
                return [flatten(model.bottleneck.mean(h, c))]
            seen: list[Tensor] = []

            def draw(params: Tensor) -> Tensor:
                seen.append(params)
                values: Tensor = model.likelihood.sample(params.float(), temperature=0.0, step=step)
                return values

            model.decoder.generate(z, c, None, draw=draw)
            return [model.decoder(z, c, None, target=y, step=step), seen[0]]

        for name, num in model.condition.items():
            other = self.batch.labels[name] + 1
            others = {**self.batch.labels, name: other % num if num else other}
            for mine, its in zip(outputs(c), outputs(self.embed(others)), strict=True):
                same = mine.isclose(its, rtol=0, atol=1e-6).flatten(1).all(1)
                self.need(not same.any(), f"gives the same whatever the label {name!r} is")

    def check_corruption(self) -> None:
        """Checks that what is random is so for every example and every step, and repeats."""
        y = self.batch.y[:1].expand_as(self.batch.y)
        first, second, again = (self.part(y, y, None, self.source.step(i))[0] for i in (0, 1, 0))
        self.need(first.equal(again), "the same noise gives another input")
        alike = first[0].equal(first[1]) and not first.equal(second)
        self.need(not alike, "treats all examples of a batch alike")

    @torch.no_grad()
    def check_samples(self) -> None:
        """Checks that samples are sample-major and lie about the code that stands for each."""
        num, c = 200, self.embed(self.batch.labels)
        h = self.model.encoder(self.batch.y, c, None)
        z = flatten(self.part(h, c, num_samples=num, step=self.source.step(0)).z).float()
        middle = z.unflatten(0, (num, BATCH_SIZE)).mean(0)
        nearest = torch.cdist(middle, flatten(self.part.mean(h, c)).float()).argmin(1)
        met = nearest.tolist() == [*range(BATCH_SIZE)]
        self.need(met, "its samples are not sample-major, or not those of its codes")

    @torch.no_grad()
    def check_prior(self) -> None:
        """Checks that temperature spreads the codes, and that they come from the density."""
        num, c = 2000, self.embed(self.batch.labels)[:1]

        def draw(num: int, temperature: float, index: int = 0) -> tuple[Tensor, ...]:
            step = self.source.step(index)
            z = self.part.sample(num, c.expand(num, -1), temperature=temperature, step=step)
            return tuple(z)

        levels = draw(num, 1.0)
        z = flatten(levels).double()
        log_p = self.part.log_prob(levels, c.expand(num, -1)).double().sum(1)
        if not levels[0].is_floating_point():
            self._need_density(-z.shape[1] * math.log(self.part.num_classes) - log_p)
            return
        self._need_spread(lambda *where: flatten(draw(200, *where)), (0.5, 1.0, 2.0))
        codes = z - z.mean(0)
        axes = codes @ torch.linalg.eigh(codes.T.cov()).eigenvectors
        narrow = 0.7 * axes.std(0)
        self._need_density(torch.distributions.Normal(0.0, narrow).log_prob(axes).sum(1) - log_p)

    def check_likelihood(self) -> None:
        """Checks temperature, the mask, and that what is drawn comes from the density."""
        num, groups, shape = 400, 20, (self.part.num_params, *self.modality.shape)
        generator = torch.Generator().manual_seed(0)
        params = torch.randn((1, *shape), generator=generator).requires_grad_()
        many = params.expand(num, *shape)

        def draw(temperature: float, index: int = 0) -> Tensor:
            step = self.source.step(index)
            with torch.no_grad():
                values: Tensor = self.part.sample(many, temperature=temperature, step=step)
            return values

        y, length = draw(1.0), shape[1]
        mask = torch.arange(length).expand(num, -1) < length - 1
        elsewhere = torch.where(mask.reshape(num, length, *(1 for _ in shape[2:])), y, y.flip(0))
        mine, its = (self.part.nll(many, values, mask) for values in (y, elsewhere))
        self.need(mine.equal(its), "what is masked makes a difference")
        if not self.part.is_density:
            self.need(draw(0.0).equal(draw(0.0, 1)), "is random at temperature 0")
            return
        self.need(self.part.supports(y), "does not support what it draws")
        self._need_spread(draw, (0.2, 1.0, 5.0))
        # The log density's slope is 0 in the mean over draws from that density.
        learned = [params, *getattr(self.part, "parameters", list)()]
        slopes = [
            torch.autograd.grad(self.part.nll(many[: len(some)], some, None).mean(), learned)
            for some in draw(1.0, 2).chunk(groups)
        ]
        for column in map(torch.stack, zip(*slopes, strict=True)):
            far = column.mean(0).abs() / (column.std(0) / groups**0.5 + 1e-4)
            self.need(far.max() < 8, "what it draws does not come from its density")

    def check_objective(self) -> None:
        """Checks that a loss rises with every sample's distortion, the penalty and the rate."""
        self.model.train()
        shape = (self.part.num_samples, BATCH_SIZE)
        values = (torch.full(shape, 3.0), torch.full((*shape, 2), 3.0), torch.ones(BATCH_SIZE))
        for value in values:
            value.requires_grad_()
        terms = Terms(*values)
        slopes = torch.autograd.grad(self.part(terms, self.source.step(0)).sum(), values)
        for name, slope in zip(Terms._fields, slopes, strict=False):
            self.need((slope > 0).all(), f"its loss does not rise with the {name}")

    def _need_density(self, log_ratio: Tensor) -> None:
        """Checks draws `(N,)` by the log of another density over their own; its mean must be 1."""
        ratio = log_ratio.exp()
        far = (ratio.mean() - 1).abs() / (ratio.std() / len(ratio) ** 0.5 + 1e-3)
        self.need(far < 6, "what it draws does not come from its density")

    def _need_spread(
        self, draw: Callable[[float, int], Tensor], temperatures: Sequence[float]
    ) -> None:
        """Checks what is drawn, `(N, …)`, at a temperature and a step."""
        self.need(draw(0.0, 0).equal(draw(0.0, 1)), "is random at temperature 0")
        self.need(not draw(1.0, 0).equal(draw(1.0, 1)), "draws the same at every step")
        spreads = [float(draw(heat, 0).float().std(0).mean()) for heat in temperatures]
        self.need(
            spreads == sorted({*spreads}),
            f"what it draws must spread with the temperature, and it spreads by {spreads}",
        )


#: What a kind of part is for.
_CHECKS_BY_KIND = {
    "corruption": (_Trial.check_corruption,),
    "encoder": (_Trial.check_condition,),
    "bottleneck": (_Trial.check_condition, _Trial.check_samples),
    "prior": (_Trial.check_prior,),
    "decoder": (_Trial.check_condition,),
    "likelihood": (_Trial.check_likelihood,),
    "objective": (_Trial.check_objective,),
}


def check_gradients(module: torch.nn.Module, *, label: str) -> None:
    """Checks that every parameter has a gradient, a finite one."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{label}{name} gets no gradient"
        assert bool(parameter.grad.isfinite().all()), f"{label}{name} has a NaN gradient"


def check_arguments_are_keywords(kind: str, name: str) -> None:
    """Checks that a constructor is keyword-only and takes what is supplied to its kind."""
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
