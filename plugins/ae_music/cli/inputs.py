"""What the commands share: melodies from files as people name them, and what they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ae_music.cli.options import is_many
from ae_toolkit import RunError, UsageError
from ae_toolkit.files import check_output, printable, safe_names

if TYPE_CHECKING:
    from ae_music.grid import Melody
    from ae_music.midi.score import Score, Track
    from ae_toolkit.data.shards import Skipped

#: Where nobody says what to blend.
DEFAULT_PAIR = Path("drowsy-maggie"), Path("smash-the-windows-reel")

T = TypeVar("T")


class Source(NamedTuple):
    """A melody and where it was found.

    Attributes:
        melody: one section of it, or the bars that were asked for.
        score: all of the file.
        track: the one that the melody was taken from.
        said: sentences on what the user should know of the choice.
    """

    melody: Melody
    score: Score
    track: Track
    said: list[str]

    @property
    def accompaniment(self) -> list[Track]:
        """The tracks but the one, or the ones, that the melody was taken from."""
        tracks = self.score.tracks
        if any(track is self.track for track in tracks):
            return [track for track in tracks if track is not self.track]
        return [track for track in tracks if track.is_drum]


def read_source(path: Path, *, track: str | None = None, bars: str | None = None) -> Source:
    """The melody of a file: the longest of its sections, or the bars asked for.

    Args:
        path: of a file, or the name of a tune that ships with the package.
        track: as `extract.melodies_of` takes it.
        bars: such as `5:7`, counted from 1 through all sections.

    Raises:
        UsageError: there is no such file, track or bar.
        RunError: there is no melody in it; the sentence says why.
    """
    from dataclasses import replace

    from ae_music.midi.choose import choose_track
    from ae_music.midi.extract import melodies_of
    from ae_music.midi.score import read_score
    from ae_music.midi.timing import describe_timing, timing_of

    path = find_tune(path)
    where = f"{path}: "
    score = read_score(path)
    found = melodies_of(score, track=track, where=where)
    chosen = choose_track(score, track, where=where).track
    timing = describe_timing(timing_of(chosen, tick=score.tick))
    said = [f"{where}{timing}"] if timing else []
    if bars is not None:
        first, last = parse_bars(bars)
        melody, before = _section_of(found, first, where)
        if last - before > melody.num_bars:
            total = sum(each.num_bars for each in found)
            what = "has" if len(found) == 1 or last > total else "changes meter or tempo within"
            raise UsageError(f"{where}{what} bars {first}:{min(last, total)}, of {total} in all")
        melody = melody.bars(first - before, last - before)
        if not melody.num_notes:
            raise RunError(f"{where}no melody was found, bars {bars} hold no notes")
    else:
        longest = max(range(len(found)), key=lambda i: len(found[i]))
        melody = found[longest]
        if len(found) > 1:
            at = 1 + sum(each.num_bars for each in found[:longest])
            said.append(
                f"{where}changes meter or tempo, so it has {len(found)} sections; the longest was "
                f"taken, bars {at}:{at + melody.num_bars - 1} (see 'ae music info', choose with "
                f"--bars)"
            )
    if not melody.name:
        melody = replace(melody, name=printable(path.stem))
    return Source(melody, score, chosen, said)


def reader(tracks: Sequence[str], bars: Sequence[str]) -> Callable[[Path], Source]:
    """What reads the melody of a file, where one is asked for in the same way of each."""
    if len(tracks) > 1 or len(bars) > 1:
        raise UsageError("--track and --bars are given once, and hold for every file")
    track, chosen = next(iter(tracks), None), next(iter(bars), None)
    return lambda file: read_source(file, track=track, bars=chosen)


class Found(NamedTuple, Generic[T]):
    """What was made of files.

    Attributes:
        items: one for each file that could be read.
        places: where their results go, where a place was asked for.
        skipped: the paths of the others, and why.
        many: whether several files or a folder were asked for.
    """

    items: list[T]
    places: list[Path]
    skipped: Sequence[tuple[str, str]]
    many: bool

    @property
    def num_files(self) -> int:
        return len(self.items) + len(self.skipped)


def read_each(
    paths: Sequence[Path],
    read: Callable[[Path], T],
    *,
    out: Path | None = None,
    ending: str = ".mid",
) -> Found[T]:
    """Reads files, names of bundled tunes, and all melodies below folders; skips what is broken.

    Args:
        paths: as the user gave them; a file that was named twice counts once.
        read: what is made of one.
        out: where the result goes; of several files, the folder for the results.
        ending: of results in a folder.

    Raises:
        UsageError: there is no such file, nothing of the kind in a folder, or a file in the place
            of a result that nobody asked to replace.
        RunError: the only file, or every one of them, is broken.
    """
    from ae_music.modality import Melodies
    from ae_toolkit.data import folder

    skipped: list[Skipped] = []
    many = is_many(paths)
    files = [*dict.fromkeys(folder.list_files(map(find_tune, paths), Melodies()))]
    places = [out] * len(files) if out is not None else []
    if out is not None and many:
        places = [out / f"{name}{ending}" for name in safe_names([file.stem for file in files])]
    for place in places:
        check_output(place, named=not many)
    found = [*folder.read_each(files, read, skipped)]
    place_of = dict(zip(files, places, strict=False))
    return Found(
        [item for _, item in found],
        [place_of[file] for file, _ in found if place_of],
        skipped,
        many,
    )


def _section_of(found: Sequence[Melody], bar: int, where: str) -> tuple[Melody, int]:
    """The section that holds a bar, and how many bars lie before it."""
    before = 0
    for melody in found:
        if bar <= before + melody.num_bars:
            return melody, before
        before += melody.num_bars
    raise UsageError(f"{where}has {before} bars, and none with the number {bar}")


def parse_bars(text: str) -> tuple[int, int]:
    """Reads `5:7` or `5`.

    Raises:
        UsageError: it is of another form.
    """
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    first, last = (int(n) for n in (match[1], match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(f"--bars takes first:last, such as 5:7, counted from 1, not {text!r}")
    return first, last


def for_both(values: Sequence[str], option: str) -> tuple[str | None, str | None]:
    """An option that is given once for A and B alike, or twice."""
    if len(values) > 2:
        raise UsageError(f"{option} is given once for both files or twice, not {len(values)} times")
    return (values[0], values[-1]) if values else (None, None)


def tune_names() -> list[str]:
    """The tunes that ship for examples."""
    folder = files("ae_music") / "samples"
    return sorted(i.name.removesuffix(".mid") for i in folder.iterdir() if i.name.endswith(".mid"))


def find_tune(path: Path) -> Path:
    """A path, or where a bundled tune of that name lies."""
    name = path.name.removesuffix(".mid")
    if path.exists() or path.parent != Path() or name not in tune_names():
        return path
    with as_file(files("ae_music") / "samples" / f"{name}.mid") as inside:
        return inside
