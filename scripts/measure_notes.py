"""Measures what stands around the models of notes: `python scripts/measure_notes.py FOLDER`.

Phases from magnitudes (ours against Griffin-Lim from random phases), finding the pitch (ours
against torchaudio's), and how fast a folder of notes is read and codes become sound. FOLDER holds
notes as `scripts/make_notes.py` names them; all numbers are of some of them, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from ae_audio.corruptions import clean
from ae_audio.dsp import spectrum
from ae_audio.dsp.pitch import find_pitch
from ae_audio.dsp.sound import read_sound
from ae_audio.latent.evaluate import speed
from ae_audio.modality import Notes, align_note
from torch import Tensor
from torchaudio.functional import detect_pitch_frequency
from torchaudio.transforms import GriffinLim

from ae_toolkit import load
from ae_toolkit.data.examples import choose_test_groups
from ae_toolkit.data.folder import TEST_SHARE, read_folder

SOUND = spectrum.num_samples(spectrum.NUM_FRAMES) / spectrum.SAMPLE_RATE  #: seconds of a note


def phases(samples: Tensor) -> dict[str, dict[str, float]]:
    """Decibels that analysis and synthesis lose, and seconds of sound in a second."""
    levels = spectrum.analyse(samples)
    magnitudes = spectrum.magnitudes_of(levels)

    def random_phases(steps: int) -> Callable[[], Tensor]:
        transform = GriffinLim(
            spectrum.WINDOW_SAMPLES,
            steps,
            hop_length=spectrum.HOP_SAMPLES,
            power=1.0,
            momentum=0.99,
        )
        return lambda: transform(magnitudes)

    ways = {f"Griffin-Lim, {n} steps, random phases": random_phases(n) for n in (16, 32, 64)}
    for n in (0, 8, 16, 32):
        ways[f"phases of peaks, {n} steps"] = lambda n=n: spectrum.synthesise(levels, steps=n)
    rows = {}
    for name, way in ways.items():
        began = time.perf_counter()
        made = way()
        taken = time.perf_counter() - began
        lost = spectrum.log_spectral_distance(spectrum.analyse(made), levels)
        rows[name] = {"dB": float(lost.mean()), "x real time": len(samples) * SOUND / taken}
    return rows


def pitches(samples: Tensor, written: Tensor) -> dict[str, dict[str, float]]:
    """Shares of notes whose written pitch is found within 50 cents, also but for the octave."""
    ways = {
        "YIN, refined": lambda: find_pitch(samples),
        "torchaudio": lambda: (
            69
            + 12
            * torch.log2(
                detect_pitch_frequency(samples, spectrum.SAMPLE_RATE, freq_low=60, freq_high=2200)
                .median(1)
                .values.clamp_min(1e-3)
                / 440
            )
        ),
    }
    rows = {}
    for name, way in ways.items():
        off = way() - written
        octaves = off - 12 * (off / 12).round()
        right = [float((x.abs() < 0.5).float().mean()) for x in (off, octaves)]
        rows[name] = {"right": right[0], "right but for the octave": right[1]}
    return rows


def reading(files: list[Path]) -> float:
    """Seconds of sound that are read and cached in a second."""
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary
        began = time.perf_counter()
        corpus = read_folder(files, Notes())
        return len(corpus.examples) / (time.perf_counter() - began)


def denoising(files: list[Path], *, num: int = 60) -> dict[str, dict[str, float]]:
    """Decibels from note to noise before and after `clean`, on instruments that were held out."""
    instruments = {file.stem.partition("-")[0] for file in files}
    unheard = choose_test_groups(sorted(instruments), TEST_SHARE, seed="test")
    mine = [file for file in files if file.stem.partition("-")[0] in unheard]
    model, generator = load("note-denoise"), torch.Generator().manual_seed(0)
    rows = {}
    for share in (0.003, 0.01, 0.03):
        ratios = []
        for file in random.Random(0).sample(mine, min(num, len(mine))):
            note = read_sound(file).scaled(0.5)
            noise = share * torch.randn(len(note.samples), generator=generator)
            noisy = replace(note, samples=note.samples + noise)
            made = (noisy.samples, clean(model, noisy).samples)
            ratios.append([ratio(note.samples, sound - note.samples) for sound in made])
        before, after = torch.tensor(ratios).mean(0).tolist()
        rows[f"hiss of {share} beside notes of 0.5"] = {"dB": before, "dB denoised": after}
    return rows


def ratio(signal: Tensor, noise: Tensor) -> float:
    return float(10 * torch.log10(signal.square().sum() / noise.square().sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = sorted(options.folder.glob("*.wav"))
    files = random.Random(0).sample(found, min(options.num, len(found)))
    notes = [align_note(read_sound(file), tune=False).samples for file in files]
    samples = torch.stack([spectrum.fit_length(note) for note in notes])
    written = torch.tensor([float(file.stem.split("-")[-2]) for file in files])
    result = {
        "phases": phases(samples),
        "pitches": pitches(samples, written),
        "denoising": denoising(found),
        "notes read and cached, seconds of sound a second": reading(files),
        "note-timbre: seconds of sound decoded in a second": speed(load("note-timbre")),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        rows = value.items() if isinstance(value, dict) else [(name, {"": value})]
        for row, numbers in rows:
            print(f"{row:52}", "  ".join(f"{x:8.2f} {what}" for what, x in numbers.items()))


if __name__ == "__main__":
    main()
