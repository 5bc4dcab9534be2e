"""What people do with pictures of their own: any size, any mode, any light; restored and walked."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ae_image.datasets import mnist_sample
from ae_image.digits import (
    AT_BORDER,
    NO_INK,
    SEVERAL_DIGITS,
    as_digit,
    decibels,
    in_frame,
    is_explained,
    is_form,
    restore,
)
from ae_image.modality import Image
from conftest import SAMPLES
from matplotlib.cbook import get_sample_data
from PIL import Image as Pictures
from PIL import ImageChops, ImageDraw, ImageFilter, ImageOps

from ae_toolkit import Model, UsageError, load
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.inference.latent import quantiles
from ae_toolkit.inference.tiling import apply_tiled
from ae_toolkit.parts.corruption import Downsample
from ae_toolkit.randomness import Source
from ae_toolkit.recipe import named
from ae_toolkit.runs.checkpoint import Config
from ae_toolkit.testing.contracts import check_part

THREE = SAMPLES / "digit-3.png"
STEP = Source(0, "test").step(0)


def test_downsampling_averages() -> None:
    y = torch.arange(16.0).reshape(1, 1, 4, 4)
    x, target = Downsample(factor=2)(y, y, None, STEP)
    assert x.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]] and target is y
    with pytest.raises(ValueError, match="does not divide"):
        Downsample(factor=3).out_shape((1, 28, 28))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_skips_are_levels(levels: int) -> None:
    encoder = {"widths": [4, 8, 8], "blocks": 1, "patch": 1, "levels": levels}
    decoder = {"widths": [8, 8, 4], "blocks": 1, "patch": 1}
    bottleneck = {"spatial": True, "z_dim": 4}
    parts = {
        "encoder": ("resnet", encoder),
        "bottleneck": ("deterministic", bottleneck),
        "decoder": ("resnet", decoder),
    }
    changes = {kind: {"name": name, **arguments} for kind, (name, arguments) in parts.items()}
    for kind, (name, arguments) in parts.items():
        check_part(kind, name, arguments=arguments, changes=changes)


def make(name: str) -> Autoencoder:
    recipe = named(name)
    torch.manual_seed(0)
    return Autoencoder(recipe, modality=recipe.make("modality")).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (13, 70), (3, 700)])
@pytest.mark.parametrize("name", ["mnist-ae", "mnist-denoise", "mnist-superres-4x"])
def test_any_size_goes_through(name: str, size: tuple[int, int]) -> None:
    net = make(name)
    factor = 28 // net.in_shape[1]
    y = net.translate(torch.rand(1, 1, *size), torch.empty(1, 0), STEP)
    assert y.shape == (1, 1, factor * size[0], factor * size[1])


@pytest.mark.parametrize("name", ["mnist-denoise", "mnist-superres"])
def test_pieces_are_the_whole(name: str) -> None:
    net, c = make(name), torch.empty(1, 0)
    x = torch.rand(1, 1, 40, 1200)
    whole = net.translate(x, c, STEP)
    pieces = apply_tiled(lambda piece: net.translate(piece, c, STEP), x)
    assert torch.allclose(whole, pieces, atol=1e-5)


def test_noise_is_pushed_to_every_level() -> None:
    recipe = named("mnist-ae").with_({"encoder.levels": 2})
    modality = recipe.make("modality")
    net = Autoencoder(recipe, modality=modality)
    model = Model(net, modality=modality, config=Config(recipe, {}, {}), folder=Path())
    noise = torch.randn(2, model.z_dim)
    assert len(model.z_shapes) == 2 and torch.equal(model.prior_transform(noise), noise)


def test_dense_models_have_one_size() -> None:
    assert not make("mnist-2d").any_size and not make("mnist-dense-ae").any_size


def photograph(digit: Path, *, size: tuple[int, int] = (300, 400)) -> Pictures.Image:
    """A digit written dark on unevenly lit paper, off the centre."""
    ink = Pictures.open(digit).resize((140, 140), Pictures.Resampling.BICUBIC)
    sheet = np.zeros((size[1], size[0]))
    sheet[30:170, 20:160] = np.asarray(ink) / 255
    light = np.linspace(0.55, 1, size[0])[None] * np.linspace(0.8, 1, size[1])[:, None]
    noise = np.random.default_rng(0).normal(0, 4, sheet.shape)
    values = (235 - 190 * sheet) * light + noise
    return Pictures.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("digit", [3, 5, 8])
def test_photograph_becomes_the_digit(digit: int) -> None:
    """MNIST's own normalisation undoes the photograph: nearly the digit that was pasted in."""
    original = SAMPLES / f"digit-{digit}.png"
    steps = as_digit(photograph(original)).steps
    assert list(steps) == ["inverted", "cropped", "centred"]
    result = steps["centred"]
    assert is_form(result)
    a, b = (
        np.asarray(p.filter(ImageFilter.GaussianBlur(1)), dtype=float).ravel()
        for p in (Pictures.open(original), result)
    )
    assert np.corrcoef(a, b)[0, 1] > 0.85


