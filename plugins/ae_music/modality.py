"""Melodies as a data type: MIDI files of any length, cut into windows of whole bars.

An item is a `pretty_midi.PrettyMIDI`, or a `Melody`, which is lighter and therefore what `read`
gives. Its tensor is `(T,)`, a value per sixteenth; shorter meters leave the end of a window masked.

Axes: B windows, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ae_music.grid import (
    COMMON_TIME,
    KNOWN_METERS,
    LONGEST_BAR,
    LOWEST_KEY,
    MAX_PITCH,
    METER_CLASSES,
    MIN_PITCH,
    NO_EVENT,
    NOTE_OFF,
    NUM_VALUES,
    Melody,
    Meter,
    canonical,
    meter_class,
    windows,
)
from ae_music.midi.extract import melodies_of
from ae_music.midi.score import MIDI_SUFFIXES, NOTATION_SUFFIXES, Score, read_score, score_of
from ae_toolkit import Modality, UsageError
from ae_toolkit.contracts import Example, Size, StepContext
from ae_toolkit.files import printable

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

    from ae_toolkit import Model

REGISTER_PITCHES = 67, 78  #: the median pitch that a model is given, moved there by octaves


class Melodies(Modality):
    """Windows of a melody.

    Args:
        bars: of a window.
        transpose: augmentation, up to so many semitones up or down, drawn anew each time.
        transposed: the share of windows that are transposed, at the training's beginning and end:
            a prior learns the keys of the corpus where the share falls.
    """

    suffixes: ClassVar[tuple[str, ...]] = (*MIDI_SUFFIXES, *NOTATION_SUFFIXES)

    def __init__(
        self, *, bars: Size = 2, transpose: int = 0, transposed: tuple[float, float] = (1.0, 1.0)
    ):
        if transpose < 0 or not all(0 <= share <= 1 for share in transposed):
            raise ValueError("transpose is a number of semitones, transposed two shares in [0, 1]")
        self.bars, self.transpose, self.transposed = bars, transpose, transposed
        self.shape = (bars * LONGEST_BAR,)
        self.num_classes = NUM_VALUES
        self.labels = {"meter": len(KNOWN_METERS)}

    # Files and objects.

    def read(self, path: Path) -> Iterator[Melody]:
        for melody in melodies_of(read_score(path), where=f"{path}: "):
            yield melody if melody.name else replace(melody, name=printable(path.stem))

    def write(self, items: Sequence[Any], path: Path) -> None:
        """One melody after the other, each in its own tempo and meter."""
        from ae_music.midi.write import to_midi

        if path.suffix.lower() not in MIDI_SUFFIXES:
            raise UsageError(
                f"{path}: melodies are written as MIDI, choose a name that ends in .mid"
            )
        to_midi([as_written(item) for item in items]).write(str(path))

    # Items and tensors.

    def to_tensor(self, item: Any) -> Example:
        return self.segments(item)[0]

    def segments(self, item: Any) -> list[Example]:
        return self._examples(melody_of(item), hop=self.bars)

    def training_examples(self, item: Any) -> list[Example]:
        """A window from every bar on; of several that are the same, and of silence, none."""
        return self._examples(melody_of(item), hop=1, different=True)

    def from_tensor(
        self, y: Tensor, *, like: Any = None, labels: Mapping[str, float] | None = None
    ) -> PrettyMIDI:
        return self.join([y], like=like, labels=labels)

    def join(
        self,
        segments: Sequence[Tensor],
        *,
        like: Any = None,
        labels: Mapping[str, float] | None = None,
    ) -> PrettyMIDI:
        from ae_music.midi.write import to_midi

        melody = self.melody(
            segments, like=None if like is None else melody_of(like), labels=labels
        )
        return to_midi([melody])

    def melody(
        self,
        segments: Sequence[Tensor],
        *,
        like: Melody | None = None,
        labels: Mapping[str, float] | None = None,
    ) -> Melody:
        """Windows `(T,)` in order, as one melody.

        Args:
            segments: prepared values.
            like: gives the meter, tempo, key, instrument, loudness and octave, and the number of
                bars where the windows are as many as its own.
            labels: the meter, where there is nothing to be like.
        """
        chosen = int((labels or {}).get("meter", meter_class(like.meter if like else COMMON_TIME)))
        size = self.bars * KNOWN_METERS[chosen].steps
        values = torch.cat([segment[:size] for segment in segments]).byte().numpy()
        steps = canonical(values)
        if like is None:
            return Melody(steps, _loudness(steps, None), KNOWN_METERS[chosen])
        if meter_class(like.meter) != chosen:
            like = replace(like, meter=KNOWN_METERS[chosen])
        made = replace(like, steps=steps, velocities=_loudness(steps, like))
        bar = like.meter.steps
        ends = len(like) if math.ceil(len(like) / size) == len(segments) else len(steps)
        made = made.padded(max(ends // bar, 1) * bar)
        return made.transposed(-12 * octave_shift(like))

    def align(self, a: Any, b: Any) -> tuple[Melody, Melody]:
        """Bar by bar: where models know their meters as two, b's bar lines are drawn anew in a's.

        Then, or where only one begins with a pickup, pickups are left out.
        """
        first, second = melody_of(a), melody_of(b)
        alike = meter_class(first.meter) == meter_class(second.meter)
        if not alike or has_pickup(first) != has_pickup(second):
            first, second = without_pickup(first), without_pickup(second)
        return first, rebarred(second, first)

    def mask(self, labels: Mapping[str, Tensor], num: int) -> Tensor | None:
        bars = torch.tensor([meter.steps for meter in KNOWN_METERS])
        meter = labels.get("meter", torch.zeros(num, dtype=torch.long)).cpu().long()
        return torch.arange(self.shape[0]) < self.bars * bars[meter][:, None]

    def fingerprints(self, y: Tensor) -> list[bytes]:
        """Windows are the same in whatever key."""
        values = y.numpy().astype(np.int16)
        sounding = values >= LOWEST_KEY
        lowest = np.where(sounding, values, NUM_VALUES).min(1, keepdims=True)
        relative = np.where(sounding, values - lowest + LOWEST_KEY, values).astype(np.uint8)
        return [row.tobytes() for row in relative]

    def prepare(self, y: Tensor) -> Tensor:
        return y.long()

    def augment(self, y: Tensor, step: StepContext) -> Tensor:
        """Each window in a key of its own, as far as the keyboard reaches."""
        if not self.transpose:
            return y
        first, last = self.transposed
        share = first + (last - first) * step.progress
        noise = step.rand((y.shape[0], 2))
        by = ((2 * self.transpose + 1) * noise[:, :1]).floor().long() - self.transpose
        by = torch.where(noise[:, 1:] < share, by, 0)
        sounding = y >= LOWEST_KEY
        low = torch.where(sounding, y, NUM_VALUES - 1).amin(1, keepdim=True)
        high = torch.where(sounding, y, LOWEST_KEY).amax(1, keepdim=True)
        by = torch.maximum(torch.minimum(by, NUM_VALUES - 1 - high), LOWEST_KEY - low)
        return torch.where(sounding, y + by, y)

    # Judging and looking.

    def metrics(self, y: Tensor, y_hat: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Per window: the share of steps that are right, and whether all are."""
        real = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
        right = (y == y_hat) | ~real
        accuracy = (right & real).sum(1) / real.sum(1)
        return {"accuracy": accuracy, "exact": right.all(1).float()}

    def figure(self, rows: Mapping[str, Sequence[Any]], path: Path) -> None:
        from ae_music.figures import rolls_figure, save_figure

        melodies = {name: [as_written(item) for item in items] for name, items in rows.items()}
        save_figure(rolls_figure(melodies), path)

    def _examples(self, melody: Melody, *, hop: int, different: bool = False) -> list[Example]:
        labels = {"meter": meter_class(melody.meter)}
        rows = windows(melody.transposed(12 * octave_shift(melody)), self.bars, hop=hop)
        if different:
            by_content = {row.tobytes(): row for row in rows}
            idle = bytes([NO_EVENT, NOTE_OFF])
            rows = [row for content, row in by_content.items() if content.strip(idle)]
        return [Example(torch.from_numpy(row), labels, "") for row in rows]


