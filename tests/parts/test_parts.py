"""The contract, over every registered part: a new one is tested the moment it is registered."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from ae_toolkit import Autoencoder, registry
from ae_toolkit.parts.backbones.mlp import MLPDecoder, MLPEncoder
from ae_toolkit.parts.bottleneck import Gaussian
from ae_toolkit.parts.corruption import Noise
from ae_toolkit.parts.likelihood import Bernoulli
from ae_toolkit.parts.objective import ELBO
from ae_toolkit.parts.prior import StandardNormal
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import is_supplied
from ae_toolkit.testing.contracts import (
    Tensors,
    check_arguments_are_keywords,
    check_part,
    tiny_batch,
    tiny_recipe,
)

# Parts that need a setting of their own, or data of a certain kind, to fit into the tiny recipe.
WORDS = {"shape": (6,), "num_classes": 5}
PITCH = {"changes": {"modality.labels": {"pitch": 128}, "condition": ["pitch"]}}
CODES_OF_INTEGERS = {"bottleneck": {"name": "fsq", "z_dim": 2, "num_levels": [3, 2]}}
COLUMNS = ["gaussian", "bernoulli", {"name": "categorical", "num_classes": 3}]
NEEDS: dict[tuple[str, str], dict[str, object]] = {
    ("encoder", "note"): PITCH,
    ("decoder", "note"): PITCH,
    ("likelihood", "categorical"): {"num_classes": 5},
    ("likelihood", "discretised-logistic"): {
        "changes": {"encoder": {"name": "conv", "widths": [4]}}
    },
    ("likelihood", "mixed"): {"shape": (3,), "arguments": {"columns": COLUMNS}},
    ("bottleneck", "fsq"): {"changes": {"prior": {"name": "categorical"}}},
    ("bottleneck", "vq"): {"changes": {"prior": {"name": "categorical"}}},
    ("objective", "geco"): {"arguments": {"tolerance": 40.0}},
    ("prior", "categorical"): {"changes": CODES_OF_INTEGERS},
    ("prior", "autoregressive-categorical"): {"changes": CODES_OF_INTEGERS},
    ("prior", "autoregressive"): {"arguments": {"width": 16, "hidden": 16}},
    ("encoder", "recurrent"): WORDS,
    ("encoder", "transformer"): WORDS,
    ("decoder", "recurrent"): WORDS,
    ("decoder", "transformer"): WORDS,
    ("decoder", "autoregressive"): WORDS,
    ("decoder", "unrolled"): WORDS,
    ("decoder", "hierarchical"): {**WORDS, "arguments": {"segment": 3}},
}

KINDS = ("corruption", "encoder", "bottleneck", "prior", "decoder", "likelihood", "objective")
PARTS = [(kind, name) for kind in KINDS for name in registry.ALL_REGISTRIES[kind].names()]


#: Kinds of parts that know nothing of a condition.
FREE = ("corruption", "likelihood", "objective")


@pytest.mark.parametrize(
    ("kind", "name", "condition"),
    [
        pytest.param(
            kind, name, condition, id=f"{'conditioned' if condition else 'free'}-{kind}-{name}"
        )
        for kind, name in PARTS
        for condition in ([False] if kind in FREE else [False, True])
    ],
)
def test_part_keeps_its_contract(kind: str, name: str, condition: bool) -> None:
    check_part(kind, name, condition=condition, **NEEDS.get((kind, name), {}))


@pytest.mark.parametrize(
    ("kind", "name"), [("dataset", n) for n in registry.datasets.names()] + PARTS
)
def test_constructor_is_keyword_only(kind: str, name: str) -> None:
    check_arguments_are_keywords(kind, name)


@pytest.mark.parametrize("family", ["conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 13, 9), (2, 1, 5)])
@pytest.mark.parametrize("spatial", [False, True], ids=["flat", "spatial"])
def test_convolutions_take_any_size_and_code(
    family: str, shape: tuple[int, ...], spatial: bool
) -> None:
    changes = {"decoder": {"name": family}, "bottleneck.spatial": spatial}
    check_part("encoder", family, shape=shape, changes=changes, condition=True)


@pytest.mark.parametrize("family", ["conv", "resnet", "transformer"])
def test_spatial_codes_are_conditioned(family: str) -> None:
    data, widths = (WORDS, {"width": 8}) if family == "transformer" else ({}, {"widths": [8]})
    spatial = {"name": "gaussian", "spatial": True, "z_dim": 3}
    parts = {"encoder": {"name": family, **widths}, "bottleneck": spatial}
    parts |= {"decoder": {"name": family, **widths}}
    for kind in ("encoder", "bottleneck", "decoder") if data else ("bottleneck", "decoder"):
        arguments = {key: value for key, value in parts[kind].items() if key != "name"}
        name = parts[kind]["name"]
        check_part(kind, name, condition=True, arguments=arguments, changes=parts, **data)


@pytest.mark.parametrize("family", ["mlp", "conv", "resnet"])
def test_backbones_take_classes(family: str) -> None:
    check_part(
        "encoder", family, shape=(1, 8, 8)[1:] if family != "mlp" else (6,), num_classes=5,
        changes={"decoder": {"name": "mlp"}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        ("encoder", "mlp", {"dropout": 0.5, "activation": "gelu"}),
        ("encoder", "resnet", {"norm": False, "blocks": [0, 1], "patch": 1}),
        ("bottleneck", "deterministic", {"l1": 0.1}),
        ("likelihood", "gaussian", {"variance": "learned"}),
        ("likelihood", "gaussian", {"variance": "predicted"}),
        ("likelihood", "squared-error", {"squash": True}),
        ("likelihood", "discretised-logistic", {"components": 3}),
        ("likelihood", "negative-binomial", {"dispersion": "learned"}),
        ("objective", "elbo", {"beta": 4.0, "warmup": 0.5, "cycles": 2, "free_bits": 0.1}),
        ("objective", "elbo", {"free_bits": 2.0, "free_bits_per": "total", "num_samples": 2}),
        ("prior", "flow", {"layers": 2, "hidden": 8}),
    ],
)
def test_variants(kind: str, name: str, arguments: dict[str, object]) -> None:
    check_part(kind, name, arguments=arguments)


#: Another value of every argument that a part takes, and what it needs to make a difference.
OTHER: dict[str, Any] = {
    "activation": "tanh", "beta": 2.0, "blocks": 1, "clip": None, "code_dim": 3,
    "codebook_size": 7, "columns": COLUMNS[::-1], "commitment": 0.5, "components": 2,
    "conductor": 8, "context": 3, "cycles": 3, "decay": 0.5, "dispersion": "learned",
    "dreg": True, "dropout": 0.5, "embed": 8, "factor": 4, "free_bits": 9.0,
    "free_bits_per": "total", "harmonic_rank": 3, "heads": 2, "hidden": 8, "kernel": "rbf",
    "l1": 0.1, "layers": 3,
    "levels": 2, "logvar_bound": 0.1, "loudest": -30.0, "mean": 0.1, "norm": False,
    "noise": 0.5, "num_examples": 99, "num_levels": [3, 3], "num_samples": 2,
    "patch": 2, "quietest": -30.0, "rank": 3, "residual": True,
    "scheduled_sampling": 1.0, "segment": 2, "share": 0.1, "spatial": True, "speed": 0.1,
    "squash": True, "std": 0.1, "stl": True, "tolerance": 30.0, "value": 0.7,
    "variational": True,
    "variance": "predicted", "warmup": 0.9, "weight": 3.0, "width": 8, "widths": [8], "z_dim": 3,
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "dreg": {"bottleneck.stl": True},
    "cycles": {"objective.warmup": 0.9},
    "free_bits_per": {"objective.free_bits": 9.0},
    "levels": {"bottleneck.spatial": True},
    "spatial": {"encoder": {"name": "conv", "widths": [4]}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [8]},
    "resnet": {"patch": 1},
    "adversarial": {"hidden": [8]},
    "factor-vae": {"hidden": [8]},
    "hypersphere": {"z_dim": 5},
    "ladder": {"z_dim": [3]},
}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_argument_makes_a_difference(kind: str, name: str) -> None:
    needs = {**NEEDS.get((kind, name), {})}
    part = {"name": name, **needs.pop("arguments", {})}
    given = {**needs.pop("changes", {}), kind: part}
    values = OTHER | OTHERS.get(name, {})
    with (
        registry.modalities.temporarily(tensors=Tensors),
        registry.datasets.temporarily(tensors=lambda *, modality, split: None),
    ):
        alone = tiny_recipe(changes=given, **needs)
        before = outcome_of(alone)
        taken = inspect.signature(registry.ALL_REGISTRIES[kind].get(name)).parameters
        for argument in taken:
            if is_supplied(kind, taken[argument]):
                continue
            plain = alone.with_(BESIDE.get(argument, {}))
            other = plain.with_({f"{kind}.{argument}": values[argument]})
            expected = before if plain == alone else outcome_of(plain)
            assert outcome_of(other) != expected, f"{argument} makes no difference"


def outcome_of(recipe: Any) -> tuple[object, ...]:
    """What a part can make a difference to: the numbers that are kept, and the losses."""
    modality = recipe.make("modality")
    torch.manual_seed(0)
    model = Autoencoder(recipe, modality=modality)
    step = Source(0, "test").step(0, progress=0.6)
    with torch.enable_grad():
        terms = model(tiny_batch(modality), step, num_samples=model.objective.num_samples).terms
        losses = [
            model.objective(terms._replace(distortion=k * terms.distortion), step) for k in (1, 2)
        ]
        sum(losses).sum().backward()
    slope = sum(float(w.grad.abs().sum()) for w in model.encoder.parameters() if w.grad is not None)
    num_kept = sum(tensor.numel() for tensor in model.state_dict().values())
    learned = sum(float(buffer.double().sum()) for buffer in model.buffers())
    return num_kept, learned, slope, [loss.tolist() for loss in losses]


# What keeps every shape, and does not do what its kind is for.


class Deaf(MLPEncoder):
    def forward(self, x, c, mask):
        return super().forward(x, torch.zeros_like(c), mask)


class DeafDecoder(MLPDecoder):
    def forward(self, z, c, mask, **given):
        return super().forward(z, torch.zeros_like(c), mask, **given)


class Swaps(Gaussian):
    def forward(self, h, c, *, num_samples, step):
        code = super().forward(h, c, num_samples=num_samples, step=step)
        levels = (z.unflatten(0, (num_samples, -1)).transpose(0, 1) for z in code.z)
        return code._replace(z=tuple(z.flatten(0, 1) for z in levels))


class Improper(StandardNormal):
    def log_prob(self, z, c):
        return super().log_prob(z, c) - 0.5


class Lukewarm(StandardNormal):
    def sample(self, num, c, *, temperature, step):
        return super().sample(num, c, temperature=float(temperature > 0), step=step)


class Unmasked(Bernoulli):
    def nll(self, params, y, mask):
        return super().nll(params, y, None)


class Alike(Noise):
    def __call__(self, x, y, mask, step):
        x, y = super().__call__(x, y, mask, step)
        return x[:1].expand_as(x), y


class Free(ELBO):
    def __call__(self, terms, step):
        return super().__call__(terms._replace(penalty=0 * terms.penalty), step)


@pytest.mark.parametrize(
    ("kind", "part", "sentence"),
    [
        ("encoder", Deaf, "gives the same whatever the label 'kind' is"),
        ("decoder", DeafDecoder, "gives the same whatever the label 'kind' is"),
        ("bottleneck", Swaps, "not sample-major"),
        ("prior", Improper, "does not come from its density"),
        ("prior", Lukewarm, "must spread with the temperature"),
        ("likelihood", Unmasked, "what is masked makes a difference"),
        ("corruption", Alike, "treats all examples of a batch alike"),
        ("objective", Free, "does not rise with the penalty"),
    ],
)
def test_what_a_part_is_for_is_checked(kind: str, part: type, sentence: str) -> None:
    with (
        registry.ALL_REGISTRIES[kind].temporarily(wrong=part),
        pytest.raises(AssertionError, match=f"{kind} 'wrong': .*{sentence}"),
    ):
        check_part(kind, "wrong", condition=kind not in FREE)
