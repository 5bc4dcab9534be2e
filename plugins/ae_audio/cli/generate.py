"""`ae audio interpolate`, `sample` and `play-with`: notes and songs that nobody recorded."""

from __future__ import annotations

from pathlib import Path

import click

from ae_audio.cli.inputs import find_sound, load_notes, load_timbres, open_note
from ae_audio.cli.options import SOUND_PATH, check_endings, out_options
from ae_audio.cli.outputs import draw, heard, titled, write, write_each
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


@click.command("interpolate")
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
        titled(sound, f"{i / (steps - 1):.0%}")
        for i, sound in enumerate(morph(loaded, *ends, steps=steps, path=path))
    ]
    hertz = [centroid_of(sound) for sound in walk]
    write(walk, out)
    if each is not None:
        write_each(walk, each, stem=out.stem)
    if png is not None:
        draw({"": [heard(ends[0]), *walk, heard(ends[1])]}, png)
    if as_json:
        rows = [{"centroid_hz": round(value, 1)} for value in hertz]
        print_json({"out": str(out), "steps": rows})
        return
    announce(
        f"{out}: {steps} steps from {ends[0].name} to {ends[1].name}, "
        f"spectral centroid {hertz[0]:.0f} to {hertz[-1]:.0f} Hz"
    )


@click.command("sample")
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
    codes = loaded.sample_codes(num, {"pitch": numbers[0]}, seed=seed, temperature=temperature)
    names, made = [pitch_name(number) for number in numbers], []
    for code in codes:
        sounds = loaded.decode(code.expand(len(numbers), -1), {"pitch": numbers})
        made += [titled(*pair) for pair in zip(sounds, names, strict=True)]
    write(made, out)
    if png is not None:
        width = len(numbers) if len(numbers) > 1 else num
        rows = [made[i : i + width] for i in range(0, len(made), width)]
        draw({(f"{i + 1}" if len(rows) > 1 else ""): row for i, row in enumerate(rows)}, png)
    announce(f"{out}: {len(made)} notes, seed {seed}")


@click.command("play-with")
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
