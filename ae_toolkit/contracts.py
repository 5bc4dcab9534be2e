"""The contracts of every part, on one page: what a plugin author implements, what travels between.

Data flows `y -> corruption -> x -> encoder -> h -> bottleneck -> z, features -> decoder -> params
-> likelihood`; the objective turns the terms into a loss. A part is any class that fits its
protocol here; nothing needs to be inherited. Constructors are keyword-only: a part's own arguments,
plus those that `SUPPLIED_ARGUMENTS` lists for its kind, which `Autoencoder` fills in.

Axes: B examples, K posterior samples, N = K·B (sample-major), P parameters per element,
T positions, D code dimensions over all levels. What parts compute is in single precision, or in
bfloat16 where autocast makes it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ae_toolkit.version import former_names

Shape = tuple[int, ...]
Levels = tuple[Tensor, ...]  #: of features or codes, coarsest first
Size = Annotated[int, Field(ge=1, le=1_000_000)]  #: of channels, layers or positions, in a recipe
Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]

#: Constructor arguments that `Autoencoder` supplies, by kind of part. A bottleneck supplies the
#: `z_shapes` of its prior.
SUPPLIED_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "modality": (),
    "dataset": ("modality", "split"),
    "corruption": (),
    "encoder": ("in_shape", "num_classes", "cond_dim"),
    "bottleneck": ("in_shapes", "cond_dim", "prior"),
    "prior": ("z_shapes", "cond_dim"),
    "decoder": ("z_shapes", "out_shape", "num_classes", "cond_dim"),
    "likelihood": ("num_classes",),
    "objective": (),
}
#: Likewise, where a constructor takes them without a default. A prior for codes of integers takes
#: `num_classes`. One that sees examples of its own through the encoder takes the `in_shape` of `x`,
#: and `posterior`, a function of `x` `(B, *in_shape)` and `c` `(B, cond_dim)` to a `Posterior`.
OPTIONAL_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "prior": ("num_classes", "in_shape", "posterior")
}


class Example(NamedTuple):
    """One item as a tensor.

    Examples of one group (a file, a speaker) never stand on both sides of a split.
    """

    y: Tensor  #: `(*shape)` in the storage dtype, such as uint8
    labels: Mapping[str, float] = MappingProxyType({})  #: a class index or a real value for each
    group: str = ""


class Batch(NamedTuple):
    """Some examples, stacked."""

    y: Tensor  #: `(B, *shape)`
    mask: Tensor | None  #: `(B, T)` bool, where an example is real; None: all fill their shape
    labels: Mapping[str, Tensor]  #: `(B,)` each

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns what a function makes of each tensor."""
        mask = None if self.mask is None else function(self.mask)
        labels = {name: function(column) for name, column in self.labels.items()}
        return Batch(function(self.y), mask, labels)

    def to(self, device: torch.device) -> Batch:
        """Returns the same on a device, without waiting for it."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def first(self, num: int) -> Batch:
        """Returns the first examples."""
        return self.map(lambda tensor: tensor[:num])


class StepContext(NamedTuple):
    """What a part may know of the moment it runs in. All randomness comes from here.

    Noise of other kinds is made of these two: see `randomness.gamma` and `randomness.poisson`.

    Attributes:
        progress: `()` in [0, 1], how much of the training is done.
        randn: `shape -> ` standard normal noise; `shape[0]` is the batch axis.
        rand: `shape -> ` uniform noise in [0, 1); `shape[0]` is the batch axis.
        gather: `(n, …)` of this process to `(ranks * n, …)` of all that train together, without
            gradients: statistics that a part keeps are then those of the global batch.
    """

    progress: Tensor
    randn: Callable[[Shape], Tensor]
    rand: Callable[[Shape], Tensor]
    gather: Callable[[Tensor], Tensor] = torch.detach


class Code(NamedTuple):
    """What a bottleneck makes of what the encoder gives.

    Attributes:
        z: the code as a user meets it: levels `(N, *z_shapes[i])`, coarsest first; real, or int64
            in `[0, num_classes)`.
        rate: `(K, B, D)` nats: the analytic KL where K = 1 and there is one, else log q/p of the
            samples; D = 0 where a rate is undefined.
        penalty: `(B,)`, what is paid outside β: L1, commitment, a critic.
        features: what the decoder reads, levels `(N, *feature_shapes[i])`; None: `z` itself.
    """

    z: Levels
    rate: Tensor
    penalty: Tensor
    features: Levels | None = None

    @property
    def decoder_input(self) -> Levels:
        """What the decoder reads, of any code."""
        return self.z if self.features is None else self.features


class Terms(NamedTuple):
    """What an objective makes a loss of: `(K, B)`, `(K, B, D)` and `(B,)`, per example."""

    distortion: Tensor
    rate: Tensor
    penalty: Tensor
    z: Levels = ()  #: the code, `(N, …)`, if all gradients to the posterior pass through it


class Forward(NamedTuple):
    """Everything that a forward pass computes on its way."""

    x: Tensor  #: what the encoder saw, `(B, *in_shape)`
    y: Tensor  #: what the decoder aims at, `(N, *shape)`
    c: Tensor  #: the condition, `(B, cond_dim)`
    h: Levels  #: features, `(B, *out_shapes[i])`
    code: Code
    params: Tensor  #: of the likelihood, `(N, P, *shape)`
    terms: Terms  #: what the loss is made of


class Corruption(Protocol):
    """What the encoder sees instead of the target."""

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of `x` for targets of `shape`."""

    def __call__(
        self, x: Tensor, y: Tensor, mask: Tensor | None, step: StepContext
    ) -> tuple[Tensor, Tensor]:
        """Returns the input and the target, `(B, *out_shape)` and `(B, *shape)`."""


