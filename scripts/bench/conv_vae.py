"""pythae's convolutional VAE of MNIST as parts of ours, the way a user would bring their own.

    ae --import scripts/bench/conv_vae.py train mnist-conv-vae --data mnist

The layers are those of `pythae.models.nn.benchmarks.mnist`, batch normalisation included.

Axes: B examples, N codes.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ae_toolkit import Recipe
from ae_toolkit.contracts import Shape
from ae_toolkit.parts.backbones.layers import FeedForward
from ae_toolkit.registry import decoders, encoders, recipes


@encoders.register("pythae-mnist")
class Encoder(nn.Module):
    """Four 4x4 convolutions of stride 2: 28x28 to 1,024 features."""

    def __init__(self, *, in_shape: Shape, num_classes: int, cond_dim: int):
        super().__init__()
        widths = (in_shape[0], 128, 256, 512, 1024)
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            self.layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            self.layers.append(nn.BatchNorm2d(after))
            self.layers.append(nn.ReLU())
        self.out_shapes: tuple[Shape, ...] = ((1024,),)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        return (self.layers(x).flatten(1),)


@decoders.register("pythae-mnist")
class Decoder(FeedForward):
    """A linear layer to 4x4 planes and three transposed 3x3 convolutions of stride 2."""

    def __init__(
        self, *, z_shapes: Sequence[Shape], out_shape: Shape, num_classes: int, cond_dim: int
    ):
        super().__init__()
        self.out_shape = out_shape
        self.layers = nn.Sequential(
            nn.Linear(z_shapes[0][0], 1024 * 4 * 4),
            nn.Unflatten(1, (1024, 4, 4)),
            nn.ConvTranspose2d(1024, 512, 3, 2, padding=1),
            nn.BatchNorm2d(512),
            nn.ReLU(),
            nn.ConvTranspose2d(512, 256, 3, 2, padding=1, output_padding=1),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.ConvTranspose2d(256, out_shape[1], 3, 2, padding=1, output_padding=1),
        )

    def params(self, z: tuple[Tensor, ...], c: Tensor, mask: Tensor | None) -> Tensor:
        return self.layers(z[0]).unflatten(1, self.out_shape[:2])


@recipes.register("mnist-conv-vae")
def mnist_conv_vae() -> Recipe:
    """pythae's convolutional VAE of digits."""
    return Recipe.of(
        {
            "name": "mnist-conv-vae",
            "data": {"name": "mnist"},
            "modality": {"name": "image", "size": 28},
            "encoder": {"name": "pythae-mnist"},
            "bottleneck": {"name": "gaussian", "z_dim": 16},
            "decoder": {"name": "pythae-mnist"},
            "likelihood": {"name": "cross-entropy"},
        }
    )
