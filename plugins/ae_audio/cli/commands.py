"""`ae audio`: what people want to do with notes. Heavy imports happen inside the callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ae_audio.cli.inputs import (
    Sounds,
    check_endings,
    find_sound,
    load_notes,
    load_timbres,
    open_note,
    open_sound,
    out_each_options,
    out_options,
    write,
    write_each,
)
from ae_toolkit import UsageError
from ae_toolkit.cli.options import (
    FiniteRange,
    device_option,
    json_option,
    model_option,
    out_option,
    print_json,
    seed_option,
)
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from ae_audio.dsp.sound import Sound

SOUND_PATH = click.Path(path_type=Path, readable=False)  #: what cannot be read is said when it is


@click.group()
def audio() -> None:
    """Notes as sound: morph, sample, denoise, and sing a melody in a timbre.

    \b
    Examples:
      ae audio interpolate flute guitar -o morph.wav --png morph.png
      ae audio sample --pitch A4 -o new.wav
      ae audio play-with note-timbre melody.mid --from flute --to guitar -o song.wav
    """


@audio.command()
@click.argument("sounds", nargs=-1, required=True, type=SOUND_PATH)
@model_option("note-timbre")
@out_each_options("reconstructed")
@json_option
@device_option
def reconstruct(
    sounds: tuple[Path, ...],
    model: str,
    out: Path | None,
    png: Path | None,
    as_json: bool,
    device: str,
) -> None:
    """Send notes through the code of a model and back.

    SOUNDS are WAV, FLAC or Ogg files of any rate, mono or stereo, folders of them, or names of
    notes that ship. The first second from the onset is taken, its pitch is found, and what comes
    back has its rate, loudness and tuning.

    \b
    Examples:
      ae audio reconstruct flute -o back.wav --png back.png
      ae audio reconstruct my_notes/ -o back/
    """
    found = Sounds(sounds, open_note)
    found.choose_places(out, png, default="reconstructed")
    loaded = load_notes(model, device)
    rows = []
    for file, original in found:
        [made] = loaded.reconstruct([original])
        place = found.place_of[file]
        write([made], place, named=not found.many)
        report = _compare(original, made)
        rows.append({"out": str(place), **report})
        if png is not None:
            pair = [_titled(_heard(original), original.name), _titled(made, "reconstructed")]
            _draw({"": pair}, png)
        if not as_json:
            announce(
                f"{place}: {made.seconds:.2f} s at {report['pitch']}, {report['cents_off']:.0f} "
                f"cents off; log-spectral distance {report['log_spectral_distance']:.1f} dB"
            )
    if as_json:
        print_json(rows if found.many else rows[0])
    found.report()


@audio.command()
@click.argument("a", type=SOUND_PATH)
@click.argument("b", type=SOUND_PATH)
@model_option("note-timbre")
@out_options("morph.wav")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(2, 200),
              help="Sounds in all, both ends included.")  # fmt: skip
@click.option("--path", default="lerp", show_default=True, type=click.Choice(["lerp", "slerp"]),
              help="Along the straight line or the great arc.")  # fmt: skip
@click.option("--each", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Also write every step as a file of its own.")  # fmt: skip
@json_option
@device_option
def interpolate(
    a: Path,
    b: Path,
    model: str,
    out: Path,
    png: Path | None,
    steps: int,
    path: str,
    each: Path | None,
    as_json: bool,
    device: str,
) -> None:
    """Morph note A into note B, step by step, at the pitch of A, evenly in brightness.

    A and B are WAV, FLAC or Ogg files, or names of notes that ship. The steps are heard one after
    the other; the first and the last are reconstructions of A and B.

    \b
    Examples:
      ae audio interpolate flute guitar -o morph.wav --png morph.png
      ae audio interpolate flute.wav guitar.wav -o morph.wav --steps 5 --each steps/
    """
    check_endings(out, png)
    ends = [open_note(find_sound(path)) for path in (a, b)]
    loaded = load_notes(model, device)
    from ae_audio.latent.evaluate import centroid_of
    from ae_audio.latent.morph import morph

    walk = [
        _titled(sound, f"{i / (steps - 1):.0%}")
        for i, sound in enumerate(morph(loaded, *ends, steps=steps, path=path))
    ]
    hertz = [centroid_of(sound) for sound in walk]
    write(walk, out)
    if each is not None:
        write_each(walk, each, stem=out.stem)
    if png is not None:
        _draw({"": [_titled(_heard(ends[0]), ends[0].name), *walk,
                    _titled(_heard(ends[1]), ends[1].name)]}, png)  # fmt: skip
    if as_json:
        rows = [{"centroid_hz": round(value, 1)} for value in hertz]
        print_json({"out": str(out), "steps": rows})
        return
    announce(
        f"{out}: {steps} steps from {ends[0].name} to {ends[1].name}, "
        f"spectral centroid {hertz[0]:.0f} to {hertz[-1]:.0f} Hz"
    )


@audio.command()
@click.option("--pitch", "pitches", multiple=True, default=["A4"], show_default=True,
              help="A4, C#3, Bb2 or a MIDI number; repeatable.")  # fmt: skip
@click.option("-n", "--num", default=4, show_default=True, type=click.IntRange(1, 1000),
              help="How many timbres, each at every pitch.")  # fmt: skip
@model_option("note-timbre")
@out_options("notes.wav")
@click.option("--temperature", default=1.0, show_default=True, type=FiniteRange(0, 10),
              help="Spread of the codes; less is safer and duller.")  # fmt: skip
@seed_option
@device_option
def sample(
    pitches: tuple[str, ...],
    num: int,
    model: str,
    out: Path,
    png: Path | None,
    temperature: float,
    seed: int,
    device: str,
) -> None:
    """Make notes of instruments that nobody built: timbres for the first pitch, at all of them.

    \b
    Examples:
      ae audio sample --pitch A4 -o new.wav
      ae audio sample --pitch C4 --pitch E4 --pitch G4 -n 2 --seed 3 -o chords.wav --png chords.png
    """
    check_endings(out, png)
    from ae_audio.dsp.pitch import parse_pitch, pitch_name
    from ae_audio.latent.song import MAX_PITCH, MIN_PITCH, within

    numbers = [parse_pitch(text) for text in pitches]
    for number in numbers:
        if within(number) != number:
            raise UsageError(
                f"{pitch_name(number)} is beyond what models of notes know, "
                f"{pitch_name(MIN_PITCH)} to {pitch_name(MAX_PITCH)}"
            )
    loaded = load_timbres(model, device)
    made = []
    codes = loaded.sample_codes(num, {"pitch": numbers[0]}, seed=seed, temperature=temperature)
    for code in codes:
        labels = {"pitch": numbers}
        for sound, number in zip(
            loaded.decode(code.expand(len(numbers), -1), labels), numbers, strict=True
        ):
            made.append(_titled(sound, pitch_name(number)))
    write(made, out)
    if png is not None:
        width = len(numbers) if len(numbers) > 1 else num
        rows = [made[i : i + width] for i in range(0, len(made), width)]
        _draw({(f"{i + 1}" if len(rows) > 1 else ""): row for i, row in enumerate(rows)}, png)
    announce(f"{out}: {len(made)} notes, seed {seed}")


@audio.command("play-with")
@click.argument("model")
@click.argument("melody", type=click.Path(path_type=Path))
@out_option("song.wav", "Sound to write (.wav, .flac or .ogg).")
@click.option("--from", "a", default="flute", show_default=True, type=SOUND_PATH,
              help="A note in the one timbre.")  # fmt: skip
@click.option("--to", "b", default="guitar", show_default=True, type=SOUND_PATH,
              help="A note in the other.")  # fmt: skip
@click.option("--mix", default=0.5, show_default=True, type=FiniteRange(0, 1),
              help="Where between the two: 0 is the one, 1 the other.")  # fmt: skip
@device_option
def play_with(
    model: str, melody: Path, out: Path, a: Path, b: Path, mix: float, device: str
) -> None:
    """Sing MELODY in a timbre of MODEL that lies between two instruments.

    MELODY is a MIDI file, of 'ae music' or any other; drums are left out.

    \b
    Examples:
      ae audio play-with note-timbre melody.mid -o song.wav
      ae audio play-with note-timbre melody.mid --from violin --to my_voice.wav --mix 0.3
    """
    check_endings(out, None)
    from ae_audio.latent.song import moved, read_melody, sing
    from ae_toolkit.console import log

    tones = read_melody(melody)
    ends = [open_note(find_sound(path)) for path in (a, b)]
    loaded = load_timbres(model, device)
    codes = loaded.encode(ends)
    song = sing(loaded, tones, codes[0].lerp(codes[1], mix))
    write([song], out)
    if num := moved(tones):
        log(f"{melody}: {num} notes are sung in another octave than written")
    announce(
        f"{out}: {len(tones)} notes, {song.seconds:.1f} s, {1 - mix:.0%} {ends[0].name} and "
        f"{mix:.0%} {ends[1].name}"
    )


@audio.command()
@click.argument("sounds", nargs=-1, required=True, type=SOUND_PATH)
@model_option("note-denoise")
@out_each_options("clean")
@device_option
def denoise(
    sounds: tuple[Path, ...], model: str, out: Path | None, png: Path | None, device: str
) -> None:
    """Take hiss off recorded notes, of any length up to a minute.

    SOUNDS are WAV, FLAC or Ogg files, folders of them, or names of notes that ship. Where the model
    hears a note far above the noise, the recording stays as it is. Nothing above 8 kHz comes back,
    as from all models of notes.

    \b
    Examples:
      ae audio denoise noisy.wav -o clean.wav --png clean.png
      ae audio denoise recordings/ -o clean/
    """
    found = Sounds(sounds, open_sound)
    found.choose_places(out, png, default="clean")
    loaded = load_notes(model, device)
    if not loaded.autoencoder.any_size:
        raise UsageError(
            f"model {model!r} takes notes of one length; use one such as 'note-denoise'"
        )
    from ae_audio.corruptions import clean

    for file, original in found:
        made, place = clean(loaded, original), found.place_of[file]
        write([made], place, named=not found.many)
        if png is not None:
            _draw({"": [_titled(original, original.name), _titled(made, "denoised")]}, png)
        announce(f"{place}: {made.seconds:.2f} s")
    found.report()


@audio.command()
@click.argument("sounds", nargs=-1, required=True, type=SOUND_PATH)
@out_option("spectrograms.png", "Picture to write (.png, .svg or .pdf).")
def figure(sounds: tuple[Path, ...], out: Path) -> None:
    """Draw the spectrograms of SOUNDS side by side.

    SOUNDS are WAV, FLAC or Ogg files, folders of them, or names of notes that ship.

    \b
    Example:
      ae audio figure flute guitar morph.wav -o spectrograms.png
    """
    check_endings(None, out)
    found = Sounds(sounds, open_sound)
    drawn = [sound for _, sound in found]
    _draw({"": drawn}, out)
    announce(f"{out}: {len(drawn)} sounds")
    found.report()


@audio.command()
@model_option("note-timbre")
@click.option("--data", help="Another data set or path; of a folder, what training leaves out.")
@click.option("--limit", type=click.IntRange(1), help="Measure only so many notes.")
@seed_option
@json_option
@device_option
def evaluate(
    model: str, data: str | None, limit: int | None, seed: int, as_json: bool, device: str
) -> None:
    """Measure MODEL by ear's measures, on the instruments that were held out.

    Pitch kept, log-spectral distance beside that of analysis and synthesis alone and of a PCA of
    the same code size, and whether the spectral centroid moves one way along interpolations.

    \b
    Example:
      ae audio evaluate --model note-timbre --limit 200 --json
    """
    from ae_audio.latent.evaluate import MEASURE_WORDS, measure

    loaded = load_timbres(model, device)
    report = measure(loaded, data=data, limit=limit, seed=seed, progress=not as_json)
    if as_json:
        print_json({"model": model, **report})
        return
    for key, words in MEASURE_WORDS.items():
        if key in report:
            click.echo(f"{words:64} {report[key]:.4g}")


def _heard(sound: Sound) -> Sound:
    """What a model takes of a sound: its first second from the onset."""
    from ae_audio.dsp import spectrum
    from ae_audio.dsp.sound import Sound
    from ae_audio.modality import align_note

    samples = align_note(sound).samples[: spectrum.num_samples(spectrum.NUM_FRAMES)]
    return Sound(samples, spectrum.SAMPLE_RATE, sound.name)


def _titled(sound: Sound, name: str) -> Sound:
    from dataclasses import replace

    return replace(sound, name=name)


def _compare(original: Sound, made: Sound) -> dict[str, float | str]:
    from ae_audio.dsp.pitch import pitch_name
    from ae_audio.latent.evaluate import distance_of
    from ae_audio.modality import align_note

    one, other = align_note(original), align_note(made)
    cents = 100 * (other.pitch - one.pitch) + other.cents - one.cents
    return {
        "pitch": pitch_name(one.pitch),
        "cents_off": round(cents, 1),
        "log_spectral_distance": round(distance_of(original, made), 3),
    }


def _draw(rows: dict[str, list[Sound]], path: Path) -> None:
    from ae_audio.figures import spectrogram_figure

    spectrogram_figure(rows, path)
