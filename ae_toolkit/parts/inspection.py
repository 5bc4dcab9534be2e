"""What the parts of a model make, held against their contracts one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ae_toolkit.contracts import Code, Posterior, Shape, flatten
from ae_toolkit.errors import PluginError, RunError, UsageError, describe_error
from ae_toolkit.registry import OWN_DISTRIBUTION

#: The parts in the order in which they are called.
CHECK_ORDER = ("corruption", "encoder", "prior", "bottleneck", "decoder", "likelihood", "objective")


class Inspector:
    """Holds what the parts of a model make against their contracts, one after the other.

    Args:
        model: whose parts they are.
        num: B.
        k: samples per example.
    """

    def __init__(self, model: Any, num: int, k: int):
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