def test_blank_photographs_are_survived() -> None:
    for size in ((1, 1), (1, 5000), (300, 300)):
        framed = as_digit(Pictures.new("RGB", size, "white"))
        assert framed.steps["centred"].size == (28, 28) and framed.doubts == [NO_INK]


def on_paper(*digits: np.ndarray, size: int = 200, lines: int = 0, desk: int = 0) -> Pictures.Image:
    """Digits `(28, 28)` written side by side on unevenly lit paper.

    Args:
        digits: of MNIST.
        size: of each, in pixels.
        lines: dark ones, from side to side.
        desk: pixels at the left and above that are no paper.
    """
    row = Pictures.fromarray(np.concatenate(digits, 1))
    ink = np.pad(
        np.asarray(row.resize((len(digits) * size, size), Pictures.Resampling.BICUBIC)), 40
    )
    sheet = 230 - 0.75 * ink
    for i in range(lines):
        y = (2 * i + 1) * sheet.shape[0] // (2 * lines)
        sheet[y : y + 3] = np.minimum(sheet[y : y + 3], 90)
    sheet = np.pad(sheet, ((desk, 0), (desk, 0)), constant_values=60)
    light = np.linspace(0.7, 1, sheet.shape[1])
    noise = np.random.default_rng(0).normal(0, 3, sheet.shape)
    return Pictures.fromarray((sheet * light + noise).clip(0, 255).astype(np.uint8))


def digits(num: int) -> list[np.ndarray]:
    return [*mnist_sample(modality=Image(), split="test").y[:num, 0].numpy()]


def test_what_is_no_single_digit_is_spoken_of() -> None:
    """Also of thick and of thin strokes, and with no false alarm in thirty digits."""
    some = digits(30)
    alarms = [
        as_digit(on_paper(digit, size=120 + 20 * (i % 9))).doubts for i, digit in enumerate(some)
    ]
    assert sum(map(bool, alarms)) == 0
    for first, second in zip(some[::6], some[3::6], strict=True):
        assert as_digit(on_paper(first, second)).doubts == [SEVERAL_DIGITS]
        row = Pictures.fromarray(np.concatenate([first, second, first], 1))  # as small as MNIST is
        assert as_digit(row).doubts == [SEVERAL_DIGITS]
        assert as_digit(on_paper(first, lines=6)).doubts == [AT_BORDER]
        assert as_digit(on_paper(first, desk=50)).doubts == [AT_BORDER]
        sheet = Pictures.new("L", (500, 500), 40)  # of paper, all of it on a desk
        sheet.paste(on_paper(first), (120, 120))
        assert as_digit(sheet).doubts == [AT_BORDER]
        assert as_digit(on_paper(np.zeros_like(first))).doubts == [NO_INK]
    for digit in (3, 5, 8):
        large = Pictures.open(SAMPLES / f"digit-{digit}.png").resize((280, 280))
        assert (
            not as_digit(large).doubts
            and not as_digit(photograph(SAMPLES / f"digit-{digit}.png")).doubts
        )


