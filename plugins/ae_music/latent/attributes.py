"""What can be counted in a melody, and the directions in latent space along which it changes.

The paper's five attributes (Roberts et al. 2018, section 6.3.1), with the share of notes in a scale
taken of the scale that fits best instead of C major, and the pitch range. A direction is, as there,
the mean code of the upper quartile of windows less that of the lower, one for each meter; it is as
long as it takes to change the attribute by about a standard deviation.

Axes: B windows, T steps, D code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ae_music.grid import KNOWN_METERS, LOWEST_KEY, MIN_PITCH
from ae_music.modality import modality_of
from ae_toolkit import RunError, UsageError
from ae_toolkit.console import track
from ae_toolkit.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from ae_toolkit import Examples, Model

Rows = NDArray[np.uint8]
Column = NDArray[np.float64]

Directions = Mapping[str, "Tensor"]

DIRECTIONS_FILE = "attributes.safetensors"  #: beside the weights
MAJOR_SCALE = [0, 2, 4, 5, 7, 9, 11]

MAX_WINDOWS = 20_000  #: windows that directions are found in
MIN_METER_WINDOWS = 40  #: windows of a meter, or it has no directions
TRIED_WINDOWS = 100  #: windows of a meter that lengths are tried on
TRIED_LENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def density(steps: Rows, lengths: NDArray[np.int64], beats: NDArray[np.int64]) -> Column:
    """Notes per step."""
    return (steps >= LOWEST_KEY).sum(1) / lengths


def diatonic(steps: Rows, lengths: NDArray[np.int64], beats: NDArray[np.int64]) -> Column:
    """The share of notes in the major scale that holds most of them; 1 without notes."""
    classes = np.stack([(steps % 12 == k) & (steps >= LOWEST_KEY) for k in range(12)], 1).sum(2)
    scales = np.stack([classes[:, (np.array(MAJOR_SCALE) + k) % 12].sum(1) for k in range(12)])
    total = classes.sum(1)
    return np.where(total > 0, scales.max(0) / np.maximum(total, 1), 1.0)


def interval(steps: Rows, lengths: NDArray[np.int64], beats: NDArray[np.int64]) -> Column:
    """The mean interval between notes in succession, in semitones."""
    return np.array([_mean(np.abs(np.diff(row[row >= LOWEST_KEY].astype(int)))) for row in steps])


def pitch_range(steps: Rows, lengths: NDArray[np.int64], beats: NDArray[np.int64]) -> Column:
    """From the lowest note to the highest, in semitones."""
    low = np.where(steps >= LOWEST_KEY, steps, 255).min(1).astype(int)
    high = steps.max(1).astype(int)
    return np.where(high >= LOWEST_KEY, high - low, 0).astype(float)


def syncopation_16th(steps: Rows, lengths: NDArray[np.int64], beats: NDArray[np.int64]) -> Column:
    """The share of notes on an off-beat sixteenth with none on the sixteenth before."""
    begins = steps >= LOWEST_KEY
    place = np.arange(steps.shape[1])
    off = begins & (place % 2 == 1) & ~_before(begins, 1)
    return off.sum(1) / np.maximum(begins.sum(1), 1)


def syncopation_8th(steps: Rows, lengths: NDArray[np.int64], beats: NDArray[np.int64]) -> Column:
    """The share of notes on an off-beat eighth with none on the sixteenth or eighth before."""
    begins = steps >= LOWEST_KEY
    place = np.arange(steps.shape[1])
    off_beat = (place % 2 == 0) & (place % beats[:, None] != 0)
    off = begins & off_beat & ~_before(begins, 1) & ~_before(begins, 2)
    return off.sum(1) / np.maximum(begins.sum(1), 1)


ATTRIBUTE_MEASURES: dict[str, Callable[[Rows, NDArray[np.int64], NDArray[np.int64]], Column]] = {
    "density": density,
    "diatonic": diatonic,
    "interval": interval,
    "pitch-range": pitch_range,
    "syncopation-16th": syncopation_16th,
    "syncopation-8th": syncopation_8th,
}


def measure(
    steps: Rows,
    meters: NDArray[np.int64],
    *,
    bars: int,
    names: Iterable[str] = ATTRIBUTE_MEASURES,
    most: int | None = None,
) -> dict[str, Column]:
    """Attributes of windows, `(B,)` each.

    Args:
        steps: `(B, T)`.
        meters: `(B,)` classes.
        bars: of a window.
        names: of the attributes.
        most: steps in all, of windows that follow each other; what lies beyond is not counted.
    """
    lengths = bars * np.array([meter.steps for meter in KNOWN_METERS])[meters]
    if most is not None:
        lengths = np.minimum(lengths, most - np.append(0, lengths.cumsum()[:-1]))
    compound = np.array([meter.denominator == 8 for meter in KNOWN_METERS])[meters]
    real = np.where(np.arange(steps.shape[1]) < lengths[:, None], steps, 0).astype(np.uint8)
    beats = np.where(compound, 6, 4)
    return {name: ATTRIBUTE_MEASURES[name](real, lengths, beats) for name in names}


def directions(model: Model) -> Directions:
    """Name -> `(meters, D)`: as shipped with the weights, else from the model's training data."""
    from ae_toolkit.runs import checkpoint

    path = model.folder / DIRECTIONS_FILE
    if path.is_file():
        weights = checkpoint.load_weights(model.folder, DIRECTIONS_FILE)
        return {name: rows.float() for name, rows in weights.items()}
    from ae_toolkit.data.examples import load_data

    train = load_data(model.recipe, model.modality, "train")
    found = find_directions(model, train, progress=True)
    with suppress(RunError):  # kept beside the weights, where that may be written
        write_directions(found, path)
    return found


