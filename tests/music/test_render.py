"""Melodies as sound: in tune, as loud as can be, by FluidSynth or as plain tones."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
from ae_music.midi.render import render, write_wav

from ae_toolkit import RunError, UsageError

RATE = 22050


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
