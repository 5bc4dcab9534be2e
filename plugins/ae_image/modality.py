"""Pictures as a data type: PNG, JPEG and WebP files of any size, grey or colour.

An item is a `PIL.Image.Image`; its tensor is `(C, H, W)` in uint8, prepared to [0, 1].
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pictures
from PIL import ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import Field
from torch import Tensor

from ae_image.pixels import BLOCK_ROWS, Picture, flatten, pad
from ae_toolkit import Modality, RunError
from ae_toolkit.contracts import Example, Shape, Size, StepContext
from ae_toolkit.files import RESULT_SIGNATURE, check_input

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")

MAX_SIDE = 16_384  #: pixels; a longer side is refused before it is decoded
MAX_PIXELS = 51_000_000  #: as many as fit into 1 GB on any way through a model; phones have 50
MAX_FILE_BYTES = 500_000_000  #: more than so many pixels take without compression
MAX_JPEG_SCANS = 100  #: each costs a pass over all pixels, and real files have about ten

JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  #: of the end, or before a segment's length


class Image(Modality):
    """Pictures of one size.

    Args:
        size: height and width that pictures are brought to, or one number for both.
        channels: 1 for grey, 3 for colour.
        fit: how a picture of another shape is made to fit: `crop` its longer side, `pad` its
            shorter side with black, or `stretch` it.
        labels: what data sets know of their pictures, name -> number of classes.
        shift: augmentation, pictures move up to so many pixels in each direction.
        rotate: augmentation, degrees to either side.
        scale: augmentation, relative change of size to either side.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".webp")

    def __init__(
        self,
        *,
        size: Size | tuple[Size, Size] = 28,
        channels: Literal[1, 3] = 1,
        fit: Literal["crop", "pad", "stretch"] = "crop",
        labels: dict[str, Annotated[int, Field(ge=0)]] | None = None,
        shift: float = 0.0,
        rotate: float = 0.0,
        scale: float = 0.0,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        self.shape = (channels, height, width)
        self.fit = fit
        self.labels = labels or {}
        self.shift, self.rotate, self.scale = shift, rotate, scale

    def read(self, path: Path) -> Iterator[Picture]:
        check_input(path, max_bytes=MAX_FILE_BYTES)
        limit = f"more than {MAX_SIDE} a side or {MAX_PIXELS // 1_000_000} million in all"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about metadata that nobody needs
                warnings.simplefilter("error", Pictures.DecompressionBombWarning)
                with Pictures.open(path, formats=PICTURE_FORMATS) as file:
                    picture: Picture = file
                    width, height = picture.size
                    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                        raise RunError(
                            f"{path}: is {width}x{height} pixels large, and {limit} is refused"
                        )
                    if picture.format in ("JPEG", "MPO") and _num_scans(path) > MAX_JPEG_SCANS:
                        raise RunError(f"{path}: more than {MAX_JPEG_SCANS} scans are refused")
                    # Of a palette's colours there may be too many; 16 bits would be clipped.
                    if "transparency" in picture.info and not picture.mode.startswith("I;16"):
                        picture = picture.convert("RGBA")
                    picture.load()
                    picture = ImageOps.exif_transpose(picture)
        except (Pictures.DecompressionBombError, Pictures.DecompressionBombWarning):
            raise RunError(f"{path}: has too many pixels, {limit} is refused") from None
        except UnidentifiedImageError:
            what = "not a picture in the formats PNG, JPEG or WebP"
            raise RunError(f"{path}: is {what if path.stat().st_size else 'empty'}") from None
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, OSError) and error.errno:  # of the system, not of the decoder
                raise RunError(f"{path}: cannot be read, {error.strerror}") from None
            raise RunError(f"{path}: is cut short or broken ({error})") from error
        yield picture

    def to_tensor(self, item: Picture) -> Example:
        return Example(self.to_input(item, self.shape), {}, "")

    def to_input(self, item: Picture, shape: Shape | None = None) -> Tensor:
        grey = flatten(item, "L" if self.shape[0] == 1 else "RGB")
        channels, height, width = shape or (self.shape[0], grey.height, grey.width)
        if grey.size != (width, height):
            if self.fit == "stretch":
                grey = grey.resize((width, height), Pictures.Resampling.LANCZOS)
            elif self.fit == "pad":
                grey = pad(grey, (width, height))
            else:
                grey = ImageOps.fit(grey, (width, height), Pictures.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(grey, dtype=np.uint8))
        return pixels.reshape(height, width, channels).permute(2, 0, 1)

    def prepare(self, y: Tensor) -> Tensor:
        return y.float() / 255

    def augment(self, y: Tensor, step: StepContext) -> Tensor:
        """Random shifts, rotations and scalings, bilinear, with black beyond the border."""
        if not (self.shift or self.rotate or self.scale):
            return y
        noise = 2 * step.rand((y.shape[0], 4)) - 1
        angle = torch.deg2rad(self.rotate * noise[:, 0])
        zoom = 1 + self.scale * noise[:, 1]
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        right = 2 * self.shift / self.shape[2] * noise[:, 2]
        below = 2 * self.shift / self.shape[1] * noise[:, 3]
        matrix = torch.stack([cos, -sin, right, sin, cos, below], 1).unflatten(1, (2, 3))
        grid = F.affine_grid(matrix, list(y.shape), align_corners=False)
        return F.grid_sample(y, grid, align_corners=False)

    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> Picture:
        # In blocks: in single precision, a large picture would be in memory several times.
        blocks = [(b.float().clamp(0, 1) * 255).round().byte() for b in y.split(BLOCK_ROWS, dim=1)]
        pixels = torch.cat(blocks, 1).permute(1, 2, 0).numpy()
        return Pictures.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def write(self, items: Sequence[Picture], path: Path) -> None:
        """One picture as it is; several side by side, two pixels apart."""
        strip = items[0]
        if len(items) > 1:
            width = sum(item.width + 2 for item in items) - 2
            strip = Pictures.new(items[0].mode, (width, max(item.height for item in items)))
            at = 0
            for item in items:
                strip.paste(item, (at, 0))
                at += item.width + 2
        software = PngInfo()
        software.add_text("Software", RESULT_SIGNATURE)
        strip.save(
            path, pnginfo=software, comment=RESULT_SIGNATURE
        )  # each format takes what it knows

    def metrics(self, y: Tensor, y_hat: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Per picture: mean squared error, PSNR in dB, and binary cross-entropy per pixel."""
        mse = (y - y_hat).square().flatten(1).mean(1)
        bce = F.binary_cross_entropy(y_hat.clamp(0, 1), y, reduction="none").flatten(1).mean(1)
        return {"mse": mse, "psnr": -10 * torch.log10(mse.clamp(min=1e-10)), "pixel_bce": bce}

    def baselines(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The noisy input itself; or the small one, resized bilinearly and bicubically."""
        if x.shape == y.shape:
            return super().baselines(x, y)
        return {
            mode: F.interpolate(x, y.shape[2:], mode=mode, align_corners=False).clamp(0, 1)
            for mode in ("bilinear", "bicubic")
        }

    def judge(self, y: Tensor) -> tuple[Tensor, dict[str, Tensor]] | None:
        """By the classifier that ships for a label of these pictures, if there is one."""
        from ae_image.classifier import judge

        return next(filter(None, (judge(y, label=label) for label in self.labels)), None)

    def figure(self, rows: Mapping[str, Sequence[Picture]], path: Path) -> None:
        from ae_image.figures import rows_figure, save_figure

        save_figure(rows_figure(rows), path)


def _num_scans(path: Path) -> int:
    """How often a JPEG file goes over the pixels of its first picture, whatever lies after it.

    It goes from marker to marker, over their segments, to the end of the picture. A coded byte of
    255 is none, as a zero follows it.
    """
    data, at, num = path.read_bytes(), 0, 0
    while found := JPEG_MARKER.search(data, at):
        if found[0] == b"\xff\xd9":
            break
        num += found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return num