class Encoder(Protocol):
    """`x -> features`, on one level or several, coarsest first.

    An encoder or decoder that works on any number of positions says so by `any_size = True`: its
    tensors then grow with the positions of `x`, and the decoder gives planes that are whole.
    """

    out_shapes: tuple[Shape, ...]

    def __call__(self, x: Tensor, c: Tensor, mask: Tensor | None) -> Levels:
        """`(B, *in_shape)` and the condition `(B, cond_dim)` to `(B, *out_shapes[i])`."""


class Posterior(NamedTuple):
    """A diagonal Gaussian, `(B, D)` each, all levels flattened into D."""

    mean: Tensor
    logvar: Tensor


class Prior(Protocol):
    """Where new codes come from.

    One for codes of integers takes `num_classes` in its constructor, and is not asked for a `kl`.
    A prior may have a method `fit(z, c)`: when a training has ended, it is called once with codes
    `(N, *z_shapes[i])` and conditions `(N, cond_dim)` of its examples, and what it leaves in
    parameters and buffers is saved in the best checkpoint.
    """

    def log_prob(self, z: Levels, c: Tensor) -> Tensor:
        """Log density `(N, D)` in nats, or `(N, 1)` where it does not fall into dimensions."""

    def kl(self, posterior: Posterior, c: Tensor) -> Tensor | None:
        """KL of a Gaussian from this prior, `(B, D)` nats; None where there is no closed form."""

    def sample(self, num: int, c: Tensor, *, temperature: float, step: StepContext) -> Levels:
        """Draws levels `(num, *z_shapes[i])`; temperature scales the spread."""


class Bottleneck(Protocol):
    """What the code is, and what it costs. `prior` is a factory that awaits `z_shapes`.

    What follows is for codes that the decoder does not read as they are. A bottleneck with
    `feature_shapes` may have the others, and without one of these it has what stands behind it:

        feature_shapes = z_shapes          # of what the decoder reads
        num_classes = 0                    # above 0: z is int64 in [0, num_classes)
        embed(z, c) -> features            # z itself, which is `(N, *z_shapes[i])`
        sample(num, c, *, temperature, step) -> z       # prior.sample

    `embed` makes of any code what the decoder reads: a codebook's vectors, the end of a ladder.
    Codes of integers need `embed`, and a prior that is made by `prior(z_shapes=…, num_classes=…)`.
    """

    z_shapes: tuple[Shape, ...]
    prior: Prior

    def __call__(self, h: Levels, c: Tensor, *, num_samples: int, step: StepContext) -> Code: ...

    def mean(self, h: Levels, c: Tensor) -> Levels:
        """The code that stands for an example, `(B, *z_shapes[i])`."""


