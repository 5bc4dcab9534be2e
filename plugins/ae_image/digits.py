"""From a user's picture to what a model knows, and back: photographs of digits, colours, paper.

MNIST's digits are light on black, 20 pixels tall and centred by mass in 28 (LeCun et al. 1998,
section III-A). `as_digit` does to a photograph what was done to them, and keeps every step for the
figure. `restore` sends pictures of any size, light or dark, grey or colour, through a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image as Pictures
from PIL import ImageChops, ImageFilter, ImageOps, ImageStat

from ae_image.pixels import Picture, flatten

Invert = Literal["auto", "yes", "no"]
Box = tuple[int, int, int, int]  #: left, top, right, bottom, in pixels

BICUBIC_FILTER, LANCZOS_FILTER = Pictures.Resampling.BICUBIC, Pictures.Resampling.LANCZOS

PAPER_LEVEL = 0.8 * 255  #: a median above this is paper, not darkness

DIGIT_PIXELS, FRAME_PIXELS = 20, 28  #: pixels of a digit, and of its frame

MIN_CONTRAST = 24  #: grey levels by which ink differs from its paper at least
MAX_ASPECT = 1.9  #: width of a digit over its height; the widest of MNIST's has 1.8
MIN_HEIGHT = 0.4  #: of what counts as a digit, over that of all ink
MAX_BROAD = 0.02  #: of a picture's pixels, that are light on dark and part of no stroke
MAX_CROSSED = 0.002  #: of a picture's outermost pixels, that are ink

# Of training digits, as the bundled models are given them and at other sizes, all are within these.
MAX_CHANGE = 255 * 10 ** (-30 / 20)  #: grey levels, root of the mean square
MAX_CHANGED_SHARE = 0.04  #: of the variance
MAX_UNEXPLAINED = 0.2  #: of the variance of blocks
BLOCK_PIXELS = 4  #: pixels a side
MIN_BLOCKS = 16  #: whose means tell light from dark
MIN_SKEW = -0.5  #: of the means of blocks; what has less is dark on light

NO_INK = "there is no ink in it, so what comes back means nothing"
SEVERAL_DIGITS = "there is more than one digit in it, and models know single ones: cut them apart"
AT_BORDER = (
    "there is ink at its border, such as ruled lines or the desk: crop it to paper and digit"
)


def is_form(picture: Picture, size: tuple[int, int] = (FRAME_PIXELS, FRAME_PIXELS)) -> bool:
    """Whether a picture already looks as the data do: that size, with a dark border."""
    return picture.size == size and bool(np.median(_border(flatten(picture, "L"))) < 128)


def doubts_of_form(picture: Picture) -> list[str]:
    """What makes a picture that looks as the data do no picture of a digit."""
    return [NO_INK] if np.asarray(flatten(picture, "L")).max() < MIN_CONTRAST else []


def _border(grey: Picture) -> np.ndarray:
    """The outermost pixels of a grey picture."""
    values = np.asarray(grey)
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


class Framed(NamedTuple):
    """A picture of a digit, brought into MNIST's form, and the way back.

    Attributes:
        steps: what was done, by name, the last being the result.
        doubts: sentences on what makes it no picture of one digit.
        tones: grey levels of its paper and its ink.
        frame: width and height of what was cut from, at most 512.
        box: what was cut out of the frame.
        place: where that came to lie in the result.
    """

    steps: dict[str, Picture]
    doubts: list[str]
    tones: tuple[float, float]
    frame: tuple[int, int]
    box: Box
    place: Box

    def put_back(self, made: Picture) -> Picture:
        """A reconstruction where the ink was, on even paper, in the tones of the picture."""
        sheet = Pictures.new("L", self.frame)
        left, top, right, bottom = self.box
        cut = made.crop(self.place).resize((right - left, bottom - top), BICUBIC_FILTER)
        sheet.paste(cut, (left, top))
        paper, ink = self.tones
        return sheet.point(lambda value: round(paper + (ink - paper) * value / 255))


def as_digit(picture: Picture) -> Framed:
    """Brings a picture of one digit into MNIST's form, step by step."""
    grey = in_frame(picture)
    ink, inverted, doubts = _ink(grey)
    box = _box(ink)
    cropped = ink.crop(box)

    share = DIGIT_PIXELS / max(cropped.size)
    size = [max(round(share * side), 1) for side in cropped.size]
    small = np.asarray(cropped.resize(size, LANCZOS_FILTER), dtype=np.float64)
    small = small * (255 / max(small.max(), 1))
    centred, place = _centred(small)
    name = "inverted" if inverted else "evened"
    steps = {name: ink, "cropped": cropped, "centred": centred}
    paper, tone = np.quantile(np.asarray(grey), (0.5, 0.001 if inverted else 0.999))
    return Framed(steps, doubts, (float(paper), float(tone)), grey.size, box, place)


def in_frame(picture: Picture) -> Picture:
    """A picture in grey, at most 512 pixels a side."""
    grey = flatten(picture, "L").copy()
    grey.thumbnail((512, 512), LANCZOS_FILTER)
    return grey


