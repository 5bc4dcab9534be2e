"""Trains the classifiers that judge samples: `python scripts/train_classifier.py digit garment`.

Each learns from the training split of its data set but the last 5,000 pictures, by which it is
measured while one looks; the test split is read once, at the end. What it writes, in bf16, is what
ships in `plugins/ae_image/classifiers`.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from ae_image.classifier import CLASSIFIER_FOLDER, Classifier
from ae_image.modality import Image
from safetensors.torch import save_file
from torch import Tensor

from ae_toolkit import registry
from ae_toolkit.console import track
from ae_toolkit.randomness import Source

DATASETS = {"digit": "mnist", "garment": "fashion-mnist"}
NUM_HELD_OUT = 5000
MAX_SHIFT = 2  #: pixels by which training pictures are moved
MAX_LR = 2e-3


def pictures(label: str, split: str) -> tuple[Tensor, Tensor]:
    """Pictures `(N, 1, 28, 28)` in [0, 1] and their classes `(N,)`."""
    modality = Image(labels={label: 10})
    examples = registry.datasets.get(DATASETS[label])(modality=modality, split=split)
    return modality.prepare(examples.y), examples.labels[label]


def varied(y: Tensor, *, mirrored: bool) -> Tensor:
    """Each picture moved on its own, by whole pixels; borders are black, so that they wrap."""
    down, right = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2, len(y), 1))
    rows = (torch.arange(y.shape[2]) + down) % y.shape[2]
    columns = (torch.arange(y.shape[3]) + right) % y.shape[3]
    if mirrored:
        columns = torch.where(torch.rand(len(y), 1) < 0.5, columns.flip(1), columns)
    return y[torch.arange(len(y))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]


def train(label: str, *, epochs: int, batch_size: int, seed: int) -> Classifier:
    torch.manual_seed(seed)
    y, classes = (whole[:-NUM_HELD_OUT] for whole in pictures(label, "train"))
    classifier = Classifier(10)
    per_epoch = len(y) // batch_size
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=MAX_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, MAX_LR, total_steps=epochs * per_epoch
    )
    source = Source(seed, "classifier")
    for step in track(range(epochs * per_epoch), f"learning each {label}"):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            order = source.permutation(len(y), epoch)
        index = order[at * batch_size : (at + 1) * batch_size]
        logits = classifier(varied(y[index], mirrored=label == "garment"))[1]
        optimiser.zero_grad()
        F.cross_entropy(logits, classes[index], label_smoothing=0.05).backward()
        optimiser.step()
        schedule.step()
    return classifier.eval()


@torch.inference_mode()
def accuracy(classifier: Classifier, y: Tensor, classes: Tensor) -> float:
    read = torch.cat([classifier(rows)[1].argmax(1) for rows in y.split(1000)])
    return float((read == classes).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("labels", nargs="+", choices=sorted(DATASETS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for label in options.labels:
        start = time.monotonic()
        classifier = train(
            label, epochs=options.epochs, batch_size=options.batch_size, seed=options.seed
        ).bfloat16()
        save_file(classifier.state_dict(), str(CLASSIFIER_FOLDER / f"{label}.safetensors"))
        classifier = classifier.float()
        y, classes = pictures(label, "train")
        report = {
            "label": label,
            "epochs": options.epochs,
            "seed": options.seed,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "held_out": accuracy(classifier, y[-NUM_HELD_OUT:], classes[-NUM_HELD_OUT:]),
            "test": accuracy(classifier, *pictures(label, "test")),
        }
        card = CLASSIFIER_FOLDER / f"{label}.json"  # type: ignore[operator]
        card.write_text(json.dumps(report, indent=2) + "\n")  # type: ignore[attr-defined]
        print(json.dumps(report))


if __name__ == "__main__":
    main()
