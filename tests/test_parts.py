"""The contract, over every registered part: a new one is tested the moment it is registered."""

from __future__ import annotations

import pytest

from ae_toolkit import registry
from ae_toolkit.testing import check_arguments_are_keywords, check_part

# Parts that need a setting of their own, or data of a certain kind, to fit into the tiny recipe.
WORDS = {"shape": (6,), "num_classes": 5}
PITCH = {"changes": {"modality.labels": {"pitch": 128}, "condition": ["pitch"]}}
NEEDS: dict[tuple[str, str], dict[str, object]] = {
    ("encoder", "note"): PITCH,
    ("decoder", "note"): PITCH,
    ("likelihood", "categorical"): {"num_classes": 5},
    ("prior", "autoregressive"): {"arguments": {"width": 16, "hidden": 16}},
    ("encoder", "recurrent"): WORDS,
    ("encoder", "transformer"): WORDS,
    ("decoder", "recurrent"): WORDS,
    ("decoder", "transformer"): WORDS,
    ("decoder", "autoregressive"): WORDS,
    ("decoder", "hierarchical"): {**WORDS, "arguments": {"segment": 3}},
}

KINDS = ("corruption", "encoder", "bottleneck", "prior", "decoder", "likelihood", "objective")
PARTS = [(kind, name) for kind in KINDS for name in registry.ALL[kind].names()]


@pytest.mark.parametrize(("kind", "name"), PARTS)
@pytest.mark.parametrize("condition", [False, True], ids=["free", "conditioned"])
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


@pytest.mark.parametrize("kind", ["encoder", "bottleneck", "decoder"])
@pytest.mark.parametrize("family", ["conv", "resnet", "transformer"])
def test_spatial_codes_are_conditioned(family: str, kind: str) -> None:
    data = WORDS if family == "transformer" else {}
    small = {"name": family, "widths": [8]} if not data else {"name": family, "width": 8}
    parts = {"encoder": small, "decoder": small, "bottleneck": {"name": "gaussian"}}
    names = {"encoder": family, "bottleneck": "gaussian", "decoder": family}
    changes = {**parts, "bottleneck.spatial": True, "bottleneck.z_dim": 3}
    arguments = {key: value for key, value in parts[kind].items() if key != "name"}
    if kind == "bottleneck":
        arguments = {"spatial": True, "z_dim": 3}
    check_part(kind, names[kind], condition=True, arguments=arguments, changes=changes, **data)


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
        ("objective", "elbo", {"beta": 4.0, "warmup": 0.5, "cycles": 2, "free_bits": 0.1}),
        ("objective", "elbo", {"free_bits": 2.0, "free_bits_per": "total", "num_samples": 2}),
        ("prior", "flow", {"layers": 2, "hidden": 8}),
    ],
)
def test_variants(kind: str, name: str, arguments: dict[str, object]) -> None:
    check_part(kind, name, arguments=arguments)