def melody_of(item: Any) -> Melody:
    """An item as a melody; the longest one of an object that has several sections.

    Raises:
        UsageError: it is neither a `PrettyMIDI` nor a `Melody`.
        RunError: there is no melody in it.
    """
    if isinstance(item, Melody):
        return item
    if not hasattr(item, "instruments"):
        raise UsageError(f"a melody is a pretty_midi.PrettyMIDI, not a {type(item).__name__}")
    return _longest(score_of(item))


def as_written(item: Any) -> Melody:
    """An item that a model has made, as a melody: bar lines as they are, or a bar of silence."""
    if isinstance(item, Melody):
        return item
    if not any(instrument.notes for instrument in item.instruments):
        meters = [Meter(m.numerator, m.denominator) for m in item.time_signature_changes]
        meter = next((meter for meter in meters if meter.steps), COMMON_TIME)
        silence = np.zeros(meter.steps, np.uint8)
        return Melody(silence, silence.copy(), meter)
    return _longest(replace(score_of(item), knows_bars=True))


def _longest(score: Score) -> Melody:
    return max(melodies_of(score, where="the PrettyMIDI object: "), key=len)


def modality_of(model: Model) -> Melodies:
    """The data type of a model of melodies.

    Raises:
        UsageError: the model is of another.
    """
    if not isinstance(model.modality, Melodies):
        raise UsageError(
            f"model {model.recipe.name!r} is of data type {model.recipe.modality.name!r}, and "
            f"'ae music' needs one of melodies"
        )
    return model.modality


