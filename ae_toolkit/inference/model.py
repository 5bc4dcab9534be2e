"""A trained model: items in, items out.

    model = ae_toolkit.load("mnist-2d")
    model.reconstruct(items); model.sample(16); model.interpolate(a, b, steps=9)

`model.autoencoder` is the same model for tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.contracts import (
    Batch,
    Code,
    Example,
    Shape,
    StepContext,
    flatten,
    label_row,
    unflatten,
)
from ae_toolkit.data.examples import Examples
from ae_toolkit.device import pick_device
from ae_toolkit.errors import PluginError, RunError, UsageError, did_you_mean, wrap_plugin_errors
from ae_toolkit.inference import latent, zoo
from ae_toolkit.inference.tiling import apply_tiled
from ae_toolkit.modality import Modality, describe, examples_of
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import Recipe
from ae_toolkit.runs import checkpoint
from ae_toolkit.runs.checkpoint import Config
from ae_toolkit.training import memory

CHUNK_ITEMS = 500  #: items that are decoded at once
MAX_EXAMPLE_NUMBERS = 1 << 26  #: of a model that is loaded

CODE_PATHS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "lerp": latent.lerp,
    "slerp": latent.slerp,
}


def load(model: str | Path, *, device: str = "cpu") -> Model:
    """Loads a bundled name, a run directory (its best checkpoint), a model folder or a hub id.

    Raises:
        UsageError: there is no such model or device.
        RunError: the model is broken, or needs a plugin that is not installed.
    """
    folder = zoo.resolve(str(model))
    config = checkpoint.load_config(folder)
    modality = config.recipe.make("modality")
    with torch.random.fork_rng(devices=[]):  # random weights, which are replaced at once
        _need_fit(config.recipe, modality, folder)
        with ThreadPoolExecutor(1) as thread:  # reads and checks them meanwhile
            reading = thread.submit(checkpoint.load_weights, folder)
            autoencoder = Autoencoder(config.recipe, modality=modality)
            weights = reading.result()
    parameters = dict(autoencoder.named_parameters())
    for name, mine in autoencoder.state_dict().items():
        if weights[name].is_floating_point() != mine.is_floating_point():
            raise _misfit(folder, name)
        weights[name] = weights[name].to(mine.dtype)
        if not checkpoint.is_sound(weights[name], finite=name in parameters):
            raise RunError(
                f"{folder / checkpoint.WEIGHTS_FILE}: {name!r} is not finite; train it again"
            )
    autoencoder.load_state_dict(weights, assign=True)
    autoencoder.to(pick_device(device)).to(memory_format=torch.channels_last).eval()
    return Model(autoencoder.requires_grad_(False), modality=modality, config=config, folder=folder)


def _need_fit(recipe: Recipe, modality: Modality, folder: Path) -> None:
    """Compares the shapes of weights with those of a recipe, before memory is taken for any.

    Raises:
        UsageError: the recipe cannot be built.
        RunError: they are not the same, or an example of the recipe is too large.
    """
    if math.prod(modality.shape) > MAX_EXAMPLE_NUMBERS:
        raise RunError(
            f"{folder}: its examples have the shape {tuple(modality.shape)}, and more than "
            f"{MAX_EXAMPLE_NUMBERS:,} numbers are refused"
        )
    shapes = checkpoint.shapes(folder)
    with memory.bounded(shapes.values(), f"{folder}: the weights do not fit the recipe"):
        try:
            with memory.Planning():
                planned = Autoencoder(recipe, modality=modality)
        except PluginError:  # a part that calculates with its weights
            planned = Autoencoder(recipe, modality=modality)
    expected = {name: tuple(tensor.shape) for name, tensor in planned.state_dict().items()}
    for name in sorted({*expected, *shapes}):
        if expected.get(name) != shapes.get(name):
            raise _misfit(folder, name)


def _misfit(folder: Path, name: str) -> RunError:
    return RunError(f"{folder}: the weights do not fit the recipe, see {name!r}")


class Model:
    """A model in use: never trained, never corrupting what it is given.

    Args:
        autoencoder: the tensors' side.
        modality: the items' side.
        config: what it was built from.
        folder: where its files lie.
    """

    def __init__(
        self, autoencoder: Autoencoder, *, modality: Modality, config: Config, folder: Path
    ):
        self.autoencoder = autoencoder
        self.modality = modality
        self.config = config
        self.recipe = config.recipe
        self.folder = folder
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
        net = self.autoencoder
        like = torch.zeros(1, device=self.device)
        c = self._condition(self._columns(dict.fromkeys(net.condition, 0), 1), like)
        h = tuple(like.new_zeros(1, *shape) for shape in net.encoder.out_shapes)
        code: Code = net.bottleneck(h, c, num_samples=1, step=self.noise(0, "rate").step(0))
        return code.rate.shape[-1] > 0

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
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Any]:
        """Codes `(N, D)` to items; above temperature 0 elements are drawn, not guessed.

        Raises:
            UsageError: the codes have another dimension.
        """
        columns = self._columns(labels, len(z))
        return [
            self.modality.from_tensor(y, labels=label_row(columns, i))
            for i, y in enumerate(self.decode_tensor(z, columns, temperature, seed=seed))
        ]

    def decode_joined(
        self, z: Tensor, counts: Sequence[int], labels: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Codes `(N, D)` to items of several parts: the first `counts[0]` rows make the first one.

        Raises:
            UsageError: the codes have another dimension, or items of this data type have one each.
        """
        if max(counts) > 1 and type(self.modality).join is Modality.join:
            raise UsageError(
                f"an item of {describe(self.modality)} has one code, not {max(counts)}"
            )
        columns = self._columns(labels, len(z))
        return self._join(self.decode_tensor(z, columns), counts, columns, likes=None)

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
            rows = (self.restore(item, labels, progress=progress) for item in items)
            return [
                self.modality.from_tensor(y, like=item) for y, item in zip(rows, items, strict=True)
            ]
        if not items:
            return []
        examples, counts = self._examples(items, labels)
        decoded = self.decode_tensor(
            self.encode_examples(examples), examples.labels, mask=examples.mask
        )
        return self._join(decoded, counts, examples.labels, likes=items)

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
        codes, condition = self.walk(a, b, steps=steps, path=path, labels=labels)
        made = []
        for i, z in enumerate(codes):
            columns = {name: column[:1].expand(len(z)) for name, column in condition.items()}
            parts = list(self.decode_tensor(z, columns))
            like = a if 2 * i < steps - 1 else b
            made.append(self.modality.join(parts, like=like, labels=label_row(condition, 0)))
        return made

    # Below: the same, nearer to tensors, for commands and figures.

    def walk(
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
        arcs = [
            CODE_PATHS[path](first[i % len(first)], last[i % len(last)], steps)
            for i in range(max(len(first), len(last)))
        ]
        codes = []
        for i in range(steps):
            parts = -(-(len(first) * (steps - 1 - i) + len(last) * i) // (steps - 1))  # rounded up
            codes.append(torch.stack([arc[i] for arc in arcs[:parts]]))
        return codes, ends[0].labels

    def examples(self, items: Sequence[Any], labels: Mapping[str, Any] | None = None) -> Examples:
        """Items as a data set. Labels given here win over those that the items carry.

        A label is one value for all, or has one for each item.
        """
        return self._examples(items, labels)[0]

    @torch.inference_mode()
    def restore(
        self, item: Any, labels: Mapping[str, Any] | None = None, *, progress: bool = False
    ) -> Tensor:
        """One item, as the input at its own size, to prepared values `(*shape)` on the CPU."""
        net, step = self.autoencoder, self.noise(0, "decode").step(0)
        x = self.modality.to_input(item, None if net.any_size else net.in_shape)
        x = self.modality.prepare(x[None])
        known = {**self.modality.to_tensor(item).labels, **(labels or {})} if net.condition else {}
        c = self._condition(self._columns(known, 1), x.to(self.device))

        def run(piece: Tensor) -> Tensor:
            return net.translate(piece.to(self.device), c, step).cpu()

        return (apply_tiled(run, x, progress=progress) if net.any_size else run(x))[0]

    @torch.inference_mode()
    def encode_examples(self, examples: Examples) -> Tensor:
        """A data set to codes `(N, D)`."""
        codes = [
            flatten(self.autoencoder.encode(x, c, batch.mask))
            for x, c, batch in self._inputs(examples)
        ]
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
        """Codes `(N, D)` to prepared values `(N, *shape)`, on the CPU.

        Args:
            z: the codes.
            labels: a value for all, or `(N,)` each.
            temperature: above 0, values are drawn.
            mask: which positions are real, `(N, T)`; None: those that the labels say.
            seed: of the draws.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise UsageError(
                f"codes of shape {tuple(z.shape)} do not fit this model; it takes (N, {self.z_dim})"
            )
        if not (num := self.autoencoder.num_classes):
            z = z.float()
        else:
            z, given = z.long(), z
            if len(z) and not bool(((z == given) & (z >= 0) & (z < num)).all()):
                raise UsageError(f"codes of this model are whole numbers from 0 to {num - 1}")
        columns = self._columns(labels, len(z))
        out = []
        for start in range(0, len(z), CHUNK_ITEMS):
            rows = z[start : start + CHUNK_ITEMS].to(self.device)
            some = {name: column[start : start + CHUNK_ITEMS] for name, column in columns.items()}
            if mask is None:
                real = self.modality.mask(some, len(rows))
            else:
                real = mask[start : start + CHUNK_ITEMS]
            values = self.autoencoder.decode(
                self.levels(rows),
                self._condition(some, rows),
                self.noise(seed, "decode").step(start),
                mask=None if real is None else real.to(self.device),
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
        """New codes `(num, D)` from the prior."""
        like = torch.empty(num, 0, device=self.device)
        c = self._condition(self._columns(labels, num), like)
        step = self.noise(seed, "sample").step(0)
        return flatten(self.autoencoder.sample(num, c, temperature=temperature, step=step))

    @torch.inference_mode()
    def push(self, noise: Tensor, labels: Mapping[str, Any] | None = None) -> Tensor:
        """Standard normal noise `(N, D)` to the codes `(N, D)` that the prior makes of it.

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

        c = self._condition(self._columns(labels, len(noise)), waiting)
        step = StepContext(torch.ones((), device=self.device), hand_out, hand_out)
        return flatten(self.autoencoder.sample(len(noise), c, temperature=1.0, step=step))

    @torch.inference_mode()
    def features(self, z: Tensor, labels: Mapping[str, Any] | None = None) -> Tensor:
        """Codes `(N, D)` to what the decoder reads, real numbers `(N, F)`; often the same."""
        z = z.to(self.device)
        c = self._condition(self._columns(labels, len(z)), z.float())
        return flatten(self.autoencoder.features(self.levels(z), c))

    def levels(self, z: Tensor) -> tuple[Tensor, ...]:
        """Flat codes `(N, D)` to levels `(N, *z_shapes[i])`."""
        return unflatten(z, self.z_shapes)

    def noise(self, seed: int, stream: str) -> Source:
        return Source(seed, stream, self.device)

    def to_device(self, examples: Examples, start: int, stop: int) -> Batch:
        """Some prepared examples on the model's device."""
        batch = examples.at(range(start, min(stop, len(examples)))).to(self.device)
        return batch._replace(y=self.modality.prepare(batch.y))

    def need_real_codes(self) -> None:
        """Raises UsageError where codes are integers, which nobody can walk between."""
        if self.autoencoder.num_classes:
            raise UsageError(
                f"codes of bottleneck {self.recipe.bottleneck.name!r} are integers, between which "
                f"nothing lies: choose a model with real codes"
            )

    def _inputs(self, examples: Examples) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        for start in range(0, len(examples), CHUNK_ITEMS):
            batch = self.to_device(examples, start, start + CHUNK_ITEMS)
            yield batch.y, self._condition(batch.labels, batch.y), batch

    def _examples(
        self, items: Sequence[Any], labels: Mapping[str, Any] | None
    ) -> tuple[Examples, list[int]]:
        """Items as a data set, and how many parts each of them has."""
        parts = [self._parts(item) for item in items]
        counts = [len(mine) for mine in parts]
        rows = Examples.stack(
            [part for mine in parts for part in mine], length=self.autoencoder.in_shape[0]
        )
        repeats = torch.tensor(counts, device=self.device)
        given = {
            name: column.repeat_interleave(repeats)
            for name, column in self._columns(labels, len(items)).items()
        }
        return Examples(rows.y, rows.mask, {**rows.labels, **given}, rows.groups), counts

    def _join(
        self,
        decoded: Tensor,
        counts: Sequence[int],
        columns: Mapping[str, Tensor],
        *,
        likes: Sequence[Any] | None,
    ) -> list[Any]:
        """Prepared parts `(N, *shape)` as items, each made of the next `counts[i]` parts."""
        made, at = [], 0
        for like, count in zip(likes or [None] * len(counts), counts, strict=True):
            parts, known = list(decoded[at : at + count]), label_row(columns, at)
            made.append(
                self.modality.from_tensor(parts[0], labels=known)
                if like is None and count == 1
                else self.modality.join(parts, like=like, labels=known)
            )
            at += count
        return made

    def _parts(self, item: Any) -> list[Example]:
        """An item as the encoder takes it, which may be smaller than the target."""
        net = self.autoencoder
        if net.in_shape == net.shape:
            return examples_of(item, self.modality)
        return [Example(self.modality.to_input(item, net.in_shape), {}, "")]

    def _condition(self, labels: Mapping[str, Tensor], like: Tensor) -> Tensor:
        needed = self.autoencoder.condition
        if missing := [name for name in needed if name not in labels]:
            raise UsageError(
                f"this model is conditioned on {missing[0]!r}, which is neither given nor known "
                f"from the file; as a label it is {_allowed(needed[missing[0]])}"
            )
        return self.autoencoder.embed({name: labels[name] for name in needed}, like=like)

    def _columns(self, labels: Mapping[str, Any] | None, num: int) -> dict[str, Tensor]:
        """Labels as columns `(num,)`; one value stands for all.

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
