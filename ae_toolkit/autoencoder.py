"""The composition: corruption, encoder, bottleneck, decoder and likelihood on one straight line.

Tensors only. A recipe's parts are built here and nowhere else; nothing here knows what the data is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_toolkit.contracts import Batch, Shape, Step, Terms, repeat
from ae_toolkit.modality import Modality
from ae_toolkit.recipe import Recipe, choose_labels


class Autoencoder(nn.Module):
    """Any autoencoder whose posterior precedes its decoder.

    Args:
        recipe: names the parts and their arguments.
        modality: fixes the shape, the classes and the labels that the parts are built for.

    Raises:
        Misuse: a part does not fit the data type or its neighbour; the sentence names it.
    """

    def __init__(self, recipe: Recipe, *, modality: Modality):
        super().__init__()
        self.shape: Shape = modality.shape
        self.condition = choose_labels(recipe, modality.labels)
        cond_dim = sum(max(num, 1) for num in self.condition.values())
        self.corruption = recipe.make("corruption")
        self.encoder = recipe.make(
            "encoder",
            in_shape=self.corruption.out_shape(modality.shape),
            num_classes=modality.num_classes,
            cond_dim=cond_dim,
        )
        self.bottleneck = recipe.make(
            "bottleneck",
            in_shapes=self.encoder.out_shapes,
            cond_dim=cond_dim,
            prior=partial(recipe.make, "prior", cond_dim=cond_dim),
        )
        self.likelihood = recipe.make("likelihood", num_classes=modality.num_classes)
        self.decoder = recipe.make(
            "decoder",
            z_shapes=self.bottleneck.z_shapes,
            out_shape=(self.likelihood.num_params, *modality.shape),
            num_classes=modality.num_classes,
            cond_dim=cond_dim,
        )

    def forward(self, batch: Batch, step: Step, *, num_samples: int = 1) -> Terms:
        """The terms of the loss for prepared targets.

        Args:
            batch: `y` is `(B, *shape)`, prepared.
            step: where noise comes from.
            num_samples: K.
        """
        x, y = self.corruption(batch.y, batch.y, batch.mask, step)
        c = self.embed(batch.labels, like=x)
        h = self.encoder(x, c, batch.mask)
        code = self.bottleneck(h, c, num_samples=num_samples, step=step)
        y, c, mask = (repeat(tensor, num_samples) for tensor in (y, c, batch.mask))
        params = self.decoder(code.z, c, mask, target=y, step=step)
        # bf16 logits saturate a sigmoid, so losses are taken in fp32.
        distortion = self.likelihood.nll(params.float(), y, mask)
        return Terms(distortion.unflatten(0, (num_samples, -1)), code.rate, code.penalty)

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

    def decode(
        self,
        z: tuple[Tensor, ...],
        c: Tensor,
        step: Step,
        *,
        mask: Tensor | None = None,
        temperature: float = 0.0,
    ) -> Tensor:
        """Codes `(N, *z_shapes[i])` to values `(N, *shape)`; at 0 the best single guess."""

        def draw(params: Tensor) -> Tensor:
            values: Tensor = self.likelihood.sample(
                params.float(), temperature=temperature, step=step
            )
            return values

        values: Tensor = self.decoder.generate(z, c, mask, draw=draw)
        return values

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

    def translate(self, x: Tensor, c: Tensor, step: Step) -> Tensor:
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