def octave_shift(melody: Melody) -> int:
    """By how many octaves a melody must rise for its median pitch to lie in the register.

    No farther than the keyboard reaches for every note of it.
    """
    pitches = melody.pitches
    if not len(pitches):
        return 0
    median = int(np.sort(pitches)[len(pitches) // 2])
    low, high = REGISTER_PITCHES
    up = -(-(low - median) // 12) if median < low else 0
    down = -(-(median - high) // 12) if median > high else 0
    room_above, room_below = MAX_PITCH - int(pitches.max()), int(pitches.min()) - MIN_PITCH
    return min(up, room_above // 12) - min(down, room_below // 12)


def rebarred(melody: Melody, like: Melody) -> Melody:
    """A melody with the bar lines of another, if its own are of another kind; notes stay."""
    if meter_class(melody.meter) == meter_class(like.meter):
        return melody
    meter = like.meter if like.meter in METER_CLASSES else COMMON_TIME
    bar = meter.steps
    return replace(melody, meter=meter).padded(bar * math.ceil(len(melody) / bar))


def has_pickup(melody: Melody) -> bool:
    """Whether the first bar holds no more than an upbeat."""
    bar = melody.meter.steps
    begins = np.flatnonzero(melody.steps >= LOWEST_KEY)
    return melody.num_bars > 1 and len(begins) > 0 and int(begins[0]) >= bar / 2


def without_pickup(melody: Melody) -> Melody:
    """A melody from its first whole bar on."""
    return melody.bars(2, melody.num_bars) if has_pickup(melody) else melody


def _loudness(steps: np.ndarray, like: Melody | None) -> np.ndarray:
    """Velocities: those of `like` where it has a note at the same step, else its usual one."""
    velocities = np.zeros(len(steps), np.uint8)
    at = np.flatnonzero(steps >= LOWEST_KEY)
    loud = like.velocities[like.velocities > 0] if like is not None else np.array([])
    velocities[at] = int(np.median(loud)) if len(loud) else 80
    if like is not None:
        both = at[at < len(like)]
        both = both[like.velocities[both] > 0]
        velocities[both] = like.velocities[both]
    return velocities
