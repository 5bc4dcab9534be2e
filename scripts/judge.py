"""Judges a conditional model of digits: `python scripts/judge.py [--model mnist-cvae] [--json]`.

Trains a classifier on MNIST's training split (once; it is kept in runs/judge), says how good it is
on the test split, and asks the model for every digit in turn: the share that the classifier reads
as what was asked for. Needs all of MNIST.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ae_toolkit import load
from ae_toolkit.console import track
from ae_toolkit.data.examples import load_data
from ae_toolkit.inference.model import Model
from ae_toolkit.randomness import Source

KEPT = Path("runs/judge/classifier.safetensors")

SHIFT = 2  #: pixels by which training digits are moved


def make_classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(128 * 9, 10),
    )  # fmt: skip


def digits(model: Model, split: str) -> tuple[Tensor, Tensor]:
    """Prepared pictures `(N, 1, 28, 28)` and their classes."""
    recipe = model.recipe.with_({"data": {"name": "mnist"}})
    examples = load_data(recipe, model.modality, split)
    return model.modality.prepare(examples.y), examples.labels["digit"]


def train(model: Model, *, epochs: int, batch_size: int = 128) -> nn.Module:
    torch.manual_seed(0)
    classifier = make_classifier()
    y, labels = digits(model, "train")
    steps = epochs * (len(y) // batch_size)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    source = Source(0, "judge")
    for step in track(range(steps), "training the judge"):
        epoch, at = divmod(step, len(y) // batch_size)
        if at == 0:
            order = source.permutation(len(y), epoch)
        index = order[at * batch_size : (at + 1) * batch_size]
        moved = shifted(y[index])
        loss = F.cross_entropy(classifier(moved), labels[index])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return classifier.eval()


def shifted(y: Tensor) -> Tensor:
    """Each picture moved on its own, by whole pixels; borders are black, so that they wrap."""
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2, len(y), 1))
    rows = (torch.arange(y.shape[2]) + down) % y.shape[2]
    columns = (torch.arange(y.shape[3]) + right) % y.shape[3]
    return y[torch.arange(len(y))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]


@torch.inference_mode()
def read(classifier: nn.Module, y: Tensor) -> Tensor:
    """The classes `(N,)` that the judge reads."""
    return torch.cat([classifier(rows).argmax(1) for rows in y.split(1000)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mnist-cvae")
    parser.add_argument("--num", type=int, default=1000, help="digits of each class")
    parser.add_argument("--epochs", type=int, default=8, help="of the classifier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    model = load(options.model)
    classifier = make_classifier()
    if KEPT.exists():
        classifier.load_state_dict(load_file(KEPT))
        classifier.eval()
    else:
        classifier = train(model, epochs=options.epochs)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        save_file(classifier.state_dict(), KEPT)
    y, labels = digits(model, "test")
    report = {
        "model": options.model,
        "judge_accuracy": float((read(classifier, y) == labels).float().mean()),
        "num": 10 * options.num,
        "seed": options.seed,
        "as_asked": {},
    }
    for digit in range(10):
        codes = model.sample_codes(options.num, {"digit": digit}, seed=options.seed)
        made = model.decode_tensor(codes, {"digit": digit})
        report["as_asked"][digit] = float((read(classifier, made) == digit).float().mean())
    report["as_asked"]["all"] = sum(report["as_asked"].values()) / 10
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"the judge reads {report['judge_accuracy']:.2%} of the test digits rightly")
    for digit, share in report["as_asked"].items():
        print(f"{digit!s:4} {share:.1%} read as asked")


if __name__ == "__main__":
    main()
