"""The composition: corruption, encoder, bottleneck, decoder and likelihood on one straight line.

Tensors only. A recipe's parts are built here and nowhere else; nothing here knows what the data is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import (
    Batch,
    Code,
    Forward,
    Objective,
    Posterior,
    Shape,
    StepContext,
    Terms,
    flatten,
    repeat,
)
from ae_toolkit.errors import PluginError, RunError, UsageError, describe_error
from ae_toolkit.modality import Modality
from ae_toolkit.recipe import Recipe, choose_labels
from ae_toolkit.registry import OWN_DISTRIBUTION


class Autoencoder(nn.Module):
    """Any autoencoder whose posterior precedes its decoder.

    Args:
        recipe: names the parts and their arguments.
        modality: fixes the shape, the classes and the labels that the parts are built for.

    Raises:
        UsageError: a part does not fit the data type or its neighbour; the sentence names it.
    """

    def __init__(self, recipe: Recipe, *, modality: Modality):
        super().__init__()
        self.recipe = recipe
        self.shape: Shape = modality.shape
        self.condition = choose_labels(recipe, modality.labels)
        cond_dim = sum(max(num, 1) for num in self.condition.values())
        self.corruption = recipe.make("corruption")
        self.encoder = recipe.make(
            "encoder",
            in_shape=self.in_shape,
            num_classes=modality.num_classes,
            cond_dim=cond_dim,
        )
        self.bottleneck = recipe.make(
            "bottleneck",
            in_shapes=self.encoder.out_shapes,
            cond_dim=cond_dim,
            prior=partial(
                recipe.prior_of,
                cond_dim=cond_dim,
                in_shape=self.in_shape,
                posterior=self.posterior,
            ),
        )
        self.likelihood = recipe.make("likelihood", num_classes=modality.num_classes)
        self.decoder = recipe.make(
            "decoder",
            z_shapes=getattr(self.bottleneck, "feature_shapes", self.bottleneck.z_shapes),
            out_shape=(self.likelihood.num_params, *modality.shape),
            num_classes=modality.num_classes,
            cond_dim=cond_dim,
        )

    def forward(
        self,
        batch: Batch,
        step: StepContext,
        *,
        num_samples: int = 1,
        inspect: Callable[[str, Any], object] = lambda kind, made: None,
    ) -> Forward:
        """The line from prepared targets to the terms of the loss.

        Args:
            batch: `y` is `(B, *shape)`, prepared.
            step: where noise comes from.
            num_samples: K.
            inspect: is told what each kind of part has made, before it is used.
        """
        x, y = made = self.corruption(batch.y, batch.y, batch.mask, step)
        inspect("corruption", made)
        c = self.embed(batch.labels, like=x)
        h = self.encoder(x, c, batch.mask)
        inspect("encoder", h)
        code = self.bottleneck(h, c, num_samples=num_samples, step=step)
        inspect("bottleneck", code)
        y, many_c, mask = (repeat(tensor, num_samples) for tensor in (y, c, batch.mask))
        params = self.decoder(code.decoder_input, many_c, mask, target=y, step=step)
        inspect("decoder", params)
        # bf16 logits saturate a sigmoid, so losses are taken in fp32.
        distortion = self.likelihood.nll(params.float(), y, mask)
        inspect("likelihood", distortion)
        terms = Terms(distortion.unflatten(0, (num_samples, -1)), code.rate, code.penalty)
        return Forward(x, y, c, h, code, params, terms)

    def check(
        self,
        batch: Batch,
        step: StepContext,
        *,
        objective: Objective,
        num_samples: int | None = None,
    ) -> Tensor:
        """The loss per example `(B,)`, each part's result on the way held against its contract.

        Args:
            batch: as `forward` takes it; a few examples will do.
            step: where noise comes from.
            objective: what makes a loss of the terms.
            num_samples: K; None: as many as the objective asks for.

        Raises:
            PluginError: a part fails, or gives another shape than its contract says; the sentence
                names the part, whose it is, what it gave and what it should have given.
        """
        k = num_samples or objective.num_samples
        inspector = _Inspector(self, len(batch.y), k)
        with inspector.naming_the_part():
            forward = self(batch, step, num_samples=k, inspect=inspector)
            loss = objective(forward.terms, step)
            inspector.expect("the loss", loss, "(B,)", (len(batch.y),))
        return loss

    def embed(self, labels: Mapping[str, Tensor], *, like: Tensor) -> Tensor:
        """The condition `(B, cond_dim)`: classes one-hot, real values as they are."""
        columns = [
            F.one_hot(labels[name].long(), num) if num else labels[name][:, None]
            for name, num in self.condition.items()
        ]
        dtype = like.dtype if like.is_floating_point() else torch.float32
        empty = torch.empty(like.shape[0], 0, dtype=dtype, device=like.device)
        return torch.cat([empty, *(column.to(empty) for column in columns)], 1)

    def encode(self, x: Tensor, c: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """`(B, *in_shape)` to the code that stands for it, `(B, *z_shapes[i])`."""
        mean: tuple[Tensor, ...] = self.bottleneck.mean(self.encoder(x, c, mask), c)
        return mean

    def posterior(self, x: Tensor, c: Tensor) -> Posterior:
        """The Gaussians `(B, D)` of codes of `x` `(B, *in_shape)`, for a prior that asks for them.

        Raises:
            UsageError: the bottleneck has no Gaussian posterior.
        """
        if not hasattr(self.bottleneck, "posterior"):
            raise UsageError(
                f"prior {self.recipe.prior.name!r} needs the mean and the variance of codes, which "
                f"bottleneck {self.recipe.bottleneck.name!r} does not give: choose another, such "
                f"as --set bottleneck.name=gaussian"
            )
        found: Posterior = self.bottleneck.posterior(self.encoder(x, c, None), c)
        return found

    def decode(
        self,
        z: tuple[Tensor, ...],
        c: Tensor,
        step: StepContext,
        *,
        mask: Tensor | None = None,
        temperature: float = 0.0,
    ) -> Tensor:
        """Codes `(N, *z_shapes[i])` to values `(N, *shape)`; at 0 the best single guess."""
        features = self.features(z, c)

        def draw(params: Tensor) -> Tensor:
            values: Tensor = self.likelihood.sample(
                params.float(), temperature=temperature, step=step
            )
            return values

        values: Tensor = self.decoder.generate(features, c, mask, draw=draw)
        return values

    @property
    def num_classes(self) -> int:
        """How many values a number of a code can take; 0: codes are real."""
        return int(getattr(self.bottleneck, "num_classes", 0)) if self._has_features else 0

    @property
    def _has_features(self) -> bool:
        """Whether the bottleneck has what follows in its contract, and not only such a name."""
        return hasattr(self.bottleneck, "feature_shapes")

    def features(self, z: tuple[Tensor, ...], c: Tensor) -> tuple[Tensor, ...]:
        """Codes `(N, *z_shapes[i])` to what the decoder reads, real numbers."""
        embed = getattr(self.bottleneck, "embed", None) if self._has_features else None
        return z if embed is None else tuple(embed(z, c))

    def sample(
        self, num: int, c: Tensor, *, temperature: float, step: StepContext
    ) -> tuple[Tensor, ...]:
        """New codes `(num, *z_shapes[i])`; temperature scales their spread."""
        draw = self.bottleneck.prior.sample
        if self._has_features:
            draw = getattr(self.bottleneck, "sample", draw)
        return tuple(draw(num, c, temperature=temperature, step=step))

    @property
    def in_shape(self) -> Shape:
        """The shape of `x` in training."""
        shape: Shape = self.corruption.out_shape(self.shape)
        return shape

    @property
    def any_size(self) -> bool:
        """Whether `x` may have other positions than in training: every part is convolutional."""
        spatial = all(len(shape) == len(self.shape) for shape in self.bottleneck.z_shapes)
        return spatial and all(getattr(p, "any_size", False) for p in (self.encoder, self.decoder))

    def translate(self, x: Tensor, c: Tensor, step: StepContext) -> Tensor:
        """`(B, C, *positions)` of any number, where `any_size`, to the best guess of its target.

        The target has as many positions for each of the input's as in training.
        """
        y = self.decode(self.encode(x, c), c, step)
        for axis, (whole, part) in enumerate(
            zip(self.shape[1:], self.in_shape[1:], strict=True), start=2
        ):
            y = y.narrow(axis, 0, x.shape[axis] * whole // part)
        return y

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def augmented(modality: Modality, batch: Batch, step: StepContext) -> Batch:
    """A batch in the storage dtype as a training sees it: prepared, and varied."""
    return batch._replace(y=modality.augment(modality.prepare(batch.y), step))


#: The parts in the order in which they are called.
CHECK_ORDER = ("corruption", "encoder", "prior", "bottleneck", "decoder", "likelihood", "objective")


class _Inspector:
    """Holds what the parts of a model make against their contracts, one after the other.

    Args:
        model: whose parts they are.
        num: B.
        k: samples per example.
    """

    def __init__(self, model: Autoencoder, num: int, k: int):
        self.model, self.num, self.k = model, num, k
        self.kind = CHECK_ORDER[0]

    def __call__(self, kind: str, made: Any) -> None:
        """Checks what a part has made; the next one is to blame for what comes then."""
        getattr(self, f"_check_{kind}")(made)
        self.kind = CHECK_ORDER[CHECK_ORDER.index(kind) + 1]
        if self.kind == "prior":  # before the bottleneck, which asks it
            self._check_prior()
            self.kind = "bottleneck"

    @property
    def part(self) -> str:
        """The part that is at work, and whose it is."""
        name = self.model.recipe.part(self.kind).name.rpartition(":")[2]
        return f"{self.kind} {name!r} of {self.model.recipe.origin(self.kind)}"

    @contextmanager
    def naming_the_part(self) -> Iterator[None]:
        """Says which part it was that failed; where all are ours, that is a defect of ours."""
        recipe = self.model.recipe
        try:
            yield
        except (UsageError, RunError):
            raise
        except Exception as error:  # whatever a stranger's part may raise
            if not (strangers := recipe.strangers()):
                raise
            own = recipe.origin(self.kind).distribution == OWN_DISTRIBUTION
            beside = f" beside parts of {', '.join(strangers)}" * own
            device = next(self.model.parameters()).device.type
            under = " under bf16 autocast" * torch.is_autocast_enabled(device)
            raise PluginError(
                f"{self.part} fails{beside}{under}: {describe_error(error)}"
            ) from error

    def _check_corruption(self, made: tuple[Tensor, Tensor]) -> None:
        self.expect("x", made[0], "(B, *out_shape)", (self.num, *self.model.in_shape))
        self.expect("the target", made[1], "(B, *shape)", (self.num, *self.model.shape))

    def _check_encoder(self, h: tuple[Tensor, ...]) -> None:
        self.h = h
        self.levels("features", h, "(B, *out_shapes[i])", self.num, self.model.encoder.out_shapes)

    def _check_prior(self) -> None:
        prior, like = self.model.bottleneck.prior, self.h[0]
        self.c = like.new_zeros(self.num, sum(max(n, 1) for n in self.model.condition.values()))
        kind = torch.int64 if self.model.num_classes else like.dtype
        zero = tuple(
            like.new_zeros(self.num, *shape, dtype=kind) for shape in self.model.bottleneck.z_shapes
        )
        flat = flatten(zero)
        log_prob = prior.log_prob(zero, self.c)
        if not (isinstance(log_prob, Tensor) and log_prob.shape == (self.num, 1)):
            self.expect("the log density", log_prob, "(N, D) or (N, 1)", tuple(flat.shape))
        kl = None if self.model.num_classes else prior.kl(Posterior(flat, flat), self.c)
        if kl is not None:
            self.expect("the KL", kl, "(B, D)", tuple(flat.shape))

    def _check_bottleneck(self, code: Code) -> None:
        if not isinstance(code, Code):
            raise PluginError(f"{self.part} gives {type(code).__name__}, and must give a Code")
        shapes = self.model.bottleneck.z_shapes
        self.levels("z", code.z, "(N, *z_shapes[i])", self.k * self.num, shapes)
        dim = sum(math.prod(shape) for shape in shapes)
        if code.rate.dim() == 3:
            dim = code.rate.shape[2]
        self.expect("the rate", code.rate, "(K, B, D)", (self.k, self.num, dim))
        self.expect("the penalty", code.penalty, "(B,)", (self.num,))
        mean = self.model.bottleneck.mean(self.h, self.c)
        self.levels("the mean", mean, "(B, *z_shapes[i])", self.num, shapes)
        embedded, says = self.model.features(mean, self.c), "(N, *feature_shapes[i])"
        features = getattr(self.model.bottleneck, "feature_shapes", shapes)
        self.levels("features", code.decoder_input, says, self.k * self.num, features)
        self.levels("embedded codes", embedded, says, self.num, features)
        if self.model.num_classes:
            self._check_integers(code.z)
            self._check_integers(mean)
            for level in (*code.decoder_input, *embedded):
                if not level.is_floating_point():
                    raise PluginError(f"{self.part} gives the decoder integers: it needs `embed`")

    def _check_integers(self, z: tuple[Tensor, ...]) -> None:
        num, flat = self.model.num_classes, flatten(z)
        if flat.dtype != torch.int64 or not bool(((flat >= 0) & (flat < num)).all()):
            raise PluginError(
                f"{self.part} says that a code has {num} values, and must give them as int64 from "
                f"0 to {num - 1}, not {flat.dtype} from {flat.min()} to {flat.max()}"
            )

    def _check_decoder(self, params: Tensor) -> None:
        shape = (self.k * self.num, self.model.likelihood.num_params, *self.model.shape)
        self.expect("the parameters", params, "(N, P, *shape)", shape)

    def _check_likelihood(self, distortion: Tensor) -> None:
        self.expect("the nll", distortion, "(N,)", (self.k * self.num,))

    def expect(self, what: str, found: Tensor, says: str, shape: Sequence[int]) -> None:
        """Checks a shape, which the contract says in letters."""
        given = tuple(found.shape) if isinstance(found, Tensor) else None
        if given != tuple(shape):
            gives = f"as {type(found).__name__}" if given is None else f"of shape {given}"
            raise PluginError(
                f"{self.part} gives {what} {gives}, and must give {says}, here {tuple(shape)}"
            )

    def levels(
        self, what: str, found: Sequence[Tensor], says: str, num: int, shapes: Sequence[Shape]
    ) -> None:
        """Checks the shapes of all levels, and that none is in double precision."""
        if not isinstance(found, (tuple, list)):
            name = type(found).__name__
            raise PluginError(f"{self.part} gives {what} as {name}, not a tuple of levels")
        if len(found) != len(shapes):
            raise PluginError(
                f"{self.part} gives {what} on {len(found)} levels, and must give {len(shapes)}"
            )
        for level, (mine, shape) in enumerate(zip(found, shapes, strict=True)):
            self.expect(f"{what} on level {level}", mine, says, (num, *shape))
            if mine.dtype == torch.float64:
                raise PluginError(
                    f"{self.part} gives {what} on level {level} in float64, not float32"
                )
