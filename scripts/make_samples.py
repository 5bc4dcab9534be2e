"""Cuts the bundled samples out of MNIST and Fashion-MNIST: `python scripts/make_samples.py DATA`.

The first 100 (train) and 20 (test) digits of each class, in the order of the data set, on one
lossless sheet per split, plus three single test digits as files for examples; and the first two
test pictures of each kind of clothes, side by side.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import MNIST, FashionMNIST

COLUMNS = 40
SAMPLES = Path(__file__).parents[1] / "plugins/ae_image/samples"
SINGLE = (3, 5, 8)


def main(root: str) -> None:
    for split, each in (("train", 100), ("test", 20)):
        source = MNIST(root, train=split == "train", download=False)
        classes = source.targets.numpy()
        chosen = np.sort(np.concatenate([np.flatnonzero(classes == k)[:each] for k in range(10)]))
        digits = source.data.numpy()[chosen]
        sheet = digits.reshape(-1, COLUMNS, 28, 28).transpose(0, 2, 1, 3).reshape(-1, COLUMNS * 28)
        Image.fromarray(sheet).save(SAMPLES / f"mnist-{split}.png", optimize=True)
        lines = classes[chosen].reshape(-1, COLUMNS)
        text = "\n".join(" ".join(map(str, line)) for line in lines)
        (SAMPLES / f"mnist-{split}.txt").write_text(text + "\n")
        if split == "test":
            for k in SINGLE:
                first = Image.fromarray(digits[np.flatnonzero(classes[chosen] == k)[0]])
                first.save(SAMPLES / f"digit-{k}.png")

    clothes = FashionMNIST(root, train=False, download=False)
    classes = clothes.targets.numpy()
    # The first of every kind, then the second of every kind.
    chosen = [np.flatnonzero(classes == k)[turn] for turn in range(2) for k in range(10)]
    strip = np.concatenate(list(clothes.data.numpy()[chosen]), 1)
    Image.fromarray(strip).save(SAMPLES / "fashion-test.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
