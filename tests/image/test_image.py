"""Pictures as data: whatever a user's folder holds is brought into form, or refused by name."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ae_image.datasets import mnist_sample
from ae_image.digits import has_colour
from ae_image.modality import Image
from ae_image.pixels import flatten
from conftest import SAMPLES
from PIL import Image as Pictures

from ae_toolkit import RunError, UsageError, registry
from ae_toolkit.files import is_signed
from ae_toolkit.inference.evaluate import principal_axes
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import named
from ae_toolkit.testing.contracts import check_modality


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, (20, 33)])
def test_contract(channels: int, size: int | tuple[int, int], tmp_path: Path) -> None:
    pictures = [Pictures.new("RGB", (50, 40), "red"), Pictures.open(SAMPLES / "digit-3.png")]
    check_modality(Image(size=size, channels=channels, shift=2, rotate=5), pictures, tmp_path)


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("1", 1), ("L", 200), ("LA", (200, 255)), ("P", 5), ("RGB", (200, 200, 200)),
     ("RGBA", (200, 200, 200, 255)), ("CMYK", (0, 0, 0, 55)), ("I;16", 51400), ("I", 51400),
     ("F", 200.0), ("YCbCr", (200, 128, 128))],
)  # fmt: skip
def test_every_mode_of_picture(mode: str, colour: object, tmp_path: Path) -> None:
    for channels in (1, 3):
        y = Image(size=8, channels=channels).to_tensor(Pictures.new(mode, (13, 9), colour)).y
        assert y.dtype == torch.uint8 and y.shape == (channels, 8, 8)
        if mode not in ("1", "P"):
            assert (y.int() - 200).abs().max() <= 2, mode


def test_transparency_becomes_black() -> None:
    assert Image(size=8).to_tensor(Pictures.new("RGBA", (8, 8), (255, 255, 255, 0))).y.max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_ink_on_nothing_is_seen(mode: str) -> None:
    """Dark ink lies on white, as drawing programs mean it, and light ink on black."""
    for ink, ground in ((20, 255), (235, 0)):
        drawn = Pictures.new("LA", (40, 40), (0, 0))
        drawn.paste((ink, 255), (18, 5, 22, 35))
        if mode == "P":
            drawn = Pictures.new("P", (40, 40), 0)
            drawn.putpalette([0, 0, 0, ink, ink, ink])
            drawn.paste(1, (18, 5, 22, 35))
            drawn.info["transparency"] = 0
        else:
            drawn = drawn.convert(mode)
        for flat in ("L", "RGB"):
            values = np.asarray(flatten(drawn, flat))
            assert (values[0, 0] == ground).all() and (abs(values[20, 20] - ink) <= 1).all()


def test_exif_rotation_is_obeyed(tmp_path: Path) -> None:
    picture = Pictures.new("L", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert next(Image().read(tmp_path / "turned.jpg")).size == (10, 20)


@pytest.mark.parametrize("kind", ["EPS", "DDS", "BLP", "AVIF", "GIF", "TIFF", "PCX"])
def test_other_formats_are_no_pictures_whatever_their_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Pictures.new("P" if kind == "BLP" else "RGB", (8, 8)).save(path, kind)
    with pytest.raises(RunError, match="in the formats PNG, JPEG or WebP"):
        next(Image().read(path))


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, words in ((tmp_path / "pipe.png", "is a pipe"), (Path(os.devnull), "is a device")):
        with pytest.raises(RunError, match=words):
            next(Image().read(path))


def test_photographs_of_two_pictures_are_read(tmp_path: Path) -> None:
    """As many telephones write them: the first is meant."""
    one, two = (Pictures.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    one.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[two])
    assert next(Image().read(tmp_path / "phone.jpg")).getpixel((0, 0))[0] > 200


def test_a_photograph_of_endless_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    Pictures.new("RGB", (64, 64), "red").save(path, progressive=True)
    head, mark, scan = path.read_bytes().rpartition(b"\xff\xda")
    assert next(Image().read(path)).size == (64, 64)
    path.write_bytes(head + 200 * (mark + scan.removesuffix(b"\xff\xd9")) + b"\xff\xd9")
    with pytest.raises(RunError, match="more than 100 scans are refused"):
        next(Image().read(path))


def test_what_lies_behind_a_photograph_has_no_scans(tmp_path: Path) -> None:
    """As a film does, which some telephones add."""
    path, small = tmp_path / "motion.jpg", tmp_path / "small.jpg"
    Pictures.new("RGB", (8, 8), "red").save(small)
    exif = Pictures.Exif()
    exif[0x010E] = "\xff\xda\xff\xd9".encode("latin-1") * 200  # nor have its metadata
    Pictures.new("RGB", (64, 64), "red").save(path, exif=exif)
    path.write_bytes(path.read_bytes() + 200 * b"\xff\xda" + small.read_bytes())
    assert next(Image().read(path)).size == (64, 64)


def test_a_palette_with_more_colours_than_there_are_is_refused(tmp_path: Path) -> None:
    path, drawn = tmp_path / "p.png", Pictures.new("P", (28, 28))
    drawn.putpalette([0, 0, 0, 255, 255, 255])
    drawn.save(path, transparency=bytes(2))
    data, many = path.read_bytes(), b"tRNS" + bytes(300)
    at = data.index(b"tRNS") - 4
    chunk = struct.pack(">I", 300) + many + struct.pack(">I", zlib.crc32(many))
    path.write_bytes(data[:at] + chunk + data[at + 14 :])
    with pytest.raises(RunError, match=r"p.png: is cut short or broken \(palette index out of"):
        next(Image().read(path))


def test_16_bits_keep_their_greys_beside_what_is_transparent(tmp_path: Path) -> None:
    values = (16 * np.arange(64 * 64).reshape(64, 64)).astype(np.uint16)
    values[:8] = 1000  # what is transparent, and black as most of the ink is light
    Pictures.fromarray(values).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    at, key = data.index(b"IDAT") - 4, b"tRNS" + struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    (tmp_path / "a.png").write_bytes(data[:at] + chunk + data[at:])
    y = Image(size=64).to_tensor(next(Image().read(tmp_path / "a.png"))).y[0].numpy()
    assert (y[:8] == 0).all() and (abs(y[8:] - values[8:] / 257) <= 1).all()


def test_broken_metadata_are_no_matter(tmp_path: Path) -> None:
    path, exif = tmp_path / "picture.png", Pictures.Exif()
    exif[0x0131] = "a camera with a name"
    Pictures.new("L", (8, 8)).save(path, exif=exif.tobytes()[:20])
    assert next(Image().read(path)).size == (8, 8)


@pytest.mark.parametrize("work", [lambda p: flatten(p, "L"), has_colour])
@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGB"])
def test_large_pictures_are_not_in_memory_several_times(
    work: Callable[[Pictures.Image], object], mode: str
) -> None:
    picture = Pictures.new(mode, (2000, 2000), 60_000 if mode != "RGB" else (90, 90, 90))
    tracemalloc.start()
    try:
        work(picture)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 13 * 2000 * 2000  # bytes; beside it, the picture that Pillow holds


def test_what_is_written_says_who_wrote_it(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image().write([Pictures.new("L", (500, 500))] * 2, tmp_path / name)
        assert is_signed(tmp_path / name)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_extreme_shapes(size: tuple[int, int], fit: str) -> None:
    assert Image(fit=fit).to_tensor(Pictures.new("L", size, 255)).y.shape == (1, 28, 28)


def test_round_trip_is_exact() -> None:
    image, picture = Image(), Pictures.open(SAMPLES / "digit-5.png")
    y = image.to_tensor(picture).y
    back = image.from_tensor(image.prepare(y[None])[0])
    assert np.array_equal(np.asarray(back), np.asarray(picture))


def test_augmentation_moves_and_keeps() -> None:
    y = torch.zeros(16, 1, 28, 28)
    y[:, :, 12:16, 12:16] = 1
    moved = Image(shift=3, rotate=10, scale=0.1).augment(y, Source(0, "test").step(0))
    assert not torch.equal(moved[0], moved[1])
    assert torch.allclose(moved.sum((1, 2, 3)), y.sum((1, 2, 3)), rtol=0.35)
    assert Image().augment(y, Source(0, "test").step(0)) is y
    bar = torch.zeros(64, 1, 28, 28)
    bar[:, :, 8:20, 13:15] = 1

    def spread(**changes: float) -> list[float]:
        """How much the bar's middle, right and below, its tilt and its size differ."""
        drawn = Image(**changes).augment(bar, Source(0, "test").step(0))[:, 0]
        mass, place = drawn.sum((1, 2)), torch.arange(28.0) - 13.5
        right = (drawn.sum(1) @ place) / mass
        below = (drawn.sum(2) @ place) / mass
        tilt = (drawn * (place[:, None] - below[:, None, None]) * place).sum((1, 2)) / mass
        return [float(values.std()) for values in (right, below, tilt, mass)]

    for i, changes in enumerate(({"shift": 3.0}, {"shift": 3.0}, {"rotate": 20.0}, {"scale": 0.2})):
        assert spread(**changes)[i] > 1, changes
    assert max(spread(rotate=20.0)[:2] + spread(scale=0.2)[:3]) < 0.1