def write_directions(found: Directions, path: Path) -> None:
    """Writes directions in bf16."""
    from safetensors.torch import save

    packed = {name: rows.bfloat16().contiguous() for name, rows in found.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(packed))


def find_directions(model: Model, examples: Examples, *, progress: bool = False) -> Directions:
    """The directions of a model, from its training data; 0 in meters where that is too scarce.

    Each is as long as it takes for what is decoded to change by one standard deviation of the
    attribute: half of what lies between a step ahead and a step back, in the mean over windows.
    """
    import torch

    some = examples.select(range(0, len(examples), max(len(examples) // MAX_WINDOWS, 1)))
    model.need_real_codes()
    codes, meters = model.encode_examples(some).cpu(), some.labels["meter"].numpy()
    values = measure(some.y.numpy(), meters, bars=modality_of(model).bars)
    found = {name: torch.zeros(len(KNOWN_METERS), model.z_dim) for name in ATTRIBUTE_MEASURES}
    known = [k for k in range(len(KNOWN_METERS)) if (meters == k).sum() >= MIN_METER_WINDOWS]
    pairs = [(name, k) for name in ATTRIBUTE_MEASURES for k in known]
    for name, k in track(pairs, "directions", shown=progress):
        mine = np.flatnonzero(meters == k)
        below, above = _extremes(values[name][mine])
        if not (below.any() and above.any()):
            continue
        way = codes[mine[above]].mean(0) - codes[mine[below]].mean(0)
        tried = codes[mine[:: max(len(mine) // TRIED_WINDOWS, 1)]]
        found[name][k] = way * _length(model, tried, way, name, k, float(values[name][mine].std()))
    return found


def _extremes(values: Column) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which values are in the lower quartile and which in the upper.

    Where most are the same, those stand on the one side and all others on the other.
    """
    low, high = np.quantile(values, [0.25, 0.75])
    if low < high:
        return values <= low, values >= high
    below = values < high
    return (below, ~below) if below.any() else (values <= low, values > low)


def _length(
    model: Model, codes: Tensor, way: Tensor, name: str, meter: int, wanted: float
) -> float:
    """How many times a way changes an attribute by as much as is wanted, or by most; 0: never."""
    import torch

    meters = torch.full((len(codes),), meter)
    bars = modality_of(model).bars

    def mean(z: Tensor) -> float:
        steps = model.decode_tensor(z, {"meter": meters}).byte().numpy()
        return float(measure(steps, meters.numpy(), bars=bars, names=[name])[name].mean())

    effects = {}
    for length in TRIED_LENGTHS:
        effects[length] = (mean(codes + length * way) - mean(codes - length * way)) / 2
        if effects[length] >= wanted:
            return length
    best = max(effects, key=lambda length: effects[length])
    return best if effects[best] > 0 else 0.0


def combine(given: Mapping[str, Tensor], amounts: Mapping[str, float], *, meter: int) -> Tensor:
    """The sum of directions `(D,)`, each so many times.

    Raises:
        UsageError: there is none in that meter, for want of data or of an effect.
    """
    total = next(iter(given.values()))[meter] * 0
    for name, amount in amounts.items():
        if not bool(given[name][meter].any()):
            raise UsageError(f"the model knows no direction of {name} in {KNOWN_METERS[meter]}")
        total = total + amount * given[name][meter]
    return total


def pitch_classes(steps: Rows) -> NDArray[np.int64]:
    """The pitch classes of all notes, C is 0."""
    return (steps[steps >= LOWEST_KEY].astype(np.int64) + MIN_PITCH - LOWEST_KEY) % 12


def intervals(steps: Rows) -> NDArray[np.int64]:
    """The intervals between notes in succession, in semitones, all windows in one row."""
    return np.concatenate(
        [np.diff(row[row >= LOWEST_KEY].astype(np.int64)) for row in steps]
        or [np.zeros(0, np.int64)]
    )


def _before(begins: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Whether a note begins so many steps earlier."""
    moved = np.zeros_like(begins)
    moved[:, steps:] = begins[:, :-steps]
    return moved


def _mean(values: NDArray[np.int64]) -> float:
    return float(values.mean()) if len(values) else 0.0