def test_a_reconstruction_goes_back_to_where_the_ink_was() -> None:
    paper = Pictures.new("L", (300, 400), "white")
    ink = Pictures.open(THREE).resize((140, 140), Pictures.Resampling.BICUBIC)
    paper.paste(ImageOps.invert(ink), (100, 30))
    framed = as_digit(paper)
    back = framed.put_back(framed.steps["centred"])
    assert decibels(in_frame(paper), back) > 21
    assert decibels(in_frame(paper), ImageChops.offset(back, 20, 0)) < 17


def test_both_errors_and_all_doubts_are_told(ae, tmp_path: Path) -> None:
    on_paper(*digits(2)).save("two.png")
    Pictures.new("L", (28, 28)).save("black.png")
    told = ae("image", "reconstruct", "two.png", "black.png", THREE, "-o", "x.png").stderr
    assert told == f"two.png: {SEVERAL_DIGITS}\nblack.png: {NO_INK}\n"
    result = ae("image", "reconstruct", "two.png", "-o", "x.png").stdout
    errors = re.search(r"PSNR ([\d.]+) dB from what the model saw, ([\d.]+) dB from your", result)
    assert errors and float(errors[1]) > float(errors[2]) + 3
    result = ae("image", "reconstruct", "two.png", "black.png", "-o", "x.png").stdout
    assert errors[0] in result  # what has no ink has no part in it
    assert "PSNR" not in ae("image", "reconstruct", "black.png", "-o", "x.png").stdout
    assert SEVERAL_DIGITS in ae("image", "traverse", "two.png", "-n", 1, "-o", "y.png").stderr
    assert SEVERAL_DIGITS in ae("image", "interpolate", THREE, "two.png", "-o", "z.png").stderr


def test_pictures_unlike_the_training_data_are_spoken_of(ae, tmp_path: Path) -> None:
    with get_sample_data("grace_hopper.jpg") as file, Pictures.open(file) as picture:
        picture.convert("L").crop((150, 60, 310, 220)).save("photo.png")
    for verb in ("denoise", "upscale"):
        told = ae("image", verb, "photo.png", "-o", "out.png", "--overwrite").stderr
        assert "photo.png: does not look like what 'mnist-" in told
    rng = np.random.default_rng(0)
    row = np.concatenate(digits(8), 1) / 255
    noisy = (row + rng.normal(0.5, 0.5, row.shape)).clip(0, 1)
    Pictures.fromarray((255 * noisy).astype(np.uint8)).save("noisy.png")
    Pictures.fromarray((255 * (1 - noisy)).astype(np.uint8)).save("paper.png")
    for arguments in (
        ("denoise", "noisy.png", "paper.png", THREE),
        ("upscale", THREE, "--figure", "figure.png"),
        ("upscale", THREE, "--factor", 4),
    ):
        assert ae("image", *arguments, "--overwrite").stderr == "", arguments


