"""A trained model: items in, items out.

    model = ae_toolkit.load("mnist-2d")
    model.reconstruct(items); model.sample(16); model.interpolate(a, b, steps=9)

What works on tensors is in `codec`; `model.autoencoder` is the same model as a module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import Example, Terms, label_row
from ae_toolkit.data.examples import Examples
from ae_toolkit.errors import UsageError, wrap_plugin_errors
from ae_toolkit.inference import latent
from ae_toolkit.inference.codec import CHUNK_ITEMS, Codec
from ae_toolkit.inference.tiling import apply_tiled
from ae_toolkit.modality import Modality, describe, examples_of
from ae_toolkit.runs.checkpoint import Config

CODE_PATHS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "lerp": latent.lerp,
    "slerp": latent.slerp,
}


class Model(Codec):
    """A model in use, for items.

    Args:
        autoencoder: the tensors' side.
        modality: the items' side.
        config: what it was built from.
        folder: where its files lie.
    """

    def __init__(
        self, autoencoder: Autoencoder, *, modality: Modality, config: Config, folder: Path
    ):
        super().__init__(autoencoder, modality=modality)
        self.config, self.folder = config, folder

    def encode(self, items: Sequence[Any], labels: Mapping[str, Any] | None = None) -> Tensor:
        """Items to codes `(N, D)`, posterior means with all levels flattened.

        An item of several parts has a row for each, in order.
        """
        if not items:
            dtype = torch.int64 if self.autoencoder.num_classes else torch.float32
            return torch.empty(0, self.z_dim, dtype=dtype)
        return self.encode_examples(self.examples(items, labels))

    def decode(
        self,
        z: Tensor,
        labels: Mapping[str, Any] | None = None,
        *,
        counts: Sequence[int] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Any]:
        """Codes `(N, D)` to items.

        Args:
            z: the codes.
            labels: what they are made under.
            counts: the first `counts[0]` codes make the first item; None: one makes one.
            temperature: above 0 elements are drawn, not guessed.
            seed: of the draws.

        Raises:
            UsageError: the codes have another dimension, or items of this data type have one each.
        """
        if counts and max(counts) > 1 and type(self.modality).join is Modality.join:
            raise UsageError(
                f"an item of {describe(self.modality)} has one code, not {max(counts)}"
            )
        columns = self.columns(labels, len(z))
        values = self.decode_tensor(z, columns, temperature, seed=seed)
        return self._join(values, counts or [1] * len(z), columns)

    def reconstruct(
        self,
        items: Sequence[Any],
        labels: Mapping[str, Any] | None = None,
        *,
        progress: bool = False,
    ) -> list[Any]:
        """Items through the code and back, each like its original in size, tempo and so on.

        A model that learned to undo a corruption undoes it: items are its input as they are. A
        convolutional model takes each at its own size, large ones in pieces.
        """
        net = self.autoencoder
        if net.any_size or net.in_shape != net.shape:
            return [
                self.modality.from_tensor(
                    self.reconstruct_any_size(item, labels, progress=progress), like=item
                )
                for item in items
            ]
        if not items:
            return []
        examples, counts = self.segments_of(items, labels)
        codes = self.encode_examples(examples)
        values = self.decode_tensor(codes, examples.labels, mask=examples.mask)
        return self._join(values, counts, examples.labels, likes=items)

    def terms(
        self, items: Sequence[Any], labels: Mapping[str, Any] | None = None, *, seed: int = 0
    ) -> Terms:
        """What the loss of each example of items is made of, by one sample of its code.

        Args:
            items: each of one segment or several, which are N examples in all.
            labels: the condition, where items do not carry it.
            seed: of the samples, and of what the model's corruption draws.

        Returns:
            Distortion `(1, N)`, rate `(1, N, D)` and penalty `(N,)` on the CPU; in nats where the
            likelihood is a density.
        """
        return self._terms(items, labels, seed)[0]

    def score(
        self, items: Sequence[Any], labels: Mapping[str, Any] | None = None, *, seed: int = 0
    ) -> Tensor:
        """Distortion and rate of each item `(len(items),)`: high where it is unlike the data.

        Where the likelihood is a density this is the negative ELBO, in nats. Arguments are those of
        `terms`.
        """
        terms, counts = self._terms(items, labels, seed)
        each = (terms.distortion + terms.rate.sum(-1))[0]
        return torch.stack([segments.sum() for segments in each.split(counts)])

    @torch.inference_mode()
    def _terms(
        self, items: Sequence[Any], labels: Mapping[str, Any] | None, seed: int
    ) -> tuple[Terms, list[int]]:
        if not items:
            raise UsageError("there are no items to judge")
        examples, counts = self.segments_of(items, labels, as_targets=True)
        self.condition(examples.labels, len(examples))
        source, found = self.noise_source(seed, "terms"), []
        for start in range(0, len(examples), CHUNK_ITEMS):
            batch = self.to_device(examples, start, start + CHUNK_ITEMS)
            found.append(self.autoencoder(batch, source.step(start)).terms[:3])
        columns = zip(*found, strict=True)
        axes = (1, 1, 0)  # of the examples
        distortion, rate, penalty = (
            torch.cat(c, a).cpu() for c, a in zip(columns, axes, strict=True)
        )
        return Terms(distortion, rate, penalty), counts

    def sample(
        self,
        num: int,
        labels: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        likelihood_temperature: float = 0.0,
    ) -> list[Any]:
        """New items from the prior.

        Args:
            num: how many.
            labels: the condition, a value for all or one for each.
            seed: of all draws.
            temperature: scales the prior's spread, from which codes are drawn.
            likelihood_temperature: scales the likelihood's, from which elements are drawn; at 0
                they are its best single guess.
        """
        z = self.sample_codes(num, labels, seed=seed, temperature=temperature)
        return self.decode(z, labels, temperature=likelihood_temperature, seed=seed)

    def interpolate(
        self,
        a: Any,
        b: Any,
        *,
        steps: int = 9,
        path: str = "slerp",
        labels: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """`steps` items from a to b, the reconstructions of both included.

        Items of several parts are walked part by part: where one has more than the other, the
        other begins again, and the items on the way have numbers of parts that lie between. Each
        resembles the nearer end, and all are made under the condition of a.

        Raises:
            UsageError: there are fewer than two steps, or the path is neither lerp nor slerp.
        """
        with wrap_plugin_errors(f"{describe(self.modality)} cannot align two items"):
            a, b = self.modality.align(a, b)
        codes, condition = self.interpolate_codes(a, b, steps=steps, path=path, labels=labels)
        made = []
        for i, z in enumerate(codes):
            columns = {name: column[:1].expand(len(z)) for name, column in condition.items()}
            like = a if 2 * i < steps - 1 else b
            made += self._join(self.decode_tensor(z, columns), [len(z)], columns, likes=[like])
        return made

    def interpolate_codes(
        self,
        a: Any,
        b: Any,
        *,
        steps: int = 9,
        path: str = "slerp",
        labels: Mapping[str, Any] | None = None,
    ) -> tuple[list[Tensor], Mapping[str, Tensor]]:
        """The codes between two aligned items, `(parts, D)` for each step, and the labels of a."""
        if steps < 2:
            raise UsageError(f"an interpolation needs at least 2 steps, not {steps}")
        self.need_real_codes()
        if path not in CODE_PATHS:
            raise UsageError(f"path {path!r}: choose from {', '.join(CODE_PATHS)}")
        ends = [self.examples([item], labels) for item in (a, b)]
        first, last = (self.encode_examples(end).cpu() for end in ends)
        arcs = torch.stack(
            [
                CODE_PATHS[path](first[i % len(first)], last[i % len(last)], steps)
                for i in range(max(len(first), len(last)))
            ],
            1,
        )  # (steps, parts, D)
        parts = [len(first) * (steps - 1 - i) + len(last) * i for i in range(steps)]
        codes = [arc[: math.ceil(num / (steps - 1))] for arc, num in zip(arcs, parts, strict=True)]
        return codes, ends[0].labels

    @torch.inference_mode()
    def reconstruct_any_size(
        self, item: Any, labels: Mapping[str, Any] | None = None, *, progress: bool = False
    ) -> Tensor:
        """One item, as the input at its own size, to prepared values `(*shape)` on the CPU."""
        net, step = self.autoencoder, self.noise_source(0, "decode").step(0)
        x = self.modality.to_input(item, None if net.any_size else net.in_shape)
        x = self.modality.prepare(x[None])
        known = {**self.modality.to_tensor(item).labels, **(labels or {})} if net.condition else {}
        c = self.condition(known, 1)

        def run(piece: Tensor) -> Tensor:
            return net.translate(piece.to(self.device), c, step).cpu()

        return (apply_tiled(run, x, progress=progress) if net.any_size else run(x))[0]

    def examples(self, items: Sequence[Any], labels: Mapping[str, Any] | None = None) -> Examples:
        """Items as a data set. Labels given here win over those that the items carry.

        A label is one value for all, or has one for each item.
        """
        return self.segments_of(items, labels)[0]

    def segments_of(
        self,
        items: Sequence[Any],
        labels: Mapping[str, Any] | None = None,
        *,
        as_targets: bool = False,
    ) -> tuple[Examples, list[int]]:
        """Items as a data set, and how many segments each of them has.

        Args:
            items: of a user's.
            labels: win over those that the items carry.
            as_targets: give them as what the decoder aims at, not as what the encoder sees.
        """
        net, modality = self.autoencoder, self.modality
        if as_targets or net.in_shape == net.shape:
            parts = [examples_of(item, modality) for item in items]
        else:  # the encoder takes them as smaller ones
            parts = [[Example(modality.to_input(item, net.in_shape))] for item in items]
        counts = [len(mine) for mine in parts]
        length = (net.shape if as_targets else net.in_shape)[0]
        rows = Examples.stack([part for mine in parts for part in mine], length=length)
        repeats = torch.tensor(counts, device=self.device)
        given = {
            name: column.repeat_interleave(repeats)
            for name, column in self.columns(labels, len(items)).items()
        }
        return Examples(rows.y, rows.mask, {**rows.labels, **given}, rows.groups), counts

    def _join(
        self,
        values: Tensor,
        counts: Sequence[int],
        columns: Mapping[str, Tensor],
        *,
        likes: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Prepared parts `(N, *shape)` as items, each made of the next `counts[i]` parts."""
        made, at = [], 0
        for like, count in zip(likes or [None] * len(counts), counts, strict=True):
            parts, known = list(values[at : at + count]), label_row(columns, at)
            made.append(
                self.modality.from_tensor(parts[0], labels=known)
                if like is None and count == 1
                else self.modality.join(parts, like=like, labels=known)
            )
            at += count
        return made
