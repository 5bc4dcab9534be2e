"""Notation as a way in: ABC, MusicXML and kern."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest
from ae_music.grid import Meter
from ae_music.midi.notation import to_midi
from ae_music.midi.score import Score, read_score

from ae_toolkit import RunError, UsageError

HEAD = "X:1\nT:A Š Tune\nM:6/8\nL:1/8\nQ:3/8=100\nK:D\n"

XML = """<?xml version="1.0"?>
<score-partwise version="3.1">
  <work><work-title>Two Bars</work-title></work>
  <part-list><score-part id="P1"><part-name>Clarinet</part-name></score-part></part-list>
  <part id="P1">
    <measure number="1">
      <attributes>
        <divisions>2</divisions>
        <time><beats>3</beats><beat-type>4</beat-type></time>
        <transpose><diatonic>-1</diatonic><chromatic>-2</chromatic></transpose>
      </attributes>
      <harmony><root><root-step>C</root-step></root><kind>major</kind></harmony>
      <note><grace/><pitch><step>D</step><octave>5</octave></pitch><type>eighth</type></note>
      <note><pitch><step>C</step><octave>5</octave></pitch><duration>6</duration></note>
    </measure>
    <measure number="2">
      <note><pitch><step>E</step><octave>5</octave></pitch><duration>6</duration></note>
    </measure>
  </part>
</score-partwise>
"""

KERN = "**kern\n*M3/4\n*k[b-]\n4cc\n=1\n4dd\n4ee\n4ff\n=2\n2gg\n4aa\n==\n*-\n"


def read(text: str | bytes, name: str, folder: Path) -> Score:
    pytest.importorskip("music21", reason='needs music21: pip install "ae-toolkit[scores]"')
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_score(path)


def events(score: Score) -> list[tuple[int, int]]:
    """`(onset, pitch)` of the notes of the first track."""
    track = score.tracks[0]
    return [(round(on), int(pitch)) for on, pitch in zip(track.start, track.pitch, strict=True)]


def test_abc(tmp_path: Path) -> None:
    """A pickup stays before its bar line, a repeat is played, chord symbols are not."""
    score = read(HEAD + '|: A | "D"d3 f3 | a3-a2 :|\n', "tune.abc", tmp_path)
    once = [(10, 69), (12, 74), (18, 78), (24, 81)]
    assert events(score) == once + [(on + 24, pitch) for on, pitch in once]
    assert {meter.value for meter in score.meters} == {Meter(6, 8)}
    assert score.tempi[0].value == pytest.approx(150, rel=1e-3)
    assert score.keys[0].value == 2 and score.title == "A Š Tune"


@pytest.mark.parametrize("change", ["\nM:3/4\nK:G\n", " [M:3/4][K:G] ", "\nK:G\nM:3/4\n"])
def test_abc_changes_meter_and_key(change: str, tmp_path: Path) -> None:
    score = read(HEAD + f"A6 | c6 |{change}A2 B2 c2 | c6 |\n", "tune.abc", tmp_path)
    assert [(meter.at, meter.value) for meter in score.meters] == [(0, (6, 8)), (24, (3, 4))]
    assert events(score) == [(0, 69), (12, 73), (24, 69), (28, 71), (32, 72), (36, 72)]
    assert [key.value for key in score.keys] == [2, 7]


def test_abc_bars_that_are_too_long_add_no_meters(tmp_path: Path) -> None:
    score = read(HEAD + "A3 B3 c2 | d6 | A3 B3 c2 | d6 |\n", "tune.abc", tmp_path)
    assert {meter.value for meter in score.meters} == {Meter(6, 8)}


def test_of_many_tunes_the_first(tmp_path: Path) -> None:
    text = f"%abc-2.1\nA book of tunes, (not a tune.\n\n{HEAD}A6|B6|\n\nX:2\nK:C\nL:1/8\nc6|d6|\n"
    assert events(read(text, "book.abc", tmp_path)) == [(0, 69), (12, 71)]


@pytest.mark.parametrize(
    "sign",
    [
        '<barline location="left"><repeat direction="forward"/></barline>',
        "<direction><direction-type><words>D.S. al Coda</words></direction-type></direction>",
    ],
)
def test_repeats_that_make_no_sense_are_not_played(sign: str, tmp_path: Path) -> None:
    score = read(XML.replace("</attributes>", f"</attributes>{sign}"), "tune.xml", tmp_path)
    assert events(score) == [(0, 70), (12, 74)]


@pytest.mark.parametrize("name", ["tune.musicxml", "tune.xml", "tune.mxl"])
def test_musicxml(name: str, tmp_path: Path) -> None:
    """It sounds as a clarinet does, a tone lower than written, without the grace note."""
    data: str | bytes = XML
    if name.endswith(".mxl"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            rootfile = '<rootfile full-path="tune.xml"/>'
            container = f"<container><rootfiles>{rootfile}</rootfiles></container>"
            archive.writestr("META-INF/container.xml", container)
            archive.writestr("tune.xml", XML)
        data = buffer.getvalue()
    score = read(data, name, tmp_path)
    assert events(score) == [(0, 70), (12, 74)]
    assert score.meters[0].value == Meter(3, 4) and score.title == "Two Bars"


def test_kern(tmp_path: Path) -> None:
    score = read(KERN, "tune.krn", tmp_path)
    assert events(score) == [(8, 72), (12, 74), (16, 76), (20, 77), (24, 79), (32, 81)]
    assert score.keys[0].value == 5


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tune.abc", b"", "is empty"),
        ("tune.mxl", b" \n", "is empty"),
        ("tune.abc", bytes(range(256)), "music21 cannot read it"),
        ("tune.abc", b"X:1\nM:4/4\nL:1/8\nABcd|\n", "begins with K:"),
        ("tune.abc", HEAD.encode() + b"A2 [B2 d4 | c8\n", "music21 cannot read it"),
        ("tune.abc", HEAD.encode() + b'"G"z6|z6|\n', "has no notes"),
        ("tune.xml", b"<html><body>Hello</body></html>", "score-partwise"),
        ("tune.mxl", b"PK\x03\x04 and no more", "music21 cannot read it"),
        ("tune.musicxml", XML.encode()[:700], "music21 cannot read it"),
        ("tune.krn", b"hello\n", "music21 cannot read it"),
    ],
)
def test_what_cannot_be_read(
    name: str, data: bytes, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match=message) as error:
        read(data, name, tmp_path)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_an_archive_that_unfolds_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "tune.mxl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tune.xml", bytes(17 << 20))
    with pytest.raises(RunError, match="larger than 16 MB"):
        to_midi(tmp_path / "tune.mxl")


def test_notation_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        to_midi(tmp_path / "none.abc")
    with pytest.raises(RunError, match="is a folder"):
        to_midi(tmp_path)


def test_without_music21(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)
    (tmp_path / "tune.abc").write_text(HEAD + "A6|B6|\n")
    with pytest.raises(RunError, match=r'pip install "ae-toolkit\[scores\]"'):
        to_midi(tmp_path / "tune.abc")