def test_explained_are_faithful_results_only() -> None:
    x = Pictures.effect_noise((64, 64), 80)
    assert is_explained(x, x) and is_explained(x, x.resize((128, 128), Pictures.Resampling.BOX))
    assert not is_explained(x, x.resize((128, 128)).point(lambda value: value // 2))
    stripes = Pictures.linear_gradient("L").resize((64, 64))
    assert not is_explained(stripes, stripes.rotate(90)) and is_explained(stripes, stripes)
    assert is_explained(x, Pictures.new("L", (64, 64))), "noise is nothing to be explained"


def test_codes_that_no_prior_was_learned_for_are_spoken_of(ae, tmp_path: Path) -> None:
    said, out = "charges its codes no rate", ("-o", "a.png")
    for verb in (("sample", "-n", 4), ("grid", "-n", 2), ("traverse", "-n", 1, "--steps", 2)):
        assert said in ae("image", *verb, "--model", "mnist-ae", *out).stderr
    assert said not in ae("image", "sample", "-n", 4, *out).stderr


def test_paper_and_colour_come_back_as_they_were() -> None:
    seen = []

    def run(picture: Pictures.Image) -> Pictures.Image:
        seen.append(picture)
        return picture

    paper = Pictures.new("RGB", (40, 30), "white")
    ImageDraw.Draw(paper).rectangle((5, 5, 9, 20), fill=(200, 30, 30))
    back = restore(run, paper, channels=1)
    assert np.array_equal(np.asarray(back), np.asarray(paper))
    assert len(seen) == 3 and np.asarray(seen[0])[0, 0] == 0


def hostile(folder: Path) -> dict[str, Path]:
    """Pictures as they lie about: all of them are to go through."""
    digit = Pictures.open(THREE).resize((33, 21))
    files = {}
    for name, mode in (("alpha", "RGBA"), ("palette", "P"), ("grey-alpha", "LA"), ("bit", "1")):
        files[name] = folder / f"{name}.png"
        digit.convert(mode).save(files[name])
    files["cmyk"] = folder / "cmyk.jpg"
    digit.convert("CMYK").save(files["cmyk"])
    files["deep"] = folder / "deep.png"
    Pictures.fromarray(np.asarray(digit).astype(np.uint16) * 257).save(files["deep"])
    files["turned"] = folder / "turned.jpg"
    exif = digit.getexif()
    exif[0x0112] = 6
    digit.save(files["turned"], exif=exif)
    files["animated"] = folder / "animated.webp"
    digit.save(files["animated"], save_all=True, append_images=[digit.rotate(90)])
    for width in (1, 5000):
        files[f"1x{width}"] = folder / f"line-{width}.png"
        Pictures.new("L", (width, 1), 90).save(files[f"1x{width}"])
    return files


VERBS = {
    "reconstruct": ["{}"],
    "denoise": ["{}"],
    "upscale": ["{}"],
    "interpolate": ["{}", str(THREE), "--steps", "3"],
    "traverse": ["{}", "-n", "2", "--steps", "3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_hostile_pictures_go_through(verb: str, ae, tmp_path: Path) -> None:
    for name, path in hostile(tmp_path).items():
        arguments = [str(path) if a == "{}" else a for a in VERBS[verb]]
        ae("image", verb, *arguments, "-o", f"out-{name}.png")
        with Pictures.open(tmp_path / f"out-{name}.png") as result:
            result.load()
        if verb in ("denoise", "upscale"):
            with Pictures.open(path) as before:
                width, height = before.size[:: -1 if name == "turned" else 1]
            factor = 2 if verb == "upscale" else 1
            assert result.size == (factor * width, factor * height), name


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_picture_is_refused(verb: str, ae, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    whole = THREE.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, code in (("text.png", 1), ("cut.png", 1), ("missing.png", 2)):
        arguments = [name if a == "{}" else a for a in VERBS[verb]]
        result = ae("image", verb, *arguments, "-o", "out.png", code=code)
        assert name in result.output
        assert not list(tmp_path.glob("out*"))


def test_too_large_a_result_is_refused(ae, tmp_path: Path) -> None:
    Pictures.new("L", (5000, 1000)).save(tmp_path / "wide.png")
    result = ae("image", "upscale", "wide.png", "--factor", "4", "-o", "big.png", code=1)
    assert "more than 51 million pixels" in result.output and not (tmp_path / "big.png").exists()


def test_denoising_helps(ae, tmp_path: Path) -> None:
    clean = np.asarray(Pictures.open(THREE)) / 255
    noise = np.random.default_rng(0).normal(0.5, 0.5, clean.shape)
    noisy = (clean + noise).clip(0, 1)
    Pictures.fromarray((255 * noisy).astype(np.uint8)).save(tmp_path / "noisy.png")
    ae("image", "denoise", "noisy.png", "-o", "clean.png", "--figure", "both.png")
    result = np.asarray(Pictures.open(tmp_path / "clean.png")) / 255
    assert ((result - clean) ** 2).mean() < 0.1 * ((noisy - clean) ** 2).mean()
    assert (tmp_path / "both.png").is_file()


@pytest.mark.parametrize(("factor", "gain"), [(2, 3.0), (4, 1.5)])
def test_upscaling_beats_bicubic(factor: int, gain: float, ae, tmp_path: Path) -> None:
    """On whole bundled digits, by the squared error."""
    original = Pictures.open(THREE)
    small = original.resize((28 // factor, 28 // factor), Pictures.Resampling.BOX)
    small.save(tmp_path / "small.png")
    ae("image", "upscale", "small.png", "--factor", factor, "-o", "big.png")
    bicubic = small.resize((28, 28), Pictures.Resampling.BICUBIC)
    assert (tmp_path / "big.figure.png").is_file()
    errors = [
        ((np.asarray(p, dtype=float) - np.asarray(original)) ** 2).mean()
        for p in (bicubic, Pictures.open(tmp_path / "big.png"))
    ]
    assert errors[0] > gain * errors[1]


def test_a_figure_beside_replaces_only_what_is_ours(ae, tmp_path: Path) -> None:
    Pictures.new("L", (20, 14)).save("small.png")
    upscale = ("image", "upscale", "small.png", "-o", "big.jpg")
    assert "big.figure.png: before and after" in ae(*upscale).output
    ae(*upscale)
    Path("big.figure.png").write_bytes(b"holiday")
    assert "big.figure.png: exists already" in ae(*upscale, code=2).output
    assert Path("big.figure.png").read_bytes() == b"holiday"
    ae(*upscale, "--figure", "big.figure.png")  # which is named


@pytest.mark.parametrize("verb", ["denoise", "upscale"])
def test_many_pictures_go_into_a_folder(verb: str, ae, tmp_path: Path) -> None:
    (tmp_path / "in/deeper").mkdir(parents=True)
    for name in ("a.png", "deeper/b.png"):
        Pictures.new("L", (20, 14)).save(tmp_path / "in" / name)
    (tmp_path / "in/bad.png").write_bytes(b"bad")
    many = ("image", verb, "in", THREE)
    listed = ae(*many, "-o", "out", code=1, failed=False).output
    assert "out: 3 pictures" in listed and "skipped 1 of 4 files" in listed
    assert "in/bad.png: is not a picture" in listed
    assert sorted(os.listdir("out")) == ["a.png", "b.png", "digit-3.png"]
    factor = 2 if verb == "upscale" else 1
    with Pictures.open("out/a.png") as result:
        assert result.size == (20 * factor, 14 * factor)
    ae(*many, "-o", "out", code=1, failed=False)  # its own results may be replaced
    Path("out/b.png").write_bytes(b"holiday")
    assert "out/b.png: exists already" in ae(*many, "-o", "out", code=2).output
    assert "-o names a folder" in ae(*many, "-o", "out.png", code=2).output
    assert "draws one picture" in ae(*many, "--figure", "both.png", code=2).output
    default = {"denoise": "clean", "upscale": "big"}[verb]
    ae("image", verb, "in/a.png", THREE)
    assert sorted(os.listdir(default)) == ["a.png", "digit-3.png"]


def test_many_reconstructions_are_one_sheet(ae, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        shutil.copy(THREE, f"in/{i:03}.png")
    Path("in/empty.png").write_bytes(b"")
    listed = ae("image", "reconstruct", "in", "-o", "x.png", code=1, failed=False).output
    assert "x.png: 12 reconstructions" in listed and "in/empty.png: is empty" in listed
    for i in range(12, 101):
        shutil.copy(THREE, f"in/{i:03}.png")
    assert "too many for one sheet" in ae("image", "reconstruct", "in", code=2).output
    assert sorted(os.listdir()) == ["in", "x.png"]


def test_demonstrations_need_no_file(ae, tmp_path: Path) -> None:
    for verb in ("reconstruct", "denoise", "upscale", "traverse"):
        ae("image", verb, "-o", f"{verb}.png")
        assert (tmp_path / f"{verb}.png").is_file()


def test_interpolation_is_a_strip_and_a_gif(ae, tmp_path: Path) -> None:
    photograph(SAMPLES / "digit-8.png").save(tmp_path / "photo.jpg")
    ae("image", "interpolate", THREE, "photo.jpg", "-o", "walk.png", "--steps", 5)
    with Pictures.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 8  # there and back
        frames = []
        for i in range(8):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("L")))
    assert all(np.array_equal(frames[i], frames[8 - i]) for i in (1, 2, 3))


def test_a_grid_rises_upwards_and_to_the_right(ae, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ae_image.figures.save_figure", lambda figure, path: drawn.append(figure))
    ae("image", "grid", "--model", "mnist-2d", "-n", 3)
    (axes,) = drawn[0].axes
    sheet, model = axes.images[0].get_array(), load("mnist-2d")
    low, middle, high = quantiles(3).tolist()
    for z, (row, column) in (((low, high), (0, 0)), ((high, middle), (1, 2))):
        expected = np.asarray(model.decode(torch.tensor([z]))[0])
        found = sheet[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        assert np.array_equal(found, expected)
    assert [label.get_text()[0] for label in axes.get_yticklabels()][::2] == ["1", "−"]
    assert [label.get_text()[0] for label in axes.get_xticklabels()][::2] == ["−", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("denoise x.png --model mnist-2d", "was not trained to denoise"),
        ("upscale x.png --model mnist-denoise", "was not trained to upscale"),
        ("upscale x.png --factor 3", "'3' is not one of '2', '4'"),
        ("traverse --axes 99", "there is no axis 99"),
        ("traverse --axes a,b", "takes numbers such as"),
        ("sample --model mnist-vae --label 7", "takes no label"),
        ("sample --model mnist-cvae --label 12", "a class from 0 to 9"),
        ("grid --model mnist-cvae", "add --label digit="),
        ("denoise x.png -o clean.txt", "choose a name that ends in"),
        ("reconstruct -o copies.xyz", "ends in .png"),
        ("interpolate x.png x.png -o walk.gif", "the animation goes beside it"),
        ("lesson -o lesson.pdf", "ends in .html"),
    ],
)
def test_misuse_is_one_sentence(arguments: str, words: str, ae, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(THREE.read_bytes())
    assert words in ae("image", *arguments.split(), code=2).output


def test_conditional_samples(ae, tmp_path: Path) -> None:
    result = ae("image", "sample", "--model", "mnist-cvae", "-n", 3, "-o", "styles.png")
    assert "3 styles of mnist-cvae in 10 classes" in result.output
    model = load("mnist-cvae")
    one, two = (np.asarray(model.sample(1, {"digit": k}, seed=1)[0], dtype=float) for k in (1, 0))
    assert abs(one - two).mean() > 5
    with pytest.raises(UsageError, match="neither given nor known"):
        model.sample(1)


@pytest.mark.slow
def test_lesson_is_a_page(ae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_DATA", str(SAMPLES.parents[1]))  # no data but what is bundled
    ae("image", "lesson", "--quick", "-o", "lesson.html")
    page = (tmp_path / "lesson.html").read_text()
    assert page.count("<section>") == 11 and page.count("data:image/png") >= 10
    assert "nan" not in page.partition("data:")[0].lower()