class Decoder(Protocol):
    """`z -> params`. An autoregressive one shifts the target itself."""

    def __call__(
        self, z: Levels, c: Tensor, mask: Tensor | None, *, target: Tensor, step: StepContext
    ) -> Tensor:
        """Returns the likelihood's parameters `(N, P, *shape)`; `target` is `(N, *shape)`."""

    def generate(
        self, z: Levels, c: Tensor, mask: Tensor | None, *, draw: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns `(N, *shape)`; `draw` turns parameters into values, step by step if needed."""


class Likelihood(Protocol):
    """What the decoder's numbers mean: `nll` and `sample` live together."""

    is_density: bool  #: false: a distortion, from which no NLL is ever reported
    num_params: int

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """`(N, P, *shape)` and `(N, *shape)` to `(N,)`, summed over elements."""

    def supports(self, y: Tensor) -> bool:
        """Whether the density is one of the values of `y`; `misfit(y)`, if any, says why not."""

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        """`(N, P, *shape)` to `(N, *shape)`; at 0 the best single guess, which figures show."""


class Objective(Protocol):
    """How the terms make one loss; as an `nn.Module` it may keep statistics in buffers."""

    num_samples: int  #: K, how many posterior samples an example gets in training

    def __call__(self, terms: Terms, step: StepContext) -> Tensor:
        """The loss per example, `(B,)`."""


class UpdateRule(Protocol):
    """How an optimiser moves one weight; `train.optimizer` names it.

    Clipping, decay, averages, checkpoints and shards are the trainer's. `first` and `second` begin
    as zeros, for moments. A rule works element by element: `train.parallel=fsdp` cuts weights up.
    """

    def __call__(
        self, weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, *,
        now: Any, betas: tuple[float, float],
    ) -> None:  # fmt: skip
        """Changes `weight`, `first` and `second` in place, by operations that can be compiled.

        `now` is a `training.optimizer.StepCoefficients`: it has `lr`, which the schedule gives.
        """


class Tracker(Protocol):
    """Where the numbers of a training go beside `metrics.jsonl`; it may fail, the training goes on.

    It is made with the run directory and the recipe's settings, `(*, run, settings)`, before any
    work, and raises `UsageError` where something that it needs is not installed. It writes nothing
    before the first `log` or `figure`, whose step says where a resumed training goes on.
    """

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one step, such as `{"validation/loss": 31.6}`."""

    def figure(self, step: int, path: Path) -> None:
        """Takes a figure, a PNG at `path`."""

    def close(self) -> None:
        """Writes what is not yet written. The last call."""


class Callback:
    """Something that happens once in a while in a training; override what is needed.

    Every rank calls every method, so that what all must do together can be done; what writes files
    or prints asks `training.is_main_process` first. `training` is a `training.state.Training`: it
    has the step, the losses, the report of the last validation, and in `setup` the model, the
    optimiser, the data and the settings.

    Attributes:
        needs_gradients: whether `on_step` reads the gradients of the weights, which keeps steps
            from being compiled.
    """

    needs_gradients: bool = False

    def on_start(self, training: Any) -> None:
        """Called before the first step."""

    def on_step(self, training: Any) -> None:
        """Called after every step, often before the device has finished it: do not wait for it."""

    def on_losses(self, training: Any) -> None:
        """Called about twice a second, when the losses of some steps have come from the device."""

    def on_validation(self, training: Any) -> None:
        """Called after a validation; `training.report` says what came of it."""

    def on_end(self, training: Any) -> None:
        """Called at the end, whatever has ended the training."""


def repeat(x: Any, num: int) -> Any:
    """`(B, …)` to sample-major `(num·B, …)`; None stays None."""
    return x if x is None or num == 1 else x.repeat(num, *(1 for _ in x.shape[1:]))


def label_row(columns: Mapping[str, Tensor], index: int) -> dict[str, float]:
    """The labels of one example, out of columns `(B,)`."""
    return {name: column[index].item() for name, column in columns.items()}


def flatten(levels: Sequence[Tensor]) -> Tensor:
    """Levels `(N, *shape)` to `(N, D)`."""
    return torch.cat([level.flatten(1) for level in levels], 1)


def unflatten(flat: Tensor, shapes: Sequence[Shape]) -> Levels:
    """`(N, D)` to levels `(N, *shape)`."""
    parts = torch.split(flat, [math.prod(shape) for shape in shapes], 1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))


__getattr__ = former_names(__name__, {"Step": "StepContext", "SUPPLIED": "SUPPLIED_ARGUMENTS"})
