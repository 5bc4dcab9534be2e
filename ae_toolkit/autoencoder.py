"""The composition: corruption, encoder, bottleneck, decoder and likelihood on one straight line.

Tensors only. A recipe's parts are built here and nowhere else; nothing here knows what the data is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import (
    Batch,
    Forward,
    Objective,
    Posterior,
    Shape,
    StepContext,
    Terms,
    repeat,
)
from ae_toolkit.errors import UsageError
from ae_toolkit.modality import Modality
from ae_toolkit.parts.inspection import Inspector
from ae_toolkit.parts.likelihood import misfit
from ae_toolkit.recipe import Recipe, choose_labels


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
        # Not a part of the line, but one that may keep statistics, which are saved with the rest.
        self.objective: Objective = recipe.make("objective")

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
        z = code.z if getattr(self.bottleneck, "stl", False) else ()
        terms = Terms(distortion.unflatten(0, (num_samples, -1)), code.rate, code.penalty, z)
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
        inspector = Inspector(self, len(batch.y), k)
        with inspector.naming_the_part():
            forward = self(batch, step, num_samples=k, inspect=inspector)
            loss = objective(forward.terms, step)
            inspector.expect("the loss", loss, "(B,)", (len(batch.y),))
        return loss

    def misfit(self, batch: Batch, step: StepContext) -> str:
        """Why the likelihood does not take a prepared batch as its target; empty: it does.

        Raises:
            PluginError: the corruption breaks its contract; the sentence names it.
        """
        inspector = Inspector(self, len(batch.y), 1)
        with inspector.naming_the_part():
            made = self.corruption(batch.y, batch.y, batch.mask, step)
            inspector("corruption", made)
            inspector.kind = "likelihood"
            return misfit(self.likelihood, made[1])

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
