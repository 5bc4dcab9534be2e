"""The contract of a data type: what an item is, how it is read, tensorised, written and judged.

This is the one class that a plugin author inherits from. Four methods must be written: `read`,
`to_tensor`, `from_tensor` and `write`; the others have defaults.
Below it is how the toolkit calls a data type: whatever a stranger's code raises there becomes one
sentence that names the file and the package.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ae_toolkit.contracts import Example, Shape, StepContext
from ae_toolkit.errors import PluginError, UsageError, wrap_plugin_errors
from ae_toolkit.files import check_input
from ae_toolkit.registry import modalities

#: What a method was called in an earlier version: what it is called now.
FORMER_METHODS = {"parts": "segments"}


class Modality(ABC):
    """One data type. The constructor fixes every attribute below; data never does.

    Attributes:
        shape: of the longest `y`, without the batch axis.
        num_classes: how many values an element takes; 0 where elements are real numbers.
        labels: name -> number of classes (0: a real value), what may serve as a condition.
        suffixes: the file name endings that `read` understands, the first is what `write` writes.
    """

    shape: Shape
    num_classes: int = 0
    labels: Mapping[str, int] = MappingProxyType({})
    suffixes: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **settings: Any):
        """Refuses methods that the toolkit could not call, before it does."""
        super().__init_subclass__(**settings)
        for former, name in FORMER_METHODS.items():
            if former in vars(cls) and name not in vars(cls):
                setattr(cls, name, vars(cls)[former])
        for name, method in list(vars(cls).items()):
            ours = vars(Modality).get(name)
            if not name.startswith("_") and inspect.isfunction(ours) and inspect.isfunction(method):
                _check_call(cls.__name__, method, ours)

    @abstractmethod
    def read(self, path: Path) -> Iterator[Any]:
        """Yields the items of one file.

        Raises:
            RunError: the file cannot be understood; the sentence says why. Anything else that this
                raises is told as a fault of the data type, with the file's name.
        """

    @abstractmethod
    def to_tensor(self, item: Any) -> Example:
        """Turns an item into an example, in the storage dtype; the caller sets the group.

        Its `y` may be shorter than `shape` along the first axis: then it is padded with zeros, and
        a mask says where it is real.
        """

    @abstractmethod
    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> Any:
        """Turns `(*shape)`, prepared, back into an item.

        Args:
            y: a model's output.
            like: an original to resemble, in size or tempo and so on.
            labels: what `y` was made under, where that is known.
        """

    @abstractmethod
    def write(self, items: Sequence[Any], path: Path) -> None:
        """Writes items into one file, side by side or one after the other."""

    def segments(self, item: Any) -> list[Example]:
        """An item as the examples that it consists of, in order: by default, one.

        A data type whose items are longer than `shape` cuts them here, and puts them together in
        `join`; everything that a model does to an item it then does segment by segment.
        """
        return [self.to_tensor(item)]

    def parts(self, item: Any) -> list[Example]:
        """The former name of `segments`; a data type that overrides it goes on working."""
        if type(self).segments is type(self).parts:  # which a subclass has overridden
            return Modality.segments(self, item)
        return self.segments(item)

    def join(
        self,
        segments: Sequence[Tensor],
        *,
        like: Any = None,
        labels: Mapping[str, float] | None = None,
    ) -> Any:
        """Turns prepared segments `(*shape)` back into one item, as `from_tensor` does one.

        A data type that overrides `segments` overrides this too.
        """
        (only,) = segments
        return self.from_tensor(only, like=like, labels=labels)

    def training_examples(self, item: Any) -> Iterable[Example]:
        """What a training makes of an item: by default its segments, but they may overlap."""
        return self.segments(item)

    def align(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Brings two items into one form before a walk from the one to the other.

        What conditions a model must agree afterwards.
        """
        return a, b

    def mask(self, labels: Mapping[str, Tensor], num: int) -> Tensor | None:
        """Which positions of an item that is made from a code are real, `(num, T)`; None: all.

        The length of what is made anew can follow from its labels only, `(num,)` each, which may
        lie on any device.
        """
        return None

    def fingerprints(self, y: Tensor) -> list[bytes]:
        """What makes examples `(N, *shape)` the same as others, in the storage dtype.

        What a folder's test split has in common with its training split, by this measure, is left
        out of it (`data.folder.split_of`).
        """
        return [row.tobytes() for row in y.numpy()]

    def to_input(self, item: Any, shape: Shape | None = None) -> Tensor:
        """Turns an item into what a model is given, in the storage dtype.

        Args:
            item: of a user's.
            shape: to bring it to; None: the item's own, for a model that works on any size.

        Raises:
            UsageError: this data type has one shape only (the default).
        """
        if shape not in (None, self.shape):
            raise UsageError(f"this data type has no items of shape {shape}, only of {self.shape}")
        return self.to_tensor(item).y

    def prepare(self, y: Tensor) -> Tensor:
        """`(B, *shape)` in the storage dtype to what the model sees, on the device.

        By default, classes as integers and real numbers in single precision, unscaled.
        """
        return y.long() if self.num_classes else y.float()

    def statistics(self, examples: Any) -> dict[str, Any]:
        """What a training must know of its data before: more arguments of the constructor.

        Means, scales, a vocabulary: `{"mean": 0.13}` makes the recipe that is trained, and kept in
        the run, one whose data type has `mean=0.13`. What the recipe already gives is kept. What
        `to_tensor` makes must not depend on it, nor `shape`; `num_classes`, `prepare` and
        `from_tensor` may.

        Args:
            examples: to learn from, a `data.examples.Examples`, in the storage dtype.

        Returns:
            Values that JSON can hold, by name; none by default.
        """
        return {}

    def augment(self, y: Tensor, step: StepContext) -> Tensor:
        """Varies prepared targets, in training only."""
        return y

    def metrics(self, y: Tensor, y_hat: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Judges reconstructions, `(B,)` per name, by the field's own measures.

        By default, the share of classes that are right, or the mean squared error of real numbers;
        where there is a mask, of elements at real positions.
        """
        found = (y == y_hat).float() if self.num_classes else (y.float() - y_hat.float()).square()
        real = torch.ones_like(found)
        if mask is not None:
            real = real * mask.reshape(mask.shape + (1,) * (y.dim() - mask.dim()))
        value = (found * real).flatten(1).sum(1) / real.flatten(1).sum(1)
        return {"accuracy" if self.num_classes else "mse": value}

    def baselines(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What simple methods make of a corrupted input: name -> a guess `(B, *shape)` of `y`.

        A model is reported beside them. By default, the input itself where it differs from `y`.
        """
        return {} if x.shape != y.shape or x.equal(y) else {"input": x}

    def judge(self, y: Tensor) -> tuple[Tensor, Mapping[str, Tensor]] | None:
        """What a trained eye sees in prepared values `(B, *shape)`, to compare samples with data.

        Returns:
            Features `(B, F)` in which what looks alike is near, and for every label that it can
            read the logits of its classes `(B, K)`; None, the default, where there is no such eye.
        """
        return None

    def figure(self, rows: Mapping[str, Sequence[Any]], path: Path) -> None:
        """Draws named rows of items into one PNG, for people to look at."""
        from ae_toolkit.figures import draw_rows

        tensors = {
            name: [self.prepare(self.to_tensor(item).y[None])[0] for item in items]
            for name, items in rows.items()
        }
        draw_rows(tensors, path)


def _check_call(owner: str, method: FunctionType, ours: FunctionType) -> None:
    """Checks that a method can be called as the one that it overrides is."""
    parameters = inspect.signature(ours).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    others = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    try:
        inspect.signature(method).bind(*others, **dict.fromkeys(keywords))
    except TypeError as error:
        call = ", ".join([*others[1:], *(f"{name}=…" for name in keywords)])
        raise TypeError(f"{owner}.{ours.__name__}({call}): {error}") from None


def check_declared(modality: Modality) -> None:
    """Checks what a constructor has fixed.

    Raises:
        RunError: the data type says no shape, or what it says has a wrong form.
    """
    shape, labels = getattr(modality, "shape", None), modality.labels
    suffixes = getattr(modality, "suffixes", None)

    def counts(values: Any, *, least: int) -> bool:
        return all(isinstance(value, int) and value >= least for value in values)

    needs = {
        f"a shape of positive numbers, not {shape}": isinstance(shape, tuple)
        and bool(shape)
        and counts(shape, least=1),
        f"a whole number as num_classes, not {modality.num_classes!r}": counts(
            [modality.num_classes], least=0
        ),
        f"labels with their numbers of classes, not {labels!r}": isinstance(labels, Mapping)
        and counts(labels.values(), least=0),
        f"suffixes such as ('.csv',), not {suffixes!r}": isinstance(suffixes, tuple)
        and bool(suffixes),
    }
    for what, met in needs.items():
        if not met:
            raise PluginError(f"{describe(modality)} must have {what}")


def read_items(path: Path, modality: Modality) -> list[Any]:
    """The items of one file.

    Raises:
        RunError: it cannot be understood.
    """
    return [*each_item(path, modality)]


def each_item(path: Path, modality: Modality) -> Iterator[Any]:
    """The items of one file, one at a time.

    Raises:
        UsageError: there is no such file.
        RunError: it is no regular file, or cannot be understood.
    """
    check_input(path)
    who, end = f"{path}: {describe(modality)} cannot read it", object()
    with wrap_plugin_errors(who):
        items = iter(modality.read(path))
    while True:
        with wrap_plugin_errors(who):
            item = next(items, end)
        if item is end:
            return
        yield item


def examples_of(item: Any, modality: Modality, *, training: bool = False) -> list[Example]:
    """The examples that an item consists of, or those that a training makes of it.

    Raises:
        RunError: the data type makes no examples, or some of another shape than it says.
    """
    who = describe(modality)
    with wrap_plugin_errors(f"{who} cannot make a tensor of an item"):
        found = list(modality.training_examples(item) if training else modality.segments(item))
    if not found and not training:
        raise PluginError(f"{who} makes no examples of an item")
    for example in found:
        if not isinstance(example, Example) or not isinstance(example.y, torch.Tensor):
            what = example.y if isinstance(example, Example) else example
            raise PluginError(
                f"{who} must make an Example of a tensor, not of {type(what).__name__}"
            )
        length, *rest = example.y.shape or (0,)
        if length > modality.shape[0] or tuple(rest) != tuple(modality.shape[1:]):
            raise PluginError(
                f"{who} makes a tensor of shape {tuple(example.y.shape)}, but says that its shape "
                f"is {tuple(modality.shape)}"
            )
        if unknown := set(example.labels) - set(modality.labels):
            raise PluginError(f"{who} gives the label {min(unknown)!r}, which it does not declare")
    return found


def modality_metrics(
    modality: Modality, y: Tensor, y_hat: Tensor, mask: Tensor | None
) -> dict[str, Tensor]:
    """The data type's own metrics, `(B,)` each.

    Raises:
        RunError: it gives something else.
    """
    with wrap_plugin_errors(f"{describe(modality)} cannot judge a reconstruction"):
        found = modality.metrics(y, y_hat, mask)
        wrong = [name for name, value in found.items() if value.shape != y.shape[:1]]
    if wrong:
        raise PluginError(
            f"{describe(modality)}: metric {wrong[0]!r} must have a value per example"
        )
    return found


def describe(modality: Modality) -> str:
    """Says which data type it is and whose."""
    return modalities.describe(type(modality))
