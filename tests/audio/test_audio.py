"""The audio plugin: notes read with care, brought to levels and back, morphed and sung."""

from __future__ import annotations

import math
import os
import runpy
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
import torch
from ae_audio.corruptions import Hiss
from ae_audio.dsp import sound, spectrum
from ae_audio.dsp.pitch import find_pitch, parse_pitch, pitch_name
from ae_audio.dsp.sound import Sound, read_sound, write_sounds
from ae_audio.latent.morph import evenly_bright
from ae_audio.latent.song import RELEASE_SECONDS, Tone, read_melody, sing, within
from ae_audio.modality import Notes, align_note
from conftest import ROOT

from ae_toolkit import RunError, UsageError, load
from ae_toolkit.files import is_signed
from ae_toolkit.randomness import Source
from ae_toolkit.testing.contracts import check_modality

SAMPLES = ROOT / "plugins/ae_audio/samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.flac"))
TUNE = ROOT / "plugins/ae_music/samples/garryowen.mid"


def tone(hertz: float = 440.0, *, seconds: float = 1.2, rate: int = 16_000) -> np.ndarray:
    """Five harmonics, after a moment of silence."""
    t = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * math.pi * k * hertz * t) / k for k in range(1, 6))
    return np.concatenate([np.zeros(rate // 10), 0.3 * wave]).astype(np.float32)


def test_data_type_keeps_its_contract(tmp_path: Path) -> None:
    check_modality(
        Notes(), [read_sound(SAMPLES / f"{n}.flac") for n in ("flute", "cello")], tmp_path
    )


# Reading.


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 44_101, 48_000, 96_000, 192_000])
def test_any_rate(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate=rate), rate)
    assert align_note(read_sound(tmp_path / "a.wav")).pitch == 69


@pytest.mark.parametrize(
    ("ending", "subtype"),
    [("wav", "PCM_U8"), ("wav", "PCM_24"), ("wav", "PCM_32"), ("wav", "FLOAT"), ("wav", "DOUBLE"),
     ("wav", "ULAW"), ("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS")],
)  # fmt: skip
def test_any_format(tmp_path: Path, ending: str, subtype: str) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(220.0, rate=44_100), 44_100, subtype)
    assert align_note(read_sound(path)).pitch == 57


def test_channels_that_cancel_are_still_heard(tmp_path: Path) -> None:
    wave = tone()
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], 1), 16_000)
    assert align_note(read_sound(tmp_path / "a.wav")).pitch == 69


def not_a_number() -> np.ndarray:
    wave = tone()
    wave[100:110] = np.nan
    return wave


