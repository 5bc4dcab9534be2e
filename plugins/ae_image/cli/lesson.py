"""`ae image lesson`: what a lesson on autoencoders claims, shown by running it, with numbers.

Each chapter is a function from a `Lesson` (the digits, the models) to a `Chapter`; the page is
their order. Figures are embedded, so that the page is one file.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image as Pictures
from torch import Tensor

from ae_image.cli.inputs import data_of, load_image_model
from ae_image.figures import PLOT_STYLE, grid_figure, rows_figure, scatter_figure
from ae_image.pixels import Picture
from ae_toolkit import Examples, Model, RunError
from ae_toolkit.console import Bar
from ae_toolkit.data.examples import Split
from ae_toolkit.figures import FIGURE_DPI
from ae_toolkit.inference import latent
from ae_toolkit.inference.evaluate import neighbour_accuracy, principal_axes

NUM_SHOWN = 10  #: pictures in a row
NUM_KNOWN = 10_000  #: training digits that others are read by, at most


class Chapter(NamedTuple):
    """One claim: its title, what is said, what was measured, and what it looks like."""

    title: str
    text: str
    numbers: Mapping[str, str]
    figures: Sequence[Figure]


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
    seed: int = 0
    device: str = "auto"
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
    def known(self) -> Examples:
        """Training digits, which others are read by."""
        return self._digits("train", NUM_KNOWN)

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

    def read(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """Digits `(N, 1, 28, 28)` as the ten nearest training digits vote for them.

        Returns:
            Classes `(N,)`, and the squared distances to the nearest training digit `(N,)`.
        """
        known = self.model("mnist-2d").modality.prepare(self.known.y).flatten(1)
        near = torch.cdist(made.flatten(1), known).topk(10, largest=False)
        return self.known.labels["digit"][near.indices].mode(1).values, near.values[:, 0].square()

    @cached_property
    def reader(self) -> dict[str, str]:
        """How often that reads real test digits rightly: its errors are in all that it reads."""
        right = (self.read(self.y)[0] == self.classes).float().mean()
        return {"real test digits, read in the same way": f"{float(right):.1%} rightly"}

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


def chapters() -> tuple[Callable[[Lesson], Chapter], ...]:
    return (
        reconstruction, random_codes, two_numbers, noisy_codes, denoising, upscaling, latent_space,
        rate, conditional,
    )  # fmt: skip


def reconstruction(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-ae")
    made = lesson.through(model, lesson.y)
    metrics = means(model, lesson.y, made)
    perfect = means(model, lesson.y, lesson.y)
    return Chapter(
        "An autoencoder copies through a narrow place",
        "784 pixels go through a code of 4×4×8 numbers and come back. The binary cross-entropy of "
        "grey pixels never reaches zero: even a perfect copy pays for its greys.",
        {
            "cross-entropy per pixel": f"{metrics['pixel_bce']:.4f}",
            "of a perfect copy": f"{perfect['pixel_bce']:.4f}",
            "PSNR": f"{metrics['psnr']:.1f} dB",
        },
        [rows_figure({"original": pictures(lesson.y[lesson.shown]),
                      "copy": pictures(made[lesson.shown])})],
    )  # fmt: skip


def random_codes(lesson: Lesson) -> Chapter:
    plain, vae = lesson.model("mnist-ae"), lesson.model("mnist-vae")
    num = 200
    codes = plain.encode_examples(lesson.test).cpu()
    noise = torch.randn(num, codes.shape[1], generator=torch.Generator().manual_seed(lesson.seed))
    from_plain = plain.decode_tensor(codes.mean(0) + codes.std(0) * noise)
    from_vae = vae.decode_tensor(vae.sample_codes(num, seed=lesson.seed))
    half = len(lesson.y) // 2
    reference = lesson.y[half:]
    return Chapter(
        "Random codes of a plain autoencoder are not digits; those of a VAE are",
        "The plain autoencoder's codes are drawn with the mean and the spread that each of its "
        "numbers has over the test digits, which is more than it could ask for; what lies between "
        "codes means nothing to it. The VAE was trained to make its codes fill the prior. Measured "
        "by the squared distance to the nearest real digit, beside that of other real digits.",
        {
            "plain autoencoder": f"{distance(from_plain, reference):.1f}",
            "VAE": f"{distance(from_vae, reference):.1f}",
            "real digits": f"{distance(lesson.y[:half][:num], reference):.1f}",
        },
        [
            rows_figure(
                {"plain": pictures(from_plain[:NUM_SHOWN]), "VAE": pictures(from_vae[:NUM_SHOWN])}
            )
        ],
    )


def two_numbers(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-2d")
    codes = model.encode_examples(lesson.test).cpu()
    made = model.decode_tensor(codes)
    flat = lesson.y.flatten(1)
    pca = principal_axes(flat, 2)
    axes = torch.linalg.lstsq(pca, flat - flat.mean(0)).solution
    projected = (pca @ axes + flat.mean(0)).clamp(0, 1).reshape(lesson.y.shape)
    accuracy = [neighbour_accuracy(points, lesson.classes) for points in (codes, pca)]
    error = [float((x - lesson.y).square().mean()) for x in (made, projected)]
    panels = {
        f"VAE: {accuracy[0]:.0%} by neighbours": (codes.numpy(), "$z_0$", "$z_1$"),
        f"PCA: {accuracy[1]:.0%} by neighbours": (pca.numpy(), "first axis", "second axis"),
    }
    return Chapter(
        "Two numbers say more than two principal components",
        "Each test digit as two numbers: those of a VAE, and its coordinates on the two principal "
        "axes of these very digits. The accuracy is that of the ten nearest neighbours.",
        {
            "accuracy, VAE": f"{accuracy[0]:.1%}",
            "accuracy, PCA": f"{accuracy[1]:.1%}",
            "squared error per pixel, VAE": f"{error[0]:.4f}",
            "squared error per pixel, PCA": f"{error[1]:.4f}",
        },
        [scatter_figure(panels, lesson.classes.numpy(), name="digit"),
         rows_figure({name: pictures(x[lesson.shown]) for name, x in
                      (("original", lesson.y), ("VAE", made), ("PCA", projected))})],
    )  # fmt: skip


def noisy_codes(lesson: Lesson) -> Chapter:
    spreads = (0.0, 0.5, 1.0, 1.5)
    rows, numbers = {}, {}
    for name in ("mnist-ae", "mnist-vae"):
        model = lesson.model(name)
        codes = model.encode_examples(lesson.test).cpu()
        noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(lesson.seed))
        for spread in spreads:
            made = model.decode_tensor(codes + spread * codes.std(0) * noise)
            read, far = lesson.read(made)
            kept = float((read == lesson.classes).float().mean())
            rows[f"{name[6:].upper()}, {spread:g}σ"] = pictures(made[lesson.shown])
            numbers[f"{name}, noise of {spread:g}σ"] = (
                f"{kept:.0%} read as they were; {float(far.mean()):.0f} from the nearest real digit"
            )
    return Chapter(
        "Noise added to codes",
        "Noise of so many standard deviations of each code number. Digits are read by the ten "
        f"nearest of {len(lesson.known):,} training digits; beside it stands the squared distance "
        "to the nearest of them. A plain autoencoder's digits fall to pieces where they stand; a "
        "VAE's drift farther towards other digits, and stay nearer to real ones.",
        numbers | lesson.reader,
        [rows_figure(rows)],
    )


def denoising(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-denoise")
    x = lesson.corrupted(model, lesson.y)
    made = lesson.through(model, x)
    clothes = bundled_clothes()
    noisy_clothes = lesson.corrupted(model, clothes)
    made_clothes = lesson.through(model, noisy_clothes)
    before, after = means(model, lesson.y, x), means(model, lesson.y, made)
    garments = means(model, clothes, made_clothes)
    return Chapter(
        "Denoising works on what was learned, and on nothing else",
        "Noise N(0.5, 0.5) is added and cut to the range of pixels. The same model, given "
        "clothes of Fashion-MNIST, draws them with the strokes of digits: an autoencoder is "
        "specific to its data.",
        {
            "noisy digits": f"{before['psnr']:.1f} dB",
            "denoised digits": f"{after['psnr']:.1f} dB, "
            f"cross-entropy {after['pixel_bce']:.4f} per pixel",
            "denoised clothes": f"{garments['psnr']:.1f} dB",
        },
        [
            rows_figure({name: pictures(t[lesson.shown]) for name, t in
                         (("original", lesson.y), ("noisy", x), ("denoised", made))}),
            rows_figure({name: pictures(t[:NUM_SHOWN]) for name, t in
                         (("original", clothes), ("noisy", noisy_clothes),
                          ("denoised", made_clothes))}),
        ],
    )  # fmt: skip


def upscaling(lesson: Lesson) -> Chapter:
    numbers, figures = {}, []
    for factor, name in ((2, "mnist-superres"), (4, "mnist-superres-4x")):
        model = lesson.model(name)
        x = lesson.corrupted(model, lesson.y)
        made = lesson.through(model, x)
        rows = {"small": x, **model.modality.baselines(x, lesson.y)}
        for simple, guess in list(rows.items())[1:]:
            quality = means(model, lesson.y, guess)["psnr"]
            numbers[f"{factor}×, {simple}"] = f"{quality:.1f} dB"
        numbers[f"{factor}×, learned"] = f"{means(model, lesson.y, made)['psnr']:.1f} dB"
        rows |= {"learned": made, "original": lesson.y}
        shown = {key: pictures(t[lesson.shown]) for key, t in rows.items() if key != "bilinear"}
        figures.append(rows_figure(shown, cell=(28, 28)))
    noise = torch.rand(NUM_SHOWN, 1, 7, 7, generator=torch.Generator().manual_seed(lesson.seed))
    dreamt = lesson.through(lesson.model("mnist-superres-4x"), noise)
    shown = {"noise": pictures(noise), "enlarged": pictures(dreamt)}
    figures.append(rows_figure(shown, cell=(28, 28)))
    return Chapter(
        "Upscaling invents what is likely",
        "Digits shrunk by averaging, and enlarged again. At 4×, a digit has 49 pixels left, and "
        "the model fills in the strokes that it knows, even where it is fed noise (last figure).",
        numbers,
        figures,
    )


def latent_space(lesson: Lesson) -> Chapter:
    model, side = lesson.model("mnist-2d"), 20
    square = latent.lattice(side, across=torch.tensor([1.0, 0.0]), down=torch.tensor([0.0, -1.0]))
    made = pictures(model.decode_tensor(square.flatten(0, 1)))
    values = latent.quantiles(side).tolist()
    rows = [made[i * side : (i + 1) * side] for i in range(side)]
    grid = grid_figure(rows, across=values, down=values[::-1], labels=("$z_0$", "$z_1$"))
    read, _ = lesson.read(torch.stack([as_tensor(p) for p in made]))
    return Chapter(
        "A VAE's plane of codes",
        "Codes at the quantiles of the prior, decoded: every picture is as likely as the next, and "
        "neighbours melt into each other. The cluster diagram above is the same plane.",
        {
            "different digits in the grid, by the nearest training digits": (
                f"{len(read.unique())} of 10"
            ),
            **lesson.reader,
        },
        [grid],
    )


def rate(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-2d")
    net = model.autoencoder
    with torch.inference_mode():
        y = lesson.y.to(model.device)
        c = y.new_empty(len(y), 0)
        mean, logvar = net.bottleneck.posterior(net.encoder(y, c, None), c)
    right = 0.5 * (mean.square() + logvar.exp() - logvar - 1)
    # The lesson's layer gives v, draws with a spread of e^v, and charges for a variance of e^v.
    v = logvar / 2
    charged = 0.5 * (mean.square() + v.exp() - v - 1)
    return Chapter(
        "What the lesson charges for its codes",
        "The lesson's layer gives v, draws codes with standard deviation eᵛ, and pays the KL of a "
        "Gaussian with variance eᵛ: another Gaussian than the one that it draws from. For the very "
        "codes of mnist-2d, its formula would charge less than they cost, so that a loss of the "
        "lesson's is lower than the bound that it is named after by the difference.",
        {
            "KL of the Gaussian that is drawn from": f"{float(right.sum(1).mean()):.2f} nats",
            "KL as the lesson charges it": f"{float(charged.sum(1).mean()):.2f} nats",
            "not paid for": f"{float((right - charged).sum(1).mean()):.2f} nats a digit",
        },
        [],
    )


def conditional(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-cvae")
    num = 50
    columns = [
        model.decode_tensor(model.sample_codes(num, {"digit": k}, seed=lesson.seed), {"digit": k})
        for k in range(10)
    ]
    right = sum(int((lesson.read(c)[0] == k).sum()) for k, c in enumerate(columns)) / (10 * num)
    rows = [[picture(column[i]) for column in columns] for i in range(8)]
    return Chapter(
        "A conditional VAE writes the digit that it is asked for",
        "Told the digit, the code is free for the style: each row is one code in all ten digits. "
        "Reading by neighbours errs on real digits too: what counts is the distance between the "
        "two numbers.",
        {
            f"what it writes, by the ten nearest of {len(lesson.known):,} training digits": (
                f"{right:.1%} of {10 * num} read as asked"
            ),
            **lesson.reader,
        },
        [grid_figure(rows, columns="digit")],
    )


def means(model: Model, y: Tensor, made: Tensor) -> dict[str, float]:
    return {k: float(v.mean()) for k, v in model.modality.metrics(y, made, None).items()}


def distance(made: Tensor, real: Tensor) -> float:
    """The mean squared distance to the nearest real picture."""
    return float(torch.cdist(made.flatten(1), real.flatten(1)).min(1).values.square().mean())


def bundled_clothes() -> Tensor:
    """Twenty pictures of Fashion-MNIST's test split, `(20, 1, 28, 28)` in [0, 1]."""
    with (files("ae_image") / "samples" / "fashion-test.png").open("rb") as file:
        sheet = torch.from_numpy(np.array(Pictures.open(file, formats=("PNG",))))
    return sheet.float().div(255).unflatten(1, (-1, 28)).transpose(0, 1)[:, None]


