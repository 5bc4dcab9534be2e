"""What the chapters share: digits, models, who reads digits, and rows of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from matplotlib.figure import Figure
from PIL import Image as Pictures
from torch import Tensor

from ae_image.classifier import judge
from ae_image.cli.inputs import data_of, load_image_model
from ae_image.figures import rows_figure
from ae_image.pixels import Picture
from ae_toolkit import Examples, Model, RunError
from ae_toolkit.data.examples import Split

NUM_SHOWN = 10  #: pictures in a row
NUM_KNOWN = 10_000  #: training digits that others are compared with, at most


@dataclass
class Lesson:
    """What the chapters share.

    Attributes:
        num: test digits that numbers are measured on.
        seed: of all noise.
        device: of the models.
        models: loaded so far.
    """

    num: int
    seed: int
    device: str
    models: dict[str, Model] = field(default_factory=dict)

    def model(self, name: str) -> Model:
        if name not in self.models:
            self.models[name] = load_image_model(name, self.device)
        return self.models[name]

    @cached_property
    def test(self) -> Examples:
        """Test digits."""
        return self._digits("test", self.num)

    @cached_property
    def known(self) -> Tensor:
        """Training digits `(N, 1, 28, 28)`, from which others may be far."""
        return self.model("mnist-2d").modality.prepare(self._digits("train", NUM_KNOWN).y)

    def _digits(self, split: Split, num: int) -> Examples:
        """Digits of MNIST where it is at hand, else those that ship with the package."""
        model = self.model("mnist-2d")
        try:
            examples = data_of(model, "mnist", split)
        except RunError:
            examples = data_of(model, "mnist-sample", split)
        return examples.select(range(min(num, len(examples))))

    @cached_property
    def y(self) -> Tensor:
        """`(N, 1, 28, 28)` in [0, 1]."""
        return self.model("mnist-2d").modality.prepare(self.test.y)

    @property
    def classes(self) -> Tensor:
        return self.test.labels["digit"]

    @cached_property
    def shown(self) -> list[int]:
        """One test digit of each class, in order."""
        return [int((self.classes == k).nonzero()[0]) for k in range(NUM_SHOWN)]

    def read(self, made: Tensor) -> Tensor:
        """Digits `(N, 1, 28, 28)` as the classifier that ships reads them, `(N,)`."""
        found = judge(made, label="digit")
        assert found is not None
        return found[1]["digit"].argmax(1)

    @cached_property
    def reader(self) -> dict[str, str]:
        """How often that reads real test digits rightly: its errors are in all that it reads."""
        right = (self.read(self.y) == self.classes).float().mean()
        return {"real test digits, read by the same classifier": f"{float(right):.1%} rightly"}

    def rows(self, rows: Mapping[str, Tensor]) -> Figure:
        """Draws the shown ones of named tensors `(N, 1, H, W)`, each a row."""
        return first_rows({name: y[self.shown] for name, y in rows.items()})

    def corrupted(self, model: Model, y: Tensor) -> Tensor:
        """What a model is given in training."""
        step = model.noise_source(self.seed, "lesson").step(0)
        return model.autoencoder.corruption(y, y, None, step)[0]

    def through(self, model: Model, x: Tensor) -> Tensor:
        """`(N, 1, H, W)` through a model, on the CPU."""
        step = model.noise_source(self.seed, "lesson").step(1)
        with torch.inference_mode():
            rows = [
                model.autoencoder.translate(part, part.new_empty(len(part), 0), step).cpu()
                for part in x.to(model.device).split(500)
            ]
        return torch.cat(rows)


def pictures(y: Tensor) -> list[Picture]:
    """Grey pictures of tensors `(N, 1, H, W)`."""
    rows = (y[:, 0].clamp(0, 1) * 255).round().byte().cpu().numpy()
    return [Pictures.fromarray(row) for row in rows]


def first_rows(rows: Mapping[str, Tensor]) -> Figure:
    """Draws the first few of named tensors `(N, 1, H, W)`, each a row."""
    return rows_figure({k: pictures(y[:NUM_SHOWN]) for k, y in rows.items()}, cell=(28, 28))


def means(model: Model, y: Tensor, made: Tensor) -> dict[str, float]:
    """The data type's metrics of tensors `(N, C, H, W)`, in the mean."""
    return {k: float(v.mean()) for k, v in model.modality.metrics(y, made, None).items()}


def distance(made: Tensor, real: Tensor) -> float:
    """The mean squared distance to the nearest real picture."""
    return float(torch.cdist(made.flatten(1), real.flatten(1)).min(1).values.square().mean())
