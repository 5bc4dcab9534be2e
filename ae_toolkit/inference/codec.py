"""A trained model for tensors: examples to codes, codes to prepared values, and new codes.

Axes: N codes, D numbers of a code, all levels flattened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Batch, Code, Shape, StepContext, flatten, unflatten
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import UsageError, did_you_mean
from ae_toolkit.modality import Modality
from ae_toolkit.randomness import Source
from ae_toolkit.version import former_attributes

CHUNK_ITEMS = 500  #: items that are encoded or decoded at once


class Codec:
    """The tensors' side of a model in use: never trained, never corrupting what it is given.

    Labels are a value for all or a column `(N,)`, by their names.
    """

    if not TYPE_CHECKING:
        __getattr__ = former_attributes(
            {
                "push": "prior_transform",
                "levels": "unflatten",
                "noise": "noise_source",
                "walk": "interpolate_codes",
                "restore": "reconstruct_any_size",
            }
        )

    def __init__(self, autoencoder: Autoencoder, *, modality: Modality):
        self.autoencoder, self.modality = autoencoder, modality
        self.recipe = autoencoder.recipe
        self.device = next(autoencoder.parameters()).device
        self.z_shapes: tuple[Shape, ...] = tuple(autoencoder.bottleneck.z_shapes)

    @property
    def z_dim(self) -> int:
        """How many numbers a code has, over all levels."""
        return sum(math.prod(shape) for shape in self.z_shapes)

    @cached_property
    @torch.inference_mode()
    def has_rate(self) -> bool:
        """Whether a code has a rate. If not, nothing tells that codes follow the prior.

        A plain autoencoder's do not: its prior was never trained.
        """
        net, c = self.autoencoder, self.condition(dict.fromkeys(self.autoencoder.condition, 0), 1)
        h = tuple(c.new_zeros(1, *shape) for shape in net.encoder.out_shapes)
        step = self.noise_source(0, "rate").step(0)
        code: Code = net.bottleneck(h, c, num_samples=1, step=step)
        return code.rate.shape[-1] > 0

    @torch.inference_mode()
    def encode_examples(self, examples: Examples) -> Tensor:
        """Returns the codes `(N, D)` of a data set, posterior means."""
        codes = []
        for start in range(0, len(examples), CHUNK_ITEMS):
            y, mask, labels = self.to_device(examples, start, start + CHUNK_ITEMS)
            known = {name: labels[name] for name in self.autoencoder.condition if name in labels}
            codes.append(flatten(self.autoencoder.encode(y, self.condition(known, len(y)), mask)))
        return torch.cat(codes)

    @torch.inference_mode()
    def decode_tensor(
        self,
        z: Tensor,
        labels: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        *,
        mask: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Returns the prepared values `(N, *shape)` of codes `(N, D)`, on the CPU.

        Args:
            z: the codes.
            labels: what they are made under.
            temperature: above 0, values are drawn.
            mask: which positions are real, `(N, T)`; None: those that the labels say.
            seed: of the draws.

        Raises:
            UsageError: the codes have another dimension, or are no classes where they should be.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise UsageError(
                f"codes of shape {tuple(z.shape)} do not fit this model; it takes (N, {self.z_dim})"
            )
        num = self.autoencoder.num_classes
        if num and not bool(((z == z.long()) & (z >= 0) & (z < num)).all()):
            raise UsageError(f"codes of this model are whole numbers from 0 to {num - 1}")
        z, columns = z.long() if num else z.float(), self.columns(labels, len(z))
        mask = self.modality.mask(columns, len(z)) if mask is None else mask
        c, source = self.condition(columns, len(z)), self.noise_source(seed, "decode")
        out = []
        for start in range(0, len(z), CHUNK_ITEMS):
            some = slice(start, start + CHUNK_ITEMS)
            values = self.autoencoder.decode(
                self.unflatten(z[some].to(self.device)),
                c[some],
                source.step(start),
                mask=None if mask is None else mask[some].to(self.device),
                temperature=temperature,
            )
            out.append(values.cpu())
        return torch.cat(out)

    @torch.inference_mode()
    def sample_codes(
        self,
        num: int,
        labels: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws new codes `(num, D)` from the prior."""
        step, c = self.noise_source(seed, "sample").step(0), self.condition(labels, num)
        return flatten(self.autoencoder.sample(num, c, temperature=temperature, step=step))

    @torch.inference_mode()
    def prior_transform(self, noise: Tensor, labels: Mapping[str, Any] | None = None) -> Tensor:
        """Returns the codes `(N, D)` that the prior makes of standard normal noise `(N, D)`.

        A lattice in the noise is a lattice of equal probability in the code, whatever the prior's
        shape; for a standard normal prior the two are the same.

        Raises:
            UsageError: the prior does not make its codes of D standard normal numbers.
        """
        waiting = noise.to(self.device)
        self.need_real_codes()

        def hand_out(shape: Shape) -> Tensor:
            nonlocal waiting
            size = math.prod(shape[1:])
            if waiting.shape[1] < size:
                raise UsageError(f"prior {self.recipe.prior.name!r} has no such coordinates")
            given, waiting = waiting[:, :size], waiting[:, size:]
            return given.reshape(shape)

        c = self.condition(labels, len(noise))
        step = StepContext(torch.ones((), device=self.device), hand_out, hand_out)
        return flatten(self.autoencoder.sample(len(noise), c, temperature=1.0, step=step))

    @torch.inference_mode()
    def features(self, z: Tensor, labels: Mapping[str, Any] | None = None) -> Tensor:
        """Returns what the decoder reads of codes `(N, D)`, reals `(N, F)`; often the same."""
        c = self.condition(labels, len(z))
        return flatten(self.autoencoder.features(self.unflatten(z.to(self.device)), c))

    def unflatten(self, z: Tensor) -> tuple[Tensor, ...]:
        """Returns the levels `(N, *z_shapes[i])` of flat codes `(N, D)`."""
        return unflatten(z, self.z_shapes)

    def noise_source(self, seed: int, stream: str) -> Source:
        """Returns where noise on the model's device comes from."""
        return Source(seed, stream, self.device)

    def to_device(self, examples: Examples, start: int, stop: int) -> Batch:
        """Returns some prepared examples, on the model's device."""
        batch = examples.at(range(start, min(stop, len(examples)))).to(self.device)
        return batch._replace(y=self.modality.prepare(batch.y))

    def need_real_codes(self) -> None:
        """Raises UsageError where codes are integers, which nobody can walk between."""
        if self.autoencoder.num_classes:
            raise UsageError(
                f"codes of bottleneck {self.recipe.bottleneck.name!r} are integers, between which "
                f"nothing lies: choose a model with real codes"
            )

    def condition(self, labels: Mapping[str, Any] | None, num: int) -> Tensor:
        """Returns what parts are conditioned on, `(num, cond_dim)`.

        Raises:
            UsageError: a label is missing or unknown, or is no class that the model knows.
        """
        needed, columns = self.autoencoder.condition, self.columns(labels, num)
        if missing := [name for name in needed if name not in columns]:
            raise UsageError(
                f"this model is conditioned on {missing[0]!r}, which is neither given nor known "
                f"from the file; as a label it is {_allowed(needed[missing[0]])}"
            )
        return self.autoencoder.embed(columns, like=torch.empty(num, 0, device=self.device))

    def columns(self, labels: Mapping[str, Any] | None, num: int) -> dict[str, Tensor]:
        """Returns labels as columns `(num,)`; one value stands for all.

        Raises:
            UsageError: a label is unknown, or is no class that the model knows.
        """
        columns = {}
        for name, value in (labels or {}).items():
            if name not in self.modality.labels:
                raise UsageError(
                    f"there is no label {name!r}: {did_you_mean(name, self.modality.labels)}"
                )
            column = torch.as_tensor(value, device=self.device).expand(num)
            classes = self.modality.labels[name]
            known = (column >= 0) & (column < classes) & (column == column.floor())
            if classes and not bool(known.all()):
                raise UsageError(f"label {name!r} is {_allowed(classes)}, not {value}")
            columns[name] = column
        return columns


def _allowed(classes: int) -> str:
    """What a label may be, in words."""
    return f"a class from 0 to {classes - 1}" if classes else "a real value"
