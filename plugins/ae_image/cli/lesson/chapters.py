"""The chapters of the lesson, functions from a `Lesson` to a `Chapter`, and the page of all."""

from __future__ import annotations

import torch
from torch import Tensor

from ae_image.cli.inputs import to_tensors
from ae_image.cli.lesson.family import adversarial, integers
from ae_image.cli.lesson.page import PAGE_TEMPLATE, Chapter, section_of
from ae_image.cli.lesson.setup import NUM_SHOWN, Lesson, distance, first_rows, means, pictures
from ae_image.datasets import read_sheet
from ae_image.figures import grid_figure, scatter_figure
from ae_toolkit.console import Bar
from ae_toolkit.inference import latent
from ae_toolkit.inference.evaluate import neighbour_accuracy, principal_axes


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
        [lesson.rows({"original": lesson.y, "copy": made})],
    )


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
        [first_rows({"plain": from_plain, "VAE": from_vae})],
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
        [
            scatter_figure(panels, lesson.classes.numpy(), name="digit"),
            lesson.rows({"original": lesson.y, "VAE": made, "PCA": projected}),
        ],
    )


def noisy_codes(lesson: Lesson) -> Chapter:
    spreads = (0.0, 0.5, 1.0, 1.5)
    rows, numbers = {}, {}
    for name in ("mnist-ae", "mnist-vae"):
        model = lesson.model(name)
        codes = model.encode_examples(lesson.test).cpu()
        noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(lesson.seed))
        for spread in spreads:
            made = model.decode_tensor(codes + spread * codes.std(0) * noise)
            kept = float((lesson.read(made) == lesson.classes).float().mean())
            far = distance(made, lesson.known)
            rows[f"{name[6:].upper()}, {spread:g}σ"] = made
            numbers[f"{name}, noise of {spread:g}σ"] = (
                f"{kept:.0%} read as they were; {far:.0f} from the nearest real digit"
            )
    return Chapter(
        "Noise added to codes",
        "Noise of so many standard deviations of each code number. Digits are read by the "
        "classifier that ships; beside it stands the squared distance to the nearest of "
        f"{len(lesson.known):,} training digits. A plain autoencoder's digits fall to pieces where "
        "they stand; a VAE's drift farther towards other digits, and stay nearer to real ones.",
        numbers | lesson.reader,
        [lesson.rows(rows)],
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
            lesson.rows({"original": lesson.y, "noisy": x, "denoised": made}),
            first_rows({"original": clothes, "noisy": noisy_clothes, "denoised": made_clothes}),
        ],
    )


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
        figures.append(lesson.rows({key: y for key, y in rows.items() if key != "bilinear"}))
    noise = torch.rand(NUM_SHOWN, 1, 7, 7, generator=torch.Generator().manual_seed(lesson.seed))
    dreamt = lesson.through(lesson.model("mnist-superres-4x"), noise)
    figures.append(first_rows({"noise": noise, "enlarged": dreamt}))
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
    read = lesson.read(to_tensors(made, model))
    return Chapter(
        "A VAE's plane of codes",
        "Codes at the quantiles of the prior, decoded: every picture is as likely as the next, and "
        "neighbours melt into each other. The cluster diagram above is the same plane.",
        {
            "different digits in the grid, by the classifier": f"{len(read.unique())} of 10",
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
    right = sum(int((lesson.read(c) == k).sum()) for k, c in enumerate(columns)) / (10 * num)
    rows = [pictures(torch.stack([column[i] for column in columns])) for i in range(8)]
    return Chapter(
        "A conditional VAE writes the digit that it is asked for",
        "Told the digit, the code is free for the style: each row is one code in all ten digits. "
        "The classifier errs on real digits too: what counts is the distance between the two "
        "numbers.",
        {
            "what it writes, by the classifier": f"{right:.1%} of {10 * num} read as asked",
            **lesson.reader,
        },
        [grid_figure(rows, columns="digit")],
    )


def bundled_clothes() -> Tensor:
    """Twenty pictures of Fashion-MNIST's test split, `(20, 1, 28, 28)` in [0, 1]."""
    sheet = read_sheet("fashion-test.png")
    return sheet.float().div(255).unflatten(1, (-1, 28)).transpose(0, 1)[:, None]


LESSON_CHAPTERS = (
    reconstruction, random_codes, two_numbers, noisy_codes, denoising, upscaling, latent_space,
    rate, conditional, adversarial, integers,
)  # fmt: skip


def write_page(lesson: Lesson) -> str:
    """Runs every chapter and returns the page."""
    sections: list[str] = []
    with Bar("", total=len(LESSON_CHAPTERS), unit="chapters") as bar:
        for number, chapter in enumerate(LESSON_CHAPTERS, start=1):
            bar.update(number - 1, title=chapter.__name__.replace("_", " "))
            sections.append(section_of(chapter(lesson), number=number))
    about = (
        f"Made by running the models that ship with ae-toolkit on {len(lesson.y):,} test digits "
        f"({lesson.test.groups[0].partition('/')[0]} split), seed {lesson.seed}."
    )
    return PAGE_TEMPLATE.format(about=about, body="\n".join(sections))
