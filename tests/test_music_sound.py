"""What people see and hear of melodies, and notation as a way in: figures, sound, ABC and more."""

from __future__ import annotations

import io
import shutil
import sys
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
import torch
from ae_music.figures import blend_figure, path_figure, rolls_figure, save_figure
from ae_music.grid import Melody, Meter
from ae_music.midi.notation import to_midi
from ae_music.midi.render import render, write_wav
from ae_music.midi.score import Score, read_score
from ae_music.modality import Melodies
from conftest import ROOT

from ae_toolkit import RunError, UsageError
from ae_toolkit.figures import draw_rows

SAMPLES = ROOT / "plugins/ae_music/samples"
RATE = 22050


def tune(name: str) -> Melody:
    return next(Melodies(bars=2).read(SAMPLES / f"{name}.mid"))


def silence(num_bars: int) -> Melody:
    return Melody(np.zeros(16 * num_bars, np.uint8), np.zeros(16 * num_bars, np.uint8))


# Figures.


@pytest.mark.parametrize(("num_bars", "shape"), [(2, (1, 9)), (4, (2, 5)), (16, (9, 1))])
def test_a_blend_is_readable(num_bars: int, shape: tuple[int, int]) -> None:
    a, b = (tune(name).padded(16 * num_bars) for name in ("salamanca-reel", "drowsy-maggie"))
    steps = [a, *[a.transposed(i) for i in range(1, 8)], b]
    figure = blend_figure(steps, names=("The Salamanca Reel", "Drowsy $Maggie, at some length"))
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 9
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape

    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[0].startswith("A: The") and titles[8].startswith("B: Drowsy")
    assert titles[1:8] == ["12.5%", "25%", "37.5%", "50%", "62.5%", "75%", "87.5%"]
    colours = [tuple(axes.collections[-1].get_facecolor()[0]) for axes in panels]
    assert len(set(colours)) == 9

    # No text lies on another.
    down = [panels[0].transData.transform((0, y))[1] for y in panels[0].get_yticks()]
    assert len(down) >= 2 and np.diff(down).min() / figure.dpi > 7 / 72, "names are 7 points high"
    numbers = [label.get_window_extent() for label in panels[-1].get_xticklabels()]
    assert numbers and all(left.x1 < right.x0 for left, right in pairwise(numbers))
    boxes = [axes._left_title.get_window_extent() for axes in panels]
    assert not any(left.overlaps(right) for left, right in pairwise(boxes)), boxes


def test_a_blend_of_unlike_lengths_keeps_one_scale() -> None:
    figure = blend_figure([silence(3), silence(5), silence(8)], names=("short", "long"))
    panels = figure.axes[:3]
    assert {axes.get_xlim() for axes in panels} == {(0, 128)}
    assert [len(axes.get_xticks()) for axes in panels] == [3, 5, 8]


def test_rolls_are_as_many_as_can_be_told_apart() -> None:
    short, long = tune("garryowen").bars(1, 2), tune("rakes-of-mallow").bars(1, 16)
    for melody, shown in ((short, 10), (long, 4)):
        figure = rolls_figure({"original": 10 * [melody], "sample": [melody, silence(1)], "": []})
        visible = [axes for axes in figure.axes if axes.get_visible()]
        assert len(visible) == shown + 2
        assert figure.axes[0].get_ylabel() == "original"
        assert len({axes.get_ylim() for axes in visible}) == 1


def test_what_has_no_notes_is_drawn_too(tmp_path: Path) -> None:
    save_figure(rolls_figure({"sample": [silence(2)]}), tmp_path / "rolls.svg")
    assert (tmp_path / "rolls.svg").stat().st_size
    save_figure(blend_figure([silence(2)] * 3, names=("a", "b")), tmp_path / "blend.pdf")


def test_a_path_begins_at_a_and_ends_at_b(tmp_path: Path) -> None:
    figure = path_figure({"model": [0, 0.2, 0.6], "mix": [0, 0.3, 0.6]}, ylabel="distance to A")
    save_figure(figure, tmp_path / "path.png")
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == 2 * [[0, 50, 100]]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"model": [0, 0.2, 0.6], "mix": [0, 0.3, 0.6]}
    ticks = dict(zip(axes.get_xticks().tolist(), axes.get_xticklabels(), strict=True))
    assert (ticks[0].get_text(), ticks[100].get_text()) == ("A", "B")
    assert axes.get_ylabel() == "distance to A"
    assert axes.get_ylim()[0] == 0