def _ink(grey: Picture) -> tuple[Picture, bool, list[str]]:
    """What differs from the ground, light on black, however unevenly the paper was lit.

    Returns:
        The ink; whether it was dark on light; what makes it something else than one digit.
    """
    outside = float(np.median(_border(grey)))
    inverted = outside > 127
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
    evened = ((ink - floor) / max(high - floor, 1)).clip(0, 1)
    picture = Pictures.fromarray((255 * evened).astype(np.uint8))

    middle, strong = np.quantile(ink, (0.5, 0.9995))
    noise = np.median(abs(np.diff(ink))) if grey.width > 1 else 0.0
    is_blank = strong - middle < max(MIN_CONTRAST, 5 * noise)
    # A light sheet on a dark desk is too broad for ink.
    broad = (np.asarray(worn) > outside + MIN_CONTRAST).mean() if reach > FRAME_PIXELS / 2 else 0.0
    is_sheet = not inverted and broad > MAX_BROAD
    if is_blank:
        return picture, inverted, [NO_INK]
    if is_sheet or (_border(picture) > 64).mean() > MAX_CROSSED:
        return picture, inverted, [AT_BORDER]
    return picture, inverted, [SEVERAL_DIGITS] if _num_digits(picture) > 1 else []


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


def _box(ink: Picture) -> Box:
    """Where the ink is, single specks not counted; everything where there is none."""
    return _dark(ink).getbbox() or (0, 0, *ink.size)


def _dark(ink: Picture) -> Picture:
    """Where there is ink, as 0 and 255, single specks not counted."""
    mask = ink.point(lambda value: 255 * (value > 110))
    return mask.filter(ImageFilter.MedianFilter(5)) if min(ink.size) >= 3 * FRAME_PIXELS else mask


def _num_digits(ink: Picture) -> int:
    """How many digits stand side by side; two, where what hangs together is too wide for one."""
    mask = np.asarray(_dark(ink)) > 0
    left, top, right, bottom = _box(ink)
    rows = [np.flatnonzero(mask[:, start:end].any(1)) for start, end in _runs(np.any(mask, 0))]
    tall = [mine for mine in rows if np.ptp(mine) >= MIN_HEIGHT * (bottom - top)]
    return max(len(tall), 1 + (right - left > MAX_ASPECT * (bottom - top)))


def _runs(there: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of true values begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _centred(digit: np.ndarray) -> tuple[Picture, Box]:
    """A digit on black, its centre of mass in the middle as far as it fits, and where it lies."""
    total = max(digit.sum(), 1e-9)
    corner = []
    for axis, side in enumerate(digit.shape):
        middle = digit.sum(1 - axis) @ np.arange(side) / total
        corner.append(int(np.clip(round((FRAME_PIXELS - 1) / 2 - middle), 0, FRAME_PIXELS - side)))
    (top, left), (height, width) = corner, digit.shape
    sheet = np.zeros((FRAME_PIXELS, FRAME_PIXELS), np.uint8)
    sheet[top : top + height, left : left + width] = digit
    return Pictures.fromarray(sheet), (left, top, left + width, top + height)


def is_dark_on_light(picture: Picture) -> bool:
    """Whether a picture of ink is dark on light, however grey or noisy its paper is.

    Ink covers less than paper does, so the lighter half of its blocks is the more crowded one.
    """
    x = _blocks(flatten(picture, "L"))
    is_skewed = ((x - x.mean()) ** 3).mean() < MIN_SKEW * x.std() ** 3
    return is_paper(picture) or bool(len(x) >= MIN_BLOCKS and is_skewed)


def is_paper(picture: Picture) -> bool:
    """Whether a picture is dark on light, which models of light on black need inverted."""
    return float(np.median(np.asarray(flatten(picture, "L")))) > PAPER_LEVEL


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


def is_explained(given: Picture, made: Picture) -> bool:
    """Whether what a model made accounts for what it was given, as it does for training data.

    An enlargement that is made small again must be what it was made of. What a denoised picture
    leaves unexplained, in blocks of 4x4 pixels and up to a straight line, must be little, or no
    more than twice what noise does that is as strong as neighbouring pixels differ.
    """
    given, made = given.convert("L"), made.convert("L")
    factor = made.width // given.width
    if factor > 1:
        variance = float(ImageStat.Stat(given).var[0])
        allowed = min(MAX_CHANGE**2, MAX_CHANGED_SHARE * variance)
        return _power(ImageChops.difference(given, made.reduce(factor))) <= max(allowed, 1)
    if min(given.size) < 2 * BLOCK_PIXELS:
        return True
    x, y = (_blocks(picture) for picture in (given, made))
    covariance = np.cov(x, y, bias=True)
    explained = covariance[0, 1] ** 2 / max(covariance[1, 1], 1e-9)
    width, height = given.size
    shifts = [
        ((1, 0, width, height), (0, 0, width - 1, height)),
        ((0, 1, width, height), (0, 0, width, height - 1)),
    ]
    noise = sum(_power(ImageChops.difference(*map(given.crop, pair))) for pair in shifts) / 4
    allowed = max(MAX_UNEXPLAINED * covariance[0, 0], 2 * noise / BLOCK_PIXELS**2)
    return bool(covariance[0, 0] - explained <= max(allowed, 1))


def _blocks(grey: Picture) -> np.ndarray:
    """The means of blocks, in which noise counts for little."""
    return np.asarray(grey.reduce(BLOCK_PIXELS), dtype=np.float64).ravel()


def decibels(a: Picture, b: Picture) -> float:
    """The peak signal-to-noise ratio of two pictures of one size and mode."""
    return -10 * math.log10(max(_power(ImageChops.difference(a, b)) / 255**2, 1e-10))


def _power(picture: Picture) -> float:
    """The mean square of a picture's values."""
    bands = ImageStat.Stat(picture)
    return float(sum(bands.sum2)) / max(sum(bands.count), 1)


def has_colour(picture: Picture) -> bool:
    """Whether any pixel is other than grey."""
    if picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16"):
        return False
    plain = flatten(picture, "RGB")
    red, green, blue = (plain.getchannel(band) for band in "RGB")
    differences = (ImageChops.difference(red, other) for other in (green, blue))
    return any(np.asarray(difference).max() > 2 for difference in differences)