def picture(y: Tensor) -> Picture:
    return Pictures.fromarray((y[0].clamp(0, 1) * 255).round().byte().cpu().numpy())


def pictures(y: Tensor) -> list[Picture]:
    return [picture(row) for row in y]


def as_tensor(item: Picture) -> Tensor:
    return torch.from_numpy(np.array(item)).float()[None] / 255


def write_page(lesson: Lesson, *, progress: bool = True) -> str:
    """Runs every chapter and returns the page."""
    parts: list[str] = []
    with Bar("", total=len(chapters()), unit="chapters", shown=progress) as bar:
        for number, chapter in enumerate(chapters(), start=1):
            bar.update(number - 1, title=chapter.__name__.replace("_", " "))
            parts.append(section(number, chapter(lesson)))
    about = (
        f"Made by running the models that ship with ae-toolkit on {len(lesson.y):,} test digits "
        f"({lesson.test.groups[0].partition('/')[0]} split), seed {lesson.seed}."
    )
    return PAGE_TEMPLATE.format(about=about, body="\n".join(parts))


def section(number: int, chapter: Chapter) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in chapter.numbers.items()
    )
    figures = "".join(
        f'<img alt="{html.escape(chapter.title)}" src="data:image/png;base64,{embedded(figure)}">'
        for figure in chapter.figures
    )
    return (
        f"<section><h2>{number}. {html.escape(chapter.title)}</h2><p>{html.escape(chapter.text)}"
        f"</p><table>{rows}</table><figure>{figures}</figure></section>"
    )


def embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    with rc_context(PLOT_STYLE):
        figure.savefig(buffer, dpi=FIGURE_DPI, bbox_inches="tight", pad_inches=0.04)
    return base64.b64encode(buffer.getvalue()).decode()


PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Autoencoders: a lesson that was run</title>
<style>
body {{ font: 17px/1.55 Georgia, serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem;
        color: #1b1b1b; background: #fffefb; }}
h1, h2 {{ line-height: 1.2; font-weight: 600; }}
section {{ margin: 3rem 0; }}
table {{ border-collapse: collapse; font-size: 0.92em; margin: 1rem 0; }}
th {{ text-align: left; font-weight: normal; padding: 0.15rem 2rem 0.15rem 0; color: #555; }}
td {{ font-variant-numeric: tabular-nums; }}
figure {{ margin: 0; }}
img {{ max-width: 100%; display: block; margin: 1rem auto; }}
</style>
<h1>Autoencoders: a lesson that was run</h1>
<p>{about}</p>
{body}
</html>
"""