BAD = {
    "silent": (np.zeros(16_000, np.float32), "is silent"),
    "nan": (not_a_number(), "10 of its 20800 samples are not finite numbers"),
    "infinite": (np.full(16_000, np.inf, np.float32), "16000 of its 16000 samples are not finite"),
    "loud": (1e17 * tone(), "its samples reach 4.7e+16, and full scale is 1"),
    "one": (np.ones(1, np.float32), "holds 1 samples"),
    "none": (np.zeros(0, np.float32), "holds 0 samples"),
    "long": (np.zeros(61 * 8_000, np.float32), "lasts 61.0 seconds, and a note at most 60 seconds"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sound_is_one_sentence(ae, tmp_path: Path, name: str) -> None:
    samples, sentence = BAD[name]
    rate = 8_000 if name == "long" else 16_000
    soundfile.write(tmp_path / "a.wav", samples, rate, "FLOAT")
    said = ae("audio", "reconstruct", "a.wav", "-o", "b.wav", code=1).output
    assert "a.wav" in said and sentence in said
    assert not (tmp_path / "b.wav").exists()


def test_ten_hours_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 1_000, 1) as file:
        silence = np.zeros(1_000 * 3600, np.int16)
        for _ in range(10):
            file.write(silence)
    with pytest.raises(RunError, match=r"lasts 10\.0 hours"):
        read_sound(tmp_path / "a.flac")


def test_what_a_header_promises_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a megabyte can hold gigabytes of silence."""
    monkeypatch.setattr(sound, "MAX_SAMPLES", 20_000_000)
    click = np.zeros((200_000, 8), np.int16)
    click[100] = 20_000
    for name, rate, num in (("rate", 655_350, 1), ("many", 96_000, 14), ("most", 96_000, 10)):
        with soundfile.SoundFile(tmp_path / f"{name}.flac", "w", rate, 8) as file:
            for _ in range(num):
                file.write(click)
    with pytest.raises(RunError, match=r"has 655,350 samples a second, and .* to 384,000 are read"):
        read_sound(tmp_path / "rate.flac")
    with pytest.raises(RunError, match=r"holds 22 million samples in 8 channels, and at most 20"):
        read_sound(tmp_path / "many.flac")
    tracemalloc.start()
    assert len(read_sound(tmp_path / "most.flac").samples) == 2_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # all channels at once are 64 MB


def test_several_sounds_become_a_folder(ae, tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", tone(), 16_000)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", tone(), 16_000)
    (tmp_path / "in/bad\033[2J.wav").write_bytes(b"RIFF")
    ae("audio", "reconstruct", "a.wav", "b.wav", "-o", "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.wav", "b.wav"}
    (tmp_path / "out/b.wav").write_text("mine")
    said = ae("audio", "denoise", "a.wav", "b.wav", "-o", "out", code=2).output
    assert "b.wav: exists already, and was not named to be replaced" in said
    ae("audio", "denoise", "a.wav", "b.wav", "-o", "out", "--overwrite")
    said = ae("audio", "denoise", "a.wav", "in", "-o", "clean", code=1, failed=False).output
    assert "skipped 1 of 3 files" in said and "\033" not in said
    assert {path.name for path in (tmp_path / "clean").iterdir()} == {"000-a.wav", "001-a.wav"}
    said = ae("audio", "denoise", "a.wav", "b.wav", "-o", "c.wav", code=2).output
    assert "-o is the folder" in said and not (tmp_path / "c.wav").exists()
    said = ae("audio", "figure", "a.wav", "in", "flute", code=1, failed=False).output
    assert "3 sounds" in said and (tmp_path / "spectrograms.png").is_file()
    (tmp_path / "in/a.wav").unlink()
    assert "is no sound file that can be read" in ae("audio", "denoise", "in", code=1).output


@pytest.mark.parametrize("verb", ["reconstruct", "denoise"])
def test_nothing_is_said_of_results_that_do_not_appear(verb: str, ae, tmp_path: Path) -> None:
    refused = ae("audio", verb, "flute", "oboe", "gone.wav", "-o", "out", code=2)
    assert "gone.wav: there is no such file" in refused.stderr and not refused.stdout
    (tmp_path / "out").mkdir()
    (tmp_path / "out/oboe.wav").write_text("mine")
    refused = ae("audio", verb, "flute", "oboe", "-o", "out", code=2)
    assert "oboe.wav: exists already" in refused.stderr and not refused.stdout
    assert os.listdir("out") == ["oboe.wav"]


def test_steps_replace_nothing_that_was_not_named(ae, tmp_path: Path) -> None:
    walk = ["audio", "interpolate", "flute", "guitar", "--steps", "2", "-o", "m.wav", "--each", "s"]
    (tmp_path / "s").mkdir()
    (tmp_path / "s/m-01.wav").write_text("mine")
    said = ae(*walk, code=2).output
    assert "was not named to be replaced" in said and (tmp_path / "s/m-01.wav").read_text()
    assert not (tmp_path / "m.wav").exists() and not (tmp_path / "s/m-00.wav").exists()
    ae(*walk, "--overwrite")
    assert read_sound(tmp_path / "s/m-01.wav").seconds > 0.5


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("morph.wav", ["interpolate", "flute", "guitar", "--steps", "2"]),
        ("notes.wav", ["sample", "-n", "1"]),
        ("song.wav", ["play-with", "note-timbre", "a.mid"]),
        ("reconstructed.wav", ["reconstruct", "flute"]),
        ("clean.wav", ["denoise", "flute"]),
        ("spectrograms.png", ["figure", "flute"]),
    ],
)
def test_a_default_name_replaces_only_what_is_ours(
    name: str, verb: list[str], ae, tmp_path: Path
) -> None:
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(pretty_midi.Instrument(0))
    midi.instruments[0].notes.append(pretty_midi.Note(80, 60, 0, 0.5))
    midi.write(str(tmp_path / "a.mid"))
    (tmp_path / name).write_text("mine")
    said = ae("audio", *verb, code=2).output
    assert f"{name}: exists already" in said and (tmp_path / name).read_text() == "mine"
    ae("audio", *verb, "--overwrite")
    assert sorted(os.listdir()) == ["a.mid", name] and is_signed(tmp_path / name)


def test_sounds_are_files_by_whatever_name(ae, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "is a pipe, not a file" in ae("audio", "denoise", "pipe.wav", code=1).output
    said = ae("audio", "denoise", "flute", "-o", "pipe.wav", code=1).output
    assert "is a pipe, not a file that could be replaced" in said
    long = "n" * 300 + ".wav"
    assert "File name too long" in ae("audio", "denoise", long, code=1).output
    assert "File name too long" in ae("audio", "denoise", "flute", "-o", long, code=1).output
    odd = os.fsdecode(b"\xff\x07.wav")
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    os.rename(tmp_path / "a.wav", tmp_path / odd)
    said = ae("audio", "interpolate", odd, "flute", "-o", odd.replace("\x07", "2")).output
    assert "\x07" not in said and r"from \udcff\x07 to flute" in said


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text\n" * 50, b"RIFF\x00\x00\x00\x00WAVE"]
)
def test_what_is_called_wav_and_is_none(ae, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    said = ae("audio", "figure", "a.wav", code=1).output
    assert "a.wav: " in said


def test_misuse_is_told(ae, tmp_path: Path) -> None:
    assert "no such file" in ae("audio", "reconstruct", "gone.wav", code=2).output
    assert "did you mean 'flute'" in ae("audio", "reconstruct", "flut", code=2).output
    assert "ends in .wav" in ae("audio", "reconstruct", "flute", "-o", "b.mp3", code=2).output
    assert "is no pitch" in ae("audio", "sample", "--pitch", "H4", code=2).output
    said = ae("audio", "sample", "--model", "mnist-2d", code=2).output
    assert "not of notes" in said
    assert "not told the pitch" in ae("audio", "sample", "--model", "note-denoise", code=2).output


def click_at_the_end() -> np.ndarray:
    wave = np.zeros(16_000, np.float32)
    wave[-1] = 0.5
    return wave


HOSTILE = {
    "click": (click_at_the_end(), 16_000),
    "tiny": (tone(seconds=0.021)[1600:], 16_000),
    "low": (tone(55.0, rate=1_001), 1_001),
    "high": (tone(rate=384_000, seconds=0.2), 384_000),
    "shorts": (32_768 * tone(), 16_000),
    "constant": (np.full(16_000, 0.5, np.float32), 16_000),
    "noise": (np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_odd_sounds_go_through_every_verb(ae, tmp_path: Path, name: str) -> None:
    samples, rate = HOSTILE[name]
    soundfile.write(tmp_path / "a.wav", samples, rate, "FLOAT")
    for verb in (
        ["reconstruct", "a.wav"],
        ["interpolate", "a.wav", "flute", "--steps", "2"],
        ["interpolate", "flute", "a.wav", "--steps", "2"],
        ["denoise", "a.wav"],
    ):
        ae("audio", *verb, "-o", "out.ogg")
        assert soundfile.info(tmp_path / "out.ogg").frames > 0


@pytest.mark.parametrize(("num", "rate"), [(400 * 16_000, 16_000), (1_000_000, 1_000_000)])
def test_every_format_takes_any_length_and_rate(tmp_path: Path, num: int, rate: int) -> None:
    samples = torch.linspace(-0.5, 0.5, num)
    for ending in (".wav", ".flac", ".ogg"):
        write_sounds([Sound(samples, rate)], tmp_path / f"a{ending}")
        seconds = len(samples) / rate
        assert soundfile.info(tmp_path / f"a{ending}").duration == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("ending", sound.SOUND_SUFFIXES)
def test_what_is_written_says_who_wrote_it(ending: str, tmp_path: Path) -> None:
    Notes().write([read_sound(SAMPLES / "flute.flac")], tmp_path / f"a{ending}")
    assert is_signed(tmp_path / f"a{ending}")


def test_folders_and_other_files_are_no_sounds(ae, tmp_path: Path) -> None:
    ae("audio", "reconstruct", "flute", "-o", "b.wav")  # the one that ships
    (tmp_path / "flute").mkdir()
    assert "there are no files" in ae("audio", "figure", "flute", code=2).output
    said = ae("audio", "interpolate", "guitar", "flute", code=1).output
    assert "flute: is a folder, not a file" in said
    shutil.copy(SAMPLES / "cello.flac", tmp_path / "flute")
    ae("audio", "denoise", "./flute", "-o", "back")
    assert os.listdir("back") == ["cello.wav"]
    (tmp_path / "b.wav.wav").mkdir()
    assert "there are no files" in ae("audio", "figure", "b.wav.wav", code=2).output
    (tmp_path / "a.raw").write_bytes(b"12345678")
    assert "end in .wav, .flac, .ogg" in ae("audio", "figure", "a.raw", code=2).output
    said = ae("audio", "play-with", "note-timbre", TUNE, "--mix", "nan", code=2).output
    assert "is no number" in said


def test_no_pitch_is_told(ae, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", HOSTILE["noise"][0], 16_000)
    assert "no clear pitch" in ae("audio", "reconstruct", "a.wav", "-o", "b.wav").output


def test_clipping_is_told_and_done(ae, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", (5 * tone()).clip(-1, 1), 16_000)
    assert "is clipped" in ae("audio", "reconstruct", "loud.wav", "-o", "b.wav").output
    assert (tmp_path / "b.wav").is_file()
    soundfile.write(tmp_path / "loud.wav", 5 * tone(), 16_000, "FLOAT")
    assert "is clipped" not in ae("audio", "reconstruct", "loud.wav", "-o", "b.wav").output


def test_notes_are_rendered_as_they_are_named(tmp_path: Path) -> None:
    if shutil.which("fluidsynth") is None:
        pytest.skip("needs FluidSynth")
    make_notes = runpy.run_path(str(ROOT / "scripts/make_notes.py"))
    soundfont = Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"
    notes = [(60, 80), (76, 80)]
    assert make_notes["render"](73, tmp_path, soundfont, notes, ".wav") == 2
    for pitch, velocity in notes:
        sound = read_sound(tmp_path / f"flute_073-{pitch:03}-{velocity:03}.wav")
        assert align_note(sound).pitch == pitch and sound.rate == 16_000 and sound.seconds == 1


# Levels and pitches.


def test_analysis_and_synthesis_lose_little() -> None:
    for name in NAMES:
        samples = align_note(read_sound(SAMPLES / f"{name}.flac")).samples[None]
        levels = spectrum.analyse(samples[:, : spectrum.num_samples(spectrum.NUM_FRAMES)])
        again = spectrum.synthesise(levels)
        lost = spectrum.log_spectral_distance(spectrum.analyse(again), levels)
        assert float(lost) < 3.5, name
        assert float((find_pitch(again) - find_pitch(samples)).abs()) < 0.5, name


@pytest.mark.parametrize("name", NAMES)
def test_pitch_of_shipped_notes(name: str) -> None:
    expected = {"cello": 57}.get(name, 69)
    assert align_note(read_sound(SAMPLES / f"{name}.flac")).pitch == expected


@pytest.mark.parametrize("cents", [-45, -12, 0, 7, 38])
def test_a_note_out_of_tune_is_tuned_and_untuned(cents: int) -> None:
    sound = Sound(torch.from_numpy(tone(440 * 2 ** (cents / 1200))), 16_000)
    note = align_note(sound)
    assert note.pitch == 69 and note.cents == pytest.approx(cents, abs=4)
    assert float(find_pitch(note.samples[None])) == pytest.approx(69, abs=0.05)
    notes = Notes()
    back = notes.from_tensor(notes.prepare(notes.to_tensor(sound).y), like=sound)
    assert align_note(back).cents == pytest.approx(cents, abs=6)
    assert back.peak == pytest.approx(sound.peak, rel=1e-3)


def test_a_short_sound_stays_short() -> None:
    sound, notes = Sound(torch.from_numpy(tone(seconds=0.06)[1600:]), 16_000), Notes()
    back = notes.from_tensor(notes.prepare(notes.to_tensor(sound).y), like=sound)
    assert back.seconds == pytest.approx(sound.seconds, rel=0.02)


def test_pitches_are_read_and_written() -> None:
    assert [parse_pitch(t) for t in ("A4", "c4", "Bb2", "F#3", "60", "C-1")] == [
        69,
        60,
        46,
        54,
        60,
        0,
    ]
    assert [pitch_name(n) for n in (60, 70, 0)] == ["C4", "A#4", "C-1"]
    with pytest.raises(UsageError, match="beyond the keyboard"):
        parse_pitch("A9")


def test_held_notes_keep_their_attack() -> None:
    levels = torch.rand(1, spectrum.NUM_FRAMES, spectrum.NUM_BINS)
    held = spectrum.stretch(levels, 200)
    assert held.shape == (1, 200, spectrum.NUM_BINS)
    assert torch.equal(held[:, :20], levels[:, :20])
    assert torch.allclose(held[:, -1], levels[:, -1])
    assert torch.equal(spectrum.stretch(levels, 10), levels[:, :10])


def test_hiss_is_as_loud_as_it_says() -> None:
    corruption, y = Hiss(quietest=-40, loudest=-40), torch.zeros(50, 1, 64, 512)
    y[..., 100] = 1.0  # a tone, so that the loudest bin stays the loudest
    x, target = corruption(y, y, None, Source(0, "test").step(0))
    magnitudes = 10 ** ((x[..., 200:] - 1) * spectrum.RANGE_DECIBELS / 20)
    found = 10 * torch.log10(magnitudes.square().mean())
    assert target is y and float(found) == pytest.approx(-40, abs=1.5)


def test_hiss_is_of_another_strength_for_every_note() -> None:
    y = torch.zeros(200, 1, 8, 512)
    y[..., 100] = 1.0
    x, _ = Hiss(quietest=-50, loudest=-30)(y, y, None, Source(0, "test").step(0))
    magnitudes = 10 ** ((x[..., 200:] - 1) * spectrum.RANGE_DECIBELS / 20)
    decibels = 10 * torch.log10(magnitudes.square().mean((1, 2, 3)))
    assert decibels.min() == pytest.approx(-50, abs=2)
    assert decibels.max() == pytest.approx(-30, abs=2)
    assert decibels.mean() == pytest.approx(-40, abs=2)


def test_equalised_notes_stay_notes() -> None:
    y = 0.5 + 0.2 * torch.rand(8, *Notes().shape)
    y[:, 0, 3, 100], y[:, 0, 5] = 1.0, 0.0
    varied = Notes(equalise=2.0).augment(y.clone(), Source(0, "test").step(0))
    assert torch.equal(varied == 0, y == 0), "silence stays silent"
    assert torch.allclose(varied.amax((1, 2, 3)), torch.ones(8))
    by = (varied - y)[:, 0, 20, 50:500:50].std(0)
    assert (by > 0.5 / spectrum.RANGE_DECIBELS).all(), "each note in a way of its own"
    assert Notes().augment(y, Source(0, "test").step(0)) is y


def test_morphs_are_evenly_bright() -> None:
    fall = torch.linspace(0, 1, spectrum.NUM_BINS)[None, None]
    share = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0])[:, None, None]
    levels = (1 - fall * (0.9 - 0.5 * share)).expand(5, spectrum.NUM_FRAMES, -1)
    assert spectrum.centroid(levels).log().diff().std() > 0.1
    octaves = spectrum.centroid(evenly_bright(levels)).log().diff()
    assert torch.allclose(octaves, octaves.mean(), rtol=0.05)


# Songs.


def test_song_is_as_long_as_the_melody_and_sings_its_notes() -> None:
    model = load("note-timbre")
    code = model.encode([read_sound(SAMPLES / "flute.flac")])[0]
    tones = [Tone(0, 0.5, 60, 0.8), Tone(0.5, 2.5, 67, 0.8), Tone(2.5, 2.6, 72, 0.4)]
    song = sing(model, tones, code)
    assert song.seconds == pytest.approx(2.6 + RELEASE_SECONDS + 0.1, abs=0.01)
    for start, end, pitch, _ in tones[:2]:
        part = song.samples[int((start + 0.1) * song.rate) : int((end - 0.05) * song.rate)]
        assert float(find_pitch(part[None])) == pytest.approx(pitch, abs=0.5)


def test_notes_are_sung_as_loud_as_they_are_written() -> None:
    model = load("note-timbre")
    code = model.encode([read_sound(SAMPLES / "flute.flac")])[0]
    song = sing(model, [Tone(0, 0.5, 60, 0.8), Tone(0.7, 1.2, 60, 0.2)], code)
    loud, soft = (song.samples[int(at * song.rate) :][:8000].square().mean() for at in (0, 0.7))
    assert float((loud / soft).sqrt()) == pytest.approx(4, rel=0.05)


def test_pitches_beyond_the_known_move_by_octaves() -> None:
    assert [within(p) for p in (0, 35, 36, 96, 97, 127)] == [36, 47, 36, 96, 85, 91]


@pytest.mark.parametrize("content", [b"", b"MThd", b"no midi at all"])
def test_melody_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mid").write_bytes(content)
    with pytest.raises(RunError, match=r"a\.mid: is no MIDI file"):
        read_melody(tmp_path / "a.mid")


# Commands.


def test_reconstruction_is_like_the_original(ae, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * tone(rate=44_100)] * 2, 1), 44_100)
    ae("audio", "reconstruct", "a.wav", "-o", "b.flac", "--png", "b.png")
    made = read_sound(tmp_path / "b.flac")
    assert made.rate == 44_100 and made.peak == pytest.approx(
        read_sound(tmp_path / "a.wav").peak, abs=0.01
    )
    assert align_note(made).pitch == 69
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_morph(ae, tmp_path: Path) -> None:
    said = ae("audio", "interpolate", "flute", "guitar", "-o", "m.wav", "--each", "steps",
              "--png", "m.png").output  # fmt: skip
    assert "5 steps from flute to guitar" in said
    steps = sorted((tmp_path / "steps").glob("*.wav"))
    assert len(steps) == 5
    assert all(align_note(read_sound(path)).pitch == 69 for path in steps)
    assert (tmp_path / "m.png").is_file()


def test_music_is_sung(ae, tmp_path: Path) -> None:
    ae(
        "music",
        "interpolate",
        TUNE,
        TUNE,
        "--bars",
        "1:2",
        "--bars",
        "3:4",
        "--steps",
        "2",
        "-o",
        "t.mid",
    )
    said = ae(
        "audio", "play-with", "note-timbre", "t.mid", "--mix", "0.25", "-o", "song.wav"
    ).output
    assert "75% flute and 25% guitar" in said
    seconds = max(tone.end for tone in read_melody(tmp_path / "t.mid"))
    assert soundfile.info(tmp_path / "song.wav").duration == pytest.approx(seconds, abs=0.5)


def test_sampled_notes_have_the_pitch(ae, tmp_path: Path) -> None:
    said = ae("audio", "sample", "--pitch", "C4", "-n", "3", "-o", "a.wav", "--png", "a.png")
    assert "seed 0" in said.output
    sound, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    each = len(sound) // 3
    found = [
        float(find_pitch(torch.from_numpy(sound[i * each : i * each + rate])[None]))
        for i in range(3)
    ]
    assert sum(abs(pitch - 60) < 0.5 for pitch in found) >= 2, found


def test_denoising_takes_hiss_off_a_sound_of_any_length(ae, tmp_path: Path) -> None:
    clean = np.tile(read_sound(SAMPLES / "flute.flac").samples.numpy(), 3)
    noise = np.random.default_rng(0).normal(0, 0.02, len(clean)).astype(np.float32)
    soundfile.write(tmp_path / "noisy.wav", clean + noise, 16_000)
    ae("audio", "denoise", "noisy.wav", "-o", "clean.wav", "--png", "clean.png")
    made, _ = soundfile.read(tmp_path / "clean.wav", dtype="float32")
    assert len(made) == len(clean)

    def ratio(sound: np.ndarray) -> float:
        return 10 * math.log10((clean**2).sum() / ((sound - clean) ** 2).sum())

    assert ratio(made) > ratio(clean + noise) + 3


def test_drums_are_not_sung(tmp_path: Path) -> None:
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(pretty_midi.Instrument(0, is_drum=True))
    midi.instruments[0].notes.append(pretty_midi.Note(80, 38, 0, 1))
    midi.write(str(tmp_path / "drums.mid"))
    with pytest.raises(RunError, match="holds no notes but drums"):
        read_melody(tmp_path / "drums.mid")


def test_evaluate_reports_what_there_is(ae) -> None:
    said = ae("audio", "evaluate", "--data", "notes-sample", "--limit", "8").output
    assert "log-spectral distance" in said and "of a PCA of the same code size" in said
