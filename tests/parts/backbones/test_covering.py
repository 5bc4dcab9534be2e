"""Convolutions as products: the same numbers and gradients, whatever the shape."""

from __future__ import annotations

import pytest
import torch
from conftest import small
from torch import Tensor, nn

from ae_toolkit.parts.backbones.covering import FullKernelConv2d, use_full_kernel
from ae_toolkit.training.distributed import Ranks
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.setup import prepare


def pair(**settings: object) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A convolution and its twin that may be a product."""
    torch.manual_seed(0)
    one = nn.Conv2d(3, 5, **settings)
    other = nn.Conv2d(3, 5, **settings)
    other.load_state_dict(one.state_dict())
    use_full_kernel(other)
    return one, other


def results(layer: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The output and all gradients of its squares."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(
    ("size", "settings", "covers"),
    [
        ((3, 3), {"kernel_size": 4, "stride": 2, "padding": 1}, True),
        ((4, 4), {"kernel_size": 4}, True),
        ((4, 4), {"kernel_size": 4, "bias": False}, True),
        ((5, 5), {"kernel_size": 4, "stride": 2}, True),  # one row is never seen
        ((1, 1), {"kernel_size": 3, "padding": 1}, True),
        ((1, 1), {"kernel_size": 1}, True),
        ((2, 4), {"kernel_size": (2, 5), "stride": (1, 3), "padding": (0, 1)}, True),
        ((4, 1), {"kernel_size": 3, "padding": 1}, False),
        ((6, 6), {"kernel_size": 4, "stride": 2, "padding": 1}, False),
        ((1, 1), {"kernel_size": 1, "padding": 1, "stride": 3}, False),  # sees padding alone
        ((3, 3), {"kernel_size": 2, "dilation": 2}, False),
        ((3, 3), {"kernel_size": 3, "padding": "same"}, False),
        ((2, 2), {"kernel_size": 4, "padding": 1, "padding_mode": "circular"}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_same_numbers_and_gradients(size, settings, covers, layout) -> None:
    one, other = (layer.to(memory_format=layout) for layer in pair(**settings))
    x = torch.randn(2, 3, *size).to(memory_format=layout)
    assert other._is_covered(x) == covers
    for mine, its in zip(results(other, x), results(one, x), strict=True):
        torch.testing.assert_close(mine, its)


def test_errors_stay_those_of_a_convolution() -> None:
    one, other = pair(kernel_size=4)
    for shape in ((2, 3, 3, 3), (2, 4, 4, 4)):
        said = []
        for layer in (one, other):
            with pytest.raises(RuntimeError) as caught:
                layer(torch.zeros(shape))
            said.append(str(caught.value))
        assert said[0] == said[1]
    assert torch.equal(one(x := torch.randn(3, 4, 4)), other(x)), "an example without a batch"


def test_only_plain_convolutions_change_and_states_stay() -> None:
    class Own(nn.Conv2d):
        """Somebody's."""

    model = nn.Sequential(nn.Conv2d(1, 1, 1), Own(1, 1, 1), nn.ConvTranspose2d(1, 1, 1))
    before = list(model.state_dict())
    use_full_kernel(model)
    kinds = [type(layer) for layer in model]
    assert kinds == [FullKernelConv2d, Own, nn.ConvTranspose2d]
    assert list(model.state_dict()) == before


def test_trainings_on_a_cpu_use_it() -> None:
    recipe = small(encoder={"name": "conv", "widths": [4]})
    cpu = torch.device("cpu")
    setup = prepare(recipe, Engine.pick(recipe.train, cpu), cpu, Ranks())
    for model in (setup.model, setup.optimizer.ema_model()):
        assert any(type(layer) is FullKernelConv2d for layer in model.modules())
        assert not any(type(layer) is nn.Conv2d for layer in model.modules())