def test_metrics_are_what_they_are_called() -> None:
    y = torch.zeros(2, 1, 4, 4)
    found = Image(size=4).metrics(y, torch.stack([y[0] + 0.1, y[0] + 0.5]), None)
    assert found["mse"].tolist() == pytest.approx([0.01, 0.25])
    assert found["psnr"].tolist() == pytest.approx([20, 6.0206], rel=1e-4)
    assert found["pixel_bce"].tolist() == pytest.approx([0.10536, 0.69315], rel=1e-4)


def test_pictures_are_cropped_padded_or_stretched() -> None:
    wide = Pictures.new("L", (40, 20), 100)
    wide.paste(255, (10, 0, 30, 20))  # its middle square
    found = {
        fit: Image(size=20, fit=fit).to_tensor(wide).y[0] for fit in ("crop", "pad", "stretch")
    }
    assert (found["crop"][:, 1:-1] > 240).all()
    assert (found["pad"][:4] == 0).all() and (found["pad"][8:12, 8:12] == 255).all()
    assert (found["stretch"][:, :2] == 100).all() and (found["stretch"][:, 9:11] == 255).all()


def test_bundled_digits_are_digits() -> None:
    image = Image(labels={"digit": 10})
    for split, num in (("train", 1000), ("test", 200)):
        examples = mnist_sample(modality=image, split=split)
        assert examples.y.shape == (num, 1, 28, 28)
        assert torch.bincount(examples.labels["digit"]).tolist() == [num // 10] * 10
        border = examples.y.clone()
        border[:, :, 2:-2, 2:-2] = 0
        assert border.float().mean() < 1, "the sheet was cut in the wrong places"


def test_few_digits_have_principal_axes() -> None:
    """Of fewer rows than columns, on one core too, where LAPACK is not always at its best."""
    pixels = mnist_sample(modality=Image(), split="test").y[:30].flatten(1).float() / 255
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = principal_axes(pixels, 2)
    finally:
        torch.set_num_threads(threads)
    assert found.var(0)[0] > found.var(0)[1] > pixels.var(0).max()
    assert found.T.corrcoef()[0, 1].abs() < 1e-4


def test_bundled_digits_are_mnists(real_mnist: Path) -> None:
    recipe = named("mnist-2d")
    whole = recipe.make("dataset", modality=recipe.make("modality"), split="test")
    sample = mnist_sample(modality=Image(labels={"digit": 10}), split="test")
    known = {row.numpy().tobytes() for row in whole.y}
    assert all(row.numpy().tobytes() in known for row in sample.y)
    assert len(whole) == 10_000


def test_data_sets_of_another_size(real_mnist: Path) -> None:
    for name in ("mnist-2d", "fashion-2d"):
        recipe = named(name).with_({"modality.size": [14, 20], "modality.channels": 3})
        examples = recipe.make("dataset", modality=recipe.make("modality"), split="test")
        assert examples.y.shape == (10_000, 3, 14, 20)


@pytest.mark.parametrize("channels", [1, 3])
def test_data_sets_through_torchvision(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey and colour, by stand-ins with torchvision's interface: nothing is downloaded here."""
    import torchvision.datasets

    class Stand:
        def __init__(self, root: object, train: bool, download: bool):
            num = 6 if train else 4
            self.data: object = torch.full((num, 28, 28), 90, dtype=torch.uint8)
            self.targets: object = torch.arange(num)

    class Colour(Stand):
        def __init__(self, root: object, train: bool, download: bool):
            super().__init__(root, train, download)
            self.data = np.full((6 if train else 4, 32, 32, 3), 90, dtype=np.uint8)
            self.targets = list(range(6 if train else 4))

    monkeypatch.setattr(torchvision.datasets, "KMNIST", Stand)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Colour)
    labels = {"character": 10, "object": 10}
    for name in ("kmnist", "cifar10"):
        modality = Image(size=28, channels=channels, labels=labels)
        examples = registry.datasets.get(name)(modality=modality, split="test")
        assert examples.y.shape == (4, channels, 28, 28) and examples.y.dtype == torch.uint8
        assert (examples.y == 90).all() and len(examples.labels) == 1


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def offline(root: object, train: bool, download: bool) -> None:
        assert download
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setenv("AE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    recipe = named("mnist-2d")
    with pytest.raises(RunError) as caught:
        recipe.make("dataset", modality=recipe.make("modality"), split="train")
    for words in ("cannot be downloaded", "set AE_DATA", "--data mnist-sample"):
        assert words in str(caught.value)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    monkeypatch.undo()
    monkeypatch.setenv("AE_DATA", str(tmp_path))
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"\x00\x00\x08\x03\x00\x00")
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"")
    with pytest.raises(RunError, match=r"'mnist': the files are broken .*MNIST/raw"):
        recipe.make("dataset", modality=recipe.make("modality"), split="train")


def test_data_of_another_type_is_refused() -> None:
    from ae_toolkit.testing.contracts import Tensors

    with pytest.raises(UsageError, match="holds pictures"):
        mnist_sample(modality=Tensors(), split="test")
