"""From a user's picture to what a model knows, and back: photographs of digits, colours, paper.

MNIST's digits are light on black, 20 pixels tall and centred by mass in 28 (LeCun et al. 1998,
section III-A). `as_digit` does to a photograph what was done to them, and keeps every step for the
figure. `restore` sends pictures of any size, light or dark, grey or colour, through a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image as Pictures
from PIL import ImageChops, ImageFilter, ImageOps

from ae_image.modality import Picture, flatten

Invert = Literal["auto", "yes", "no"]

BRIGHT = 0.8 * 255  #: a median above this is paper, not darkness

INNER, OUTER = 20, 28  #: pixels of a digit, and of its frame


def is_form(picture: Picture, size: tuple[int, int] = (OUTER, OUTER)) -> bool:
    """Whether a picture already looks as the data do: that size, with a dark border."""
    grey = np.asarray(flatten(picture, "L"))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return picture.size == size and bool(np.median(border) < 128)


def as_digit(picture: Picture) -> dict[str, Picture]:
    """Brings a picture of one digit into MNIST's form, step by step, the last being the result."""
    grey = flatten(picture, "L").copy()
    grey.thumbnail((512, 512), Pictures.Resampling.LANCZOS)
    ink, inverted = _ink(grey)
    steps = {"inverted" if inverted else "evened": ink}
    steps["cropped"] = cropped = ink.crop(_box(ink))

    share = INNER / max(cropped.size)
    size = tuple(max(round(share * side), 1) for side in cropped.size)
    small = np.asarray(cropped.resize(size, Pictures.Resampling.LANCZOS), dtype=np.float64)
    small = small * (255 / max(small.max(), 1))
    steps["centred"] = _centred(small)
    return steps


def _ink(grey: Picture) -> tuple[Picture, bool]:
    """What differs from the ground, light on black, however unevenly the paper was lit."""
    values = np.asarray(grey, dtype=np.float64)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    inverted = bool(np.median(border) > 127)
    if inverted:
        grey = ImageOps.invert(grey)
    # The ground: what is left when everything thin and light is worn away, then smoothed.
    reach = max(min(grey.size) // 6, 1) | 1
    tiny = grey.resize([max(side // 4, 1) for side in grey.size], Pictures.Resampling.BOX)
    worn = tiny.filter(ImageFilter.MinFilter(max(reach // 4, 1) | 1))
    ground = worn.filter(ImageFilter.GaussianBlur(reach / 4)).resize(grey.size)
    ink = np.asarray(grey, dtype=np.float64) - np.asarray(ground)
    low, high = _between(ink), np.quantile(ink, 0.995)
    floor = low / 2
    ink = (ink - floor).clip(0) / max(high - floor, 1)
    return Pictures.fromarray((255 * ink.clip(0, 1)).astype(np.uint8)), inverted


def _between(values: np.ndarray) -> float:
    """The threshold that parts values into two groups, best in the sense of Otsu (1979)."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    mass = (counts * middles).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = mass / below - (mass[-1] - mass) / above
    return float(middles[np.nanargmax(np.nan_to_num(below * above * gap**2))])


def _box(ink: Picture) -> tuple[int, int, int, int]:
    """Where the ink is, single specks not counted; everything where there is none."""
    mask = ink.point(lambda value: 255 * (value > 110))
    if min(ink.size) >= 3 * OUTER:
        mask = mask.filter(ImageFilter.MedianFilter(5))
    return mask.getbbox() or (0, 0, *ink.size)


def _centred(digit: np.ndarray) -> Picture:
    """A digit on black, its centre of mass in the middle, as far as it fits."""
    total = max(digit.sum(), 1e-9)
    corner = []
    for axis, side in enumerate(digit.shape):
        middle = digit.sum(1 - axis) @ np.arange(side) / total
        corner.append(int(np.clip(round((OUTER - 1) / 2 - middle), 0, OUTER - side)))
    sheet = np.zeros((OUTER, OUTER), np.uint8)
    sheet[corner[0] : corner[0] + digit.shape[0], corner[1] : corner[1] + digit.shape[1]] = digit
    return Pictures.fromarray(sheet)


def is_paper(picture: Picture) -> bool:
    """Whether a picture is dark on light, which models of light on black need inverted."""
    return float(np.median(np.asarray(flatten(picture, "L")))) > BRIGHT


def restore(
    run: Callable[[Picture], Picture], picture: Picture, *, channels: int, invert: Invert = "auto"
) -> Picture:
    """Sends a picture through `run`, which takes light on black with so many channels.

    A colour picture goes through a grey model channel by channel; one on paper goes through
    inverted, and is inverted back.
    """
    negative = invert == "yes" or (invert == "auto" and is_paper(picture))
    plain = flatten(picture, "RGB" if has_colour(picture) or channels == 3 else "L")
    done = []
    for name in plain.getbands() if channels == 1 else [None]:
        band = plain.getchannel(name) if name else plain
        made = run(ImageOps.invert(band) if negative else band)
        done.append(ImageOps.invert(made) if negative else made)
    return done[0] if len(done) == 1 else Pictures.merge("RGB", done)


def has_colour(picture: Picture) -> bool:
    """Whether any pixel is other than grey."""
    if picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16"):
        return False
    plain = flatten(picture, "RGB")
    red, green, blue = (plain.getchannel(band) for band in "RGB")
    differences = (ImageChops.difference(red, other) for other in (green, blue))
    return any(difference.getextrema()[1] > 2 for difference in differences)
