"""Notation to MIDI through music21, an extra: ABC, MusicXML and kern."""

from __future__ import annotations

import copy
import io
import re
import warnings
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ae_toolkit import RunError
from ae_toolkit.files import read_bytes

MAX_BYTES = 16 << 20  #: of a file

if TYPE_CHECKING:
    from collections.abc import Iterator


def to_midi(path: Path) -> bytes:
    """A score as a MIDI file; of several tunes in one file, the first.

    Repeats and endings are played, or every bar once where their signs make no sense.
    Silence fills up the bar of a pickup, so that bar lines stay where they were written. Chord
    symbols are left out, and so are grace notes.

    Raises:
        UsageError: there is no such file.
        RunError: music21 is missing, or cannot understand the file; the sentence says why.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    if not data.strip():
        raise RunError(f"{path}: is empty")
    if _size(data) > MAX_BYTES:
        raise RunError(f"{path}: is larger than {MAX_BYTES >> 20} MB, which no tune is")
    try:
        with _silence():
            import music21  # noqa: F401
    except ImportError:
        raise RunError(
            f'{path}: notation is read by music21, run: pip install "ae-toolkit[scores]"'
        ) from None
    try:
        with _silence():
            return _translated(_parsed(data, path))
    except Exception as error:  # whatever music21 raises
        reason = re.split(r"\n|\. ", str(error).strip())[0][:100] or type(error).__name__
        raise RunError(f"{path}: music21 cannot read it ({reason})") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Within it, nothing is printed and nothing is warned of."""
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _size(data: bytes) -> int:
    """Bytes, unpacked where they are an archive."""
    if not data.startswith(b"PK"):
        return len(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return len(data)


def _parsed(data: bytes, path: Path) -> Any:
    """A `music21.stream.Score`."""
    from music21 import converter, stream

    reader = converter.Converter()
    if path.suffix.lower() == ".abc":
        text = first_tune(data)
        reader.parseData(text, format="abc")
        _restore_meters(reader.stream, text)
    else:
        kind = "humdrum" if path.suffix.lower() == ".krn" else "musicxml"
        reader.parseFileNoPickle(path, format=kind)
    score = reader.stream
    return score.scores[0] if isinstance(score, stream.Opus) else score


def first_tune(data: bytes) -> str:
    """The first tune of an ABC file, in a form that music21 understands."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("X:")] or [0]
    end = starts[1] if len(starts) > 1 else None
    shared = [line for line in lines[: starts[0]] if re.match("[A-Z]:", line)]
    tune = shared + lines[starts[0] : end]
    keys = [i for i, line in enumerate(tune, start=1) if line.startswith("K:")]
    if not keys:
        raise ValueError("a tune in ABC has a key, a line that begins with K:")
    head, body = "\n".join(tune[: keys[0]]), "\n".join(tune[keys[0] :])
    # music21 loses a change of key or meter within a line, or where no other field is next to it.
    field = "[KLMQ]:"
    body = re.sub(
        rf"\[({field}[^]\n]*)\]|^({field}.*)$", r"\n\1\2\n\1\2\n", body, flags=re.MULTILINE
    )
    return f"{head}\n{body}\n"


def _restore_meters(score: Any, text: str) -> None:
    """Takes out the time signatures that music21 adds around the bars of ABC that are too long.

    They would cut the melody; and one object stands in two bars, which music21 itself refuses.
    """
    from music21 import stream
    from music21.abcFormat import ABCMetadata

    written = set()
    for line in re.findall("^M:.*", text, re.MULTILINE):
        field = ABCMetadata(line)
        field.preParse()
        meter = field.getTimeSignatureObject()
        written |= {meter.ratioString} if meter else set()
    for measure in score[stream.Measure]:
        meter = measure.timeSignature
        keep = meter and meter.ratioString in written
        measure.timeSignature = copy.deepcopy(meter) if keep else None


def _translated(score: Any) -> bytes:
    """A `music21.stream.Score` as MIDI."""
    import mido
    from music21 import harmony, repeat, stream
    from music21.midi.translate import music21ObjectToMidiFile

    for symbol in list(score[harmony.Harmony]):
        score.remove(symbol, recurse=True)
    if any(part.atSoundingPitch is False for part in score.parts):
        score = score.toSoundingPitch()
    firsts = [part[stream.Measure].first() for part in score.parts]
    pickup = max((measure.paddingLeft for measure in firsts if measure is not None), default=0)
    try:
        midi = music21ObjectToMidiFile(score)
    except repeat.ExpanderException:
        midi = music21ObjectToMidiFile(_without_repeats(score))

    file = mido.MidiFile(file=io.BytesIO(midi.writestr()), charset="utf-8")
    for track in file.tracks:
        later = next(event for event in track if event.time or event.type == "note_on")
        later.time += round(pickup * file.ticks_per_beat)
    with_notes = [t for t in file.tracks if any(event.type == "note_on" for event in t)]
    title = score.metadata.bestTitle if score.metadata else None
    if title and len(with_notes) == 1:
        with_notes[0].name = title
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def _without_repeats(score: Any) -> Any:
    """The same score, changed so that music21 finds nothing to repeat in it."""
    from music21 import bar, repeat, spanner, stream

    for measure in score[stream.Measure]:
        for side in ("leftBarline", "rightBarline"):
            if isinstance(getattr(measure, side), bar.Repeat):
                setattr(measure, side, None)
    for kind in (repeat.RepeatExpression, spanner.RepeatBracket):
        for mark in list(score[kind]):
            score.remove(mark, recurse=True)
    return score
