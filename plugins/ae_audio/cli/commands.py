"""`ae audio`: what people want to do with notes. Heavy imports happen inside the callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ae_audio.cli.generate import interpolate, play_with, sample
from ae_audio.cli.inputs import Sounds, load_notes, load_timbres, open_note, open_sound
from ae_audio.cli.options import SOUND_PATH, check_endings, out_each_options
from ae_audio.cli.outputs import draw, heard, titled, write
from ae_toolkit import UsageError
from ae_toolkit.cli.options import (
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
            draw({"": [heard(original), titled(made, "reconstructed")]}, png)
        if not as_json:
            announce(
                f"{place}: {made.seconds:.2f} s at {report['pitch']}, {report['cents_off']:.0f} "
                f"cents off; log-spectral distance {report['log_spectral_distance']:.1f} dB"
            )
    if as_json:
        print_json(rows if found.many else rows[0])
    found.report()


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
            draw({"": [original, titled(made, "denoised")]}, png)
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
    draw({"": drawn}, out)
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


for command in (interpolate, sample, play_with):
    audio.add_command(command)
