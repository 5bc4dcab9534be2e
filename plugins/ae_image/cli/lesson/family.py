"""The chapters on other autoencoders: adversarial, and of integers."""

from __future__ import annotations

import math

import torch

from ae_image.cli.lesson.page import Chapter
from ae_image.cli.lesson.setup import NUM_SHOWN, Lesson, first_rows, means, pictures
from ae_image.figures import maps_figure, scatter_figure
from ae_toolkit.inference.distances import told_apart


def adversarial(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-aae")
    codes = model.encode_examples(lesson.test).cpu()
    drawn = model.sample_codes(len(codes), seed=lesson.seed).cpu()
    made = model.decode_tensor(drawn)
    plain = lesson.model("mnist-ae").encode_examples(lesson.test).cpu()
    normal = torch.randn(plain.shape, generator=torch.Generator().manual_seed(lesson.seed))
    figures = [
        scatter_figure({title: (points[:, :2].numpy(), "$z_0$", "$z_1$")}, kinds.numpy(), name=name)
        for title, points, kinds, name in (
            ("codes of test digits", codes, lesson.classes, "digit"),
            ("draws from the prior", drawn, lesson.read(made), "read as"),
        )
    ]
    apart = "told from draws of the prior by a classifier (50% is perfect)"
    return Chapter(
        "An adversarial autoencoder's codes lie as the prior's do",
        "A critic learns to tell codes from the prior's draws, and the encoder learns to deceive "
        "it. The figures show two of the eight numbers of a code: of test digits, coloured by what "
        "they are, and of the prior's draws, coloured by what a classifier reads in the digits "
        "that they become (below).",
        {
            f"codes of the adversarial autoencoder, {apart}": f"{told_apart(codes, drawn):.1%}",
            f"codes of the plain one, {apart}": f"{told_apart(plain, normal):.1%}",
            "cross-entropy per pixel of its copies": (
                f"{means(model, lesson.y, model.decode_tensor(codes))['pixel_bce']:.4f}"
            ),
        },
        [*figures, first_rows({"drawn": made, "others": made[NUM_SHOWN:]})],
    )


def integers(lesson: Lesson) -> Chapter:
    model = lesson.model("mnist-vqvae")
    num_classes = model.autoencoder.num_classes
    codes = model.encode_examples(lesson.test).cpu()
    copies = model.decode_tensor(codes)
    made = model.decode_tensor(model.sample_codes(2 * NUM_SHOWN, seed=lesson.seed))
    used = len(codes.long().unique()) / num_classes
    each = lesson.shown[3:6:2]
    maps = [
        maps_figure(
            pictures(lesson.y[i : i + 1])[0],
            [model.unflatten(codes[i : i + 1])[0][0]],
            pictures(copies[i : i + 1])[0],
            num_classes=num_classes,
        )
        for i in each
    ]  # fmt: skip
    rate = model.terms(pictures(lesson.y)).rate.sum(-1).mean() / math.log(2)
    return Chapter(
        "A digit as integers: what the codes of a VQ-VAE look like",
        f"Each of 7×7 places of a digit becomes one of {num_classes} entries of a learned "
        "codebook, and a transformer learns which entry follows which. It writes new digits entry "
        "by entry (last figure).",
        {
            "entries of the codebook that test digits use": f"{used:.0%}",
            "what the transformer takes to say a digit": f"{float(rate):.0f} bits, where entries "
            f"that are all alike take {codes.shape[1] * math.log2(num_classes):.0f}",
            "cross-entropy per pixel of copies": (
                f"{means(model, lesson.y, copies)['pixel_bce']:.4f}"
            ),
        },
        [
            *maps,
            lesson.rows({"original": lesson.y, "copy": copies}),
            first_rows({"new": made, "others": made[NUM_SHOWN:]}),
        ],
    )