def test_figures_know_their_endings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png"):
        save_figure(path_figure({"x": [0, 1]}, ylabel="y"), tmp_path / "figure.mp3")
    assert not list(tmp_path.iterdir())


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path: Path) -> None:
    named = rolls_figure({"主旋律 メロディー": [silence(2)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(named, tmp_path / "rolls.png")
        draw_rows({"主旋律": [torch.zeros(1, 8)]}, tmp_path / "rows.png")


# Sound.


def note(pitch: int = 69, *, seconds: float = 2.0) -> pretty_midi.PrettyMIDI:
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(pretty_midi.Instrument(0))
    midi.instruments[0].notes.append(pretty_midi.Note(90, pitch, 0.0, seconds))
    return midi


@pytest.fixture
def fluidsynth() -> None:
    if shutil.which("fluidsynth") is None:
        pytest.skip("needs FluidSynth: apt install fluidsynth")


@pytest.fixture
def no_fluidsynth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def fundamental(audio: np.ndarray) -> float:
    """The strongest frequency of one second, in Hz."""
    mono = audio if audio.ndim == 1 else audio.mean(1)
    spectrum = np.abs(np.fft.rfft(mono[:RATE] * np.hanning(RATE)))
    return float(np.fft.rfftfreq(RATE, 1 / RATE)[spectrum.argmax()])


@pytest.mark.usefixtures("fluidsynth")
def test_fluidsynth_is_in_tune() -> None:
    audio, notice = render(note(), rate=RATE)
    assert notice is None and audio.dtype == np.float32 and audio.shape[1] == 2
    assert fundamental(audio) == pytest.approx(440, rel=0.01)
    assert 2 * RATE <= len(audio) < 4 * RATE, "as long as it is heard"


@pytest.mark.usefixtures("no_fluidsynth")
def test_plain_tones_are_in_tune() -> None:
    audio, notice = render(note(), rate=RATE)
    assert notice is not None and "install" in notice and audio.dtype == np.float32
    assert fundamental(audio) == pytest.approx(440, rel=0.01)
    assert 0.5 < np.abs(audio).max() < 1


@pytest.mark.usefixtures("no_fluidsynth")
def test_nothing_sounds_like_nothing(tmp_path: Path) -> None:
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(pretty_midi.Instrument(0, is_drum=True))
    midi.instruments[0].notes.append(pretty_midi.Note(90, 40, 0.0, 1.0))
    for silent in (pretty_midi.PrettyMIDI(), midi):
        audio, _ = render(silent, rate=RATE)
        assert not audio.any()
        write_wav(audio, tmp_path / "silent.wav", rate=RATE)
        assert not soundfile.read(tmp_path / "silent.wav")[0].any()


def test_without_a_soundfont_tones_are_plain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(pretty_midi, "__file__", str(tmp_path / "__init__.py"))
    audio, notice = render(note(), rate=RATE)
    assert audio.any() and notice is not None and "soundfont" in notice


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"lasts 61\.0 minutes"):
        render(note(seconds=61 * 60))
    with pytest.raises(UsageError, match="there is no such file"):
        render(note(), soundfont=tmp_path / "none.sf2")
    with pytest.raises(RunError, match="is a folder"):
        render(note(), soundfont=tmp_path)
    (tmp_path / "text.sf2").write_text("hello")
    with pytest.raises(RunError, match="is not a soundfont"):
        render(note(), soundfont=tmp_path / "text.sf2")


@pytest.mark.usefixtures("fluidsynth")
def test_a_broken_soundfont_is_no_other_sound(tmp_path: Path) -> None:
    """FluidSynth itself would go on with the one of the system."""
    (tmp_path / "cut.sf2").write_bytes(b"RIFF\xff\xff\x00\x00sfbkLIST")
    with pytest.raises(RunError, match="FluidSynth failed: Failed to load"):
        render(note(), soundfont=tmp_path / "cut.sf2")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_failing_program_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "fluidsynth"
    program.write_text("#!/bin/sh\necho one line\necho the last line >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    (tmp_path / "good.sf2").write_bytes(b"RIFF\x04\x00\x00\x00sfbk")
    with pytest.raises(RunError, match=r"^FluidSynth failed: the last line$"):
        render(note(), soundfont=tmp_path / "good.sf2")


@pytest.mark.parametrize(("ending", "rel"), [("wav", 1e-3), ("flac", 1e-3), ("OGG", 0.1)])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_is_as_loud_as_it_can_be(
    ending: str, rel: float, channels: int, tmp_path: Path
) -> None:
    quiet = 0.01 * np.sin(np.arange(3 * RATE) * 0.1).astype(np.float32)
    path = tmp_path / f"sound.{ending}"
    write_wav(quiet if channels == 1 else np.stack([quiet, -quiet], 1), path, rate=RATE)
    audio, rate = soundfile.read(path, always_2d=True)
    assert rate == RATE and audio.shape == (3 * RATE, channels)
    assert np.abs(audio).max() == pytest.approx(10 ** (-1 / 20), rel=rel)


def test_sound_knows_its_endings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.wav"):
        write_wav(np.zeros(8, np.float32), tmp_path / "sound.mp3", rate=RATE)
    assert not list(tmp_path.iterdir())


# Notation.

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
