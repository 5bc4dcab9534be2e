"""Measures of disentanglement on codes of which it is known how well they take causes apart."""

from __future__ import annotations

import pytest
import torch

from ae_toolkit.inference.disentanglement import disentanglement

NUM_EXAMPLES = 4000
NUM_CLASSES = {"a": 3, "b": 4, "c": 10, "d": 20}
DCI = ("dci_disentanglement", "dci_completeness", "dci_informativeness")


@pytest.fixture
def causes() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randint(num, (NUM_EXAMPLES,)) for name, num in NUM_CLASSES.items()}


def columns(causes: dict[str, torch.Tensor]) -> torch.Tensor:
    """The causes themselves as codes, of mean 0 and deviation 1."""
    raw = torch.stack([*causes.values()], 1).float()
    return (raw - raw.mean(0)) / raw.std(0)


def test_codes_that_are_the_causes_are_taken_apart_and_turned_ones_are_not(causes) -> None:
    codes = torch.cat([columns(causes), torch.randn(NUM_EXAMPLES, 2)], 1)
    apart = disentanglement(codes, causes)
    assert apart["mig"] > 0.97
    # The next best number guesses: of 3, 4, 10 and 20 values it is right by chance.
    chance = sum(1 / num for num in NUM_CLASSES.values()) / len(NUM_CLASSES)
    assert apart["sap"] == pytest.approx(1 - chance, abs=0.03)
    turned = disentanglement(codes @ torch.linalg.qr(torch.randn(6, 6)).Q, causes)
    assert turned["mig"] < 0.15 and turned["sap"] < 0.15
    assert disentanglement(torch.randn(NUM_EXAMPLES, 4), causes)["mig"] < 0.02


def test_two_numbers_that_tell_the_same_leave_no_gap(causes) -> None:
    twice = columns(causes).repeat(1, 2)
    found = disentanglement(twice, causes)
    assert found["mig"] == pytest.approx(0) and found["sap"] == pytest.approx(0)


def test_numbers_that_never_change_are_no_harm(causes) -> None:
    codes = columns(causes)
    padded = torch.cat([codes, torch.zeros(NUM_EXAMPLES, 3)], 1)
    alone = disentanglement(codes[:, 2:3], {"c": causes["c"]})
    assert disentanglement(padded, causes)["mig"] > 0.97
    assert alone["mig"] == pytest.approx(1) and alone["sap"] == pytest.approx(1)
    constant = disentanglement(torch.zeros(NUM_EXAMPLES, 3), causes)
    assert constant["mig"] == 0 and constant["sap"] == 0


def test_real_causes_are_put_into_bins_and_a_cause_of_one_value_is_left_out(causes) -> None:
    real = {"level": torch.rand(NUM_EXAMPLES), "time": torch.randn(NUM_EXAMPLES)}
    codes = columns({**causes, **real})
    only = {"always": torch.full((NUM_EXAMPLES,), 7)}
    found = disentanglement(codes, {**causes, **real, **only})
    assert found["mig"] > 0.9
    with pytest.raises(ValueError, match="two values"):
        disentanglement(codes, only)


def test_the_gap_is_that_of_a_channel_whose_information_is_known() -> None:
    """A number that tells one of two equally likely classes in three cases of four."""
    torch.manual_seed(0)
    cause = torch.arange(NUM_EXAMPLES) % 2
    wrong = torch.arange(NUM_EXAMPLES) // 2 % 4 == 0
    codes = torch.stack([(cause ^ wrong.long()).float(), torch.zeros(NUM_EXAMPLES)], 1)
    found = disentanglement(codes, {"cause": cause})
    share = torch.tensor([0.75, 0.25])
    assert found["mig"] == pytest.approx(1 + float((share * share.log2()).sum()), abs=1e-6)
    assert found["sap"] == pytest.approx(0.25, abs=0.02)


def test_forests_say_how_causes_lie_in_codes(causes) -> None:
    pytest.importorskip("sklearn")
    codes = columns(causes)
    apart = disentanglement(torch.cat([codes, torch.randn(NUM_EXAMPLES, 1)], 1), causes)
    assert all(apart[name] > 0.97 for name in DCI)
    turned = disentanglement(codes @ torch.linalg.qr(torch.randn(4, 4)).Q, causes)
    assert turned["dci_disentanglement"] < 0.5 and turned["dci_completeness"] < 0.5
    twice = disentanglement(codes.repeat(1, 2), causes)
    assert twice["dci_disentanglement"] > 0.97 and twice["dci_completeness"] < 0.9
