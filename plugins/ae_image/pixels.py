"""Pictures in the modes and sizes that data have."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pictures
from PIL import ImageChops, ImageStat

Picture = Pictures.Image

BLOCK_ROWS = 256  #: of a large picture, converted at a time


def pad(picture: Picture, size: tuple[int, int]) -> Picture:
    """Fits a whole picture into `(width, height)`, black beside it; it keeps a pixel at least."""
    share = min(size[0] / picture.width, size[1] / picture.height)
    inner = max(round(share * picture.width), 1), max(round(share * picture.height), 1)
    sheet = Pictures.new(picture.mode, size)
    corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    sheet.paste(picture.resize(inner, Pictures.Resampling.LANCZOS), corner)
    return sheet


def flatten(picture: Picture, mode: str) -> Picture:
    """Brings any picture to `L` or `RGB`.

    What is transparent becomes paper that the ink stands out from: white where the ink is dark in
    the mean, as drawing programs export it, else black.
    """
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        values, key = np.asarray(picture), picture.info.get("transparency")
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.empty(values.shape, np.uint8)
        for i in range(0, len(values), BLOCK_ROWS):
            rows = values[i : i + BLOCK_ROWS].astype(np.float64)
            grey[i : i + BLOCK_ROWS] = (rows.clip(0, top) / top * 255).round()
        picture = Pictures.fromarray(grey)
        if isinstance(key, int):  # the grey of what is transparent, in 16 bits
            picture.putalpha(Pictures.fromarray(np.uint8(255) * (values != key)))
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("LA", "PA", "RGBA"):
        ink, alpha = picture.convert("L"), picture.getchannel("A")
        covered, light = (
            ImageStat.Stat(p).sum[0] for p in (alpha, ImageChops.multiply(ink, alpha))
        )
        sheet = Pictures.new(mode, picture.size, "white" if light < covered / 2 else "black")
        sheet.paste(picture.convert(mode), mask=alpha)
        return sheet
    return picture if picture.mode == mode else picture.convert(mode)
