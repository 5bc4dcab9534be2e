"""Small classifiers of 28x28 grey pictures, by which samples are judged.

Two ship, one of digits and one of clothes; `python scripts/train_classifier.py` makes them.

Axes: B pictures, F features, K classes.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn

PICTURE_SHAPE = (1, 28, 28)
NUM_FEATURES = 128  #: F
CLASSIFIER_FOLDER = files("ae_image") / "classifiers"


class Classifier(nn.Module):
    """Three convolutions and two layers on top.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(128 * 9, NUM_FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(NUM_FEATURES, num_classes))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures `(B, 1, 28, 28)` in [0, 1] to features `(B, F)` and logits `(B, K)`."""
        features = self.layers(y)
        return features, self.head(features)


@cache
def classifier_of(label: str) -> Classifier | None:
    """Returns the classifier that ships for a label such as `digit`, or None."""
    place = CLASSIFIER_FOLDER / f"{label}.safetensors"
    if not place.is_file():
        return None
    weights = {name: tensor.float() for name, tensor in load(place.read_bytes()).items()}
    classifier = Classifier(len(weights["head.1.bias"]))
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)


@torch.inference_mode()
def judge(y: Tensor, *, label: str) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Returns features `(B, F)` and the logits `(B, K)` of a label; None without a classifier."""
    classifier = classifier_of(label)
    if classifier is None or tuple(y.shape[1:]) != PICTURE_SHAPE:
        return None
    features, logits = classifier(y.float().cpu())
    return features, {label: logits}
