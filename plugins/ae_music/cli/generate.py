"""`ae music interpolate`, `sample`, `vary` and `shift`: melodies that nobody wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_music.cli.inputs import DEFAULT_PAIR, Source, for_both, read_each, read_source, reader
from ae_music.cli.options import (
    MELODY_PATH,
    check_endings,
    check_outputs,
    each_option,
    melody_options,
    midi_option,
    parse_meter,
)
from ae_music.cli.outputs import describe_steps, draw_rolls, say_choices, write_results
from ae_toolkit import RunError, UsageError
from ae_toolkit.cli.options import (
    FiniteRange,
    device_option,
    json_option,
    model_option,
    print_json,
    report_skipped,
    seed_option,
)
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from ae_music.grid import Melody

DEVIATION_RANGE = FiniteRange(-10, 10)  #: standard deviations; of more, nothing is left of a melody


@click.command("interpolate")
@click.argument("a", required=False, type=click.Path(path_type=Path))
@click.argument("b", required=False, type=click.Path(path_type=Path))
@model_option("melody-2bar")
@midi_option("blend.mid")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(2, 200),
              help="Melodies in all, A and B included.")  # fmt: skip
@click.option("--path", default="slerp", show_default=True, type=click.Choice(["slerp", "lerp"]),
              help="Along the great arc or the straight line.")  # fmt: skip
@each_option("step")
@click.option("--keep-accompaniment", is_flag=True, help="A's other tracks sound beneath.")
@melody_options(num_files=2)
@json_option
@device_option
def interpolate(
    a: Path | None,
    b: Path | None,
    model: str,
    out: Path,
    wav: Path | None,
    png: Path | None,
    steps: int,
    path: str,
    each: Path | None,
    keep_accompaniment: bool,
    tracks: tuple[str, ...],
    bars: tuple[str, ...],
    as_json: bool,
    device: str,
) -> None:
    """Blend melody A into melody B, step by step, into one file.

    A and B are MIDI files (with 'pip install ae-toolkit[scores]', ABC, MusicXML and kern too), or
    names of bundled tunes. The first step is A itself and the last is B; between them are blends of
    their codes, two bars at a time, aligned by bar. Melodies may be of any length.

    \b
    Examples:
      ae music interpolate a.mid b.mid -o blend.mid --wav blend.wav --png blend.png
      ae music interpolate a.mid b.mid --bars 1:8 --steps 5 --each steps/
      ae music interpolate song.mid other.mid --track 2 --keep-accompaniment
    """
    check_endings(out, wav, png)
    if (a is None) != (b is None):
        raise UsageError(
            "an interpolation needs two melodies, A and B, or none for two bundled ones"
        )
    pair, both = (a, b) if a and b else DEFAULT_PAIR, for_both(tracks, "--track")
    choices = zip(pair, both, for_both(bars, "--bars"), strict=True)
    one, two = (read_source(file, track=track, bars=chosen) for file, track, chosen in choices)

    from ae_music.latent.blend import blend, load_melody_model
    from ae_music.modality import modality_of

    loaded = load_melody_model(model, device)
    walk = blend(loaded, one.melody, two.melody, steps=steps, path=path)
    beneath = one.accompaniment if keep_accompaniment else ()
    write_results(walk, out, wav=wav, each=each, beneath=beneath)
    if png is not None:
        from ae_music.figures import blend_figure, save_figure

        save_figure(blend_figure(walk, names=(one.melody.name, two.melody.name)), png)
    say_choices(one, two)
    if as_json:
        first, last = modality_of(loaded).align(one.melody, two.melody)
        print_json({"out": str(out), "steps": describe_steps([first, *walk[1:-1], last])})
        return
    lengths = sorted({melody.num_bars for melody in walk})
    each_has = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    announce(
        f"{out}: {steps} steps of {each_has} bars, {sum(m.num_bars for m in walk)} in all, from "
        f"{one.melody.name} to {two.melody.name}"
    )


@click.command("sample")
@click.option("-n", "--num", default=4, show_default=True, type=click.IntRange(1, 1000),
              help="How many melodies.")  # fmt: skip
@click.option("--model", help="Bundled name, run directory or hub id.  [default: melody-2bar for "
              "two bars, melody-16bar for more]")  # fmt: skip
@midi_option("new.mid")
@click.option("--bars", type=click.IntRange(1, 512), help="Of each melody.  [default: 2]")
@click.option("--meter", help="4/4, 2/4, 3/4, 6/8 or 9/8.  [default: 4/4]")
@click.option("--temperature", type=FiniteRange(0, 10),
              help="Spread of the codes; less is safer and duller.  [default: 1]")  # fmt: skip
@click.option("--like", type=click.Path(path_type=Path), help="Neighbours of this melody instead.")
@click.option("--spread", type=FiniteRange(0, 1),
              help="How far from --like, 0 to 1.  [default: 0.3]")  # fmt: skip
@each_option("melody")
@seed_option
@device_option
def sample(
    num: int,
    model: str | None,
    out: Path,
    wav: Path | None,
    png: Path | None,
    bars: int | None,
    meter: str | None,
    temperature: float | None,
    like: Path | None,
    spread: float | None,
    each: Path | None,
    seed: int,
    device: str,
) -> None:
    """Make melodies that nobody wrote, or that are like one of yours.

    \b
    Examples:
      ae music sample -n 4 -o new.mid --wav new.wav
      ae music sample --bars 16 --meter 6/8 -n 1 -o jig.mid
      ae music sample --like tune.mid --spread 0.3 -n 3 -o near.mid
    """
    check_endings(out, wav, png)
    if like is not None and any(value is not None for value in (bars, meter, temperature)):
        raise UsageError(
            "--bars, --meter and --temperature are of new melodies; --like has its own"
        )
    if like is None and spread is not None:
        raise UsageError("--spread says how far from --like to go, and there is no --like")
    near = read_source(like) if like is not None else None
    known, length = parse_meter(meter or "4/4"), bars or 2

    from ae_music.midi.write import check_length

    check_length(num * (len(near.melody) if near is not None else length * known.steps))

    from ae_music.latent import blend

    fitting = "melody-2bar" if length <= 2 else "melody-16bar"
    loaded = blend.load_melody_model(model or fitting, device)
    if near is not None:
        far = 0.3 if spread is None else spread
        made = blend.vary(loaded, near.melody, num, spread=far, seed=seed)
        say_choices(near)
    else:
        heat = 1.0 if temperature is None else temperature
        made = blend.sample(loaded, num, bars=length, meter=known, temperature=heat, seed=seed)
    write_results(made, out, wav=wav, each=each)
    draw_rolls(made, png)
    melodies = "1 melody" if num == 1 else f"{num} melodies"
    announce(f"{out}: {melodies} of {made[0].num_bars} bars, seed {seed}")


@click.command("vary")
@click.argument("files", nargs=-1, required=True, type=MELODY_PATH)
@model_option("melody-2bar")
@midi_option("variations.mid", many=True)
@click.option("-n", "--num", default=4, show_default=True, type=click.IntRange(1, 1000),
              help="How many variations.")  # fmt: skip
@click.option("--spread", default=0.3, show_default=True, type=FiniteRange(0, 1),
              help="How far from the original, 0 to 1.")  # fmt: skip
@each_option("one")
@melody_options(num_files=1)
@seed_option
@device_option
def vary(
    files: tuple[Path, ...],
    model: str,
    out: Path,
    wav: Path | None,
    png: Path | None,
    num: int,
    spread: float,
    each: Path | None,
    tracks: tuple[str, ...],
    bars: tuple[str, ...],
    seed: int,
    device: str,
) -> None:
    """Write the melodies of FILES, each with variations: its neighbours in latent space.

    \b
    Examples:
      ae music vary tune.mid -n 4 --spread 0.3 -o variations.mid
      ae music vary my_midi/ -n 1 -o varied/
    """
    check_outputs(files, out, wav, png)
    read = reader(tracks, bars)

    from ae_music.latent import blend
    from ae_music.midi.write import check_length

    loaded = blend.load_melody_model(model, device)

    def made(file: Path) -> tuple[Source, list[Melody]]:
        source = read(file)
        check_length((1 + num) * len(source.melody))
        return source, blend.vary(loaded, source.melody, num, spread=spread, seed=seed)

    found = read_each(files, made, out=out)
    for place, (source, variations) in zip(found.places, found.items, strict=True):
        melodies = [source.melody, *variations]
        write_results(melodies, place, wav=wav, each=each, named=not found.many)
        draw_rolls(melodies, png)
        say_choices(source)
        changed = ", ".join(f"{blend.hamming(source.melody, m):.0%}" for m in variations)
        announce(
            f"{place}: {source.melody.name} and {num} variations, of whose steps {changed} differ"
        )
    announce(f"seed {seed}")
    report_skipped(found.skipped, total=found.num_files)


@click.command("shift")
@click.argument("files", nargs=-1, required=True, type=MELODY_PATH)
@model_option("melody-2bar")
@midi_option("shifted.mid", many=True)
@click.option(
    "--density", type=DEVIATION_RANGE, help="More notes, or with a negative number fewer."
)
@click.option("--diatonic", type=DEVIATION_RANGE, help="More of the notes in one scale.")
@click.option("--interval", type=DEVIATION_RANGE, help="Larger steps between notes.")
@click.option("--pitch-range", type=DEVIATION_RANGE, help="From lower to higher notes.")
@click.option(
    "--syncopation", type=DEVIATION_RANGE, help="More notes off the beat, eighths and sixteenths."
)
@click.option("--syncopation-8th", type=DEVIATION_RANGE, help="More off-beat eighths.")
@click.option("--syncopation-16th", type=DEVIATION_RANGE, help="More off-beat sixteenths.")
@melody_options(num_files=1)
@json_option
@device_option
def shift(
    files: tuple[Path, ...],
    model: str,
    out: Path,
    wav: Path | None,
    png: Path | None,
    tracks: tuple[str, ...],
    bars: tuple[str, ...],
    as_json: bool,
    device: str,
    **given: float | None,
) -> None:
    """Move the melodies of FILES along what can be counted, and say how much they changed.

    Each number is how many standard deviations of the training melodies to go, more or less. The
    direction is the one from the lower quartile of the melodies to the upper.

    \b
    Examples:
      ae music shift tune.mid --density +1 -o denser.mid
      ae music shift tune.mid --density -1 --pitch-range +0.5 --syncopation +1
      ae music shift my_midi/ --density +1 -o denser/
    """
    check_outputs(files, out, wav, png)
    amounts = _amounts(given)
    read = reader(tracks, bars)

    from ae_music.latent import blend

    loaded = blend.load_melody_model(model, device)

    def made(file: Path) -> tuple[Source, Melody]:
        source = read(file)
        shifted = blend.shift(loaded, source.melody, amounts)
        if not shifted.num_notes:
            raise RunError(f"{file}: shifted so far, it has no notes; ask for less")
        return source, shifted

    found = read_each(files, made, out=out)
    reports: list[dict[str, Any]] = []
    for place, (source, shifted) in zip(found.places, found.items, strict=True):
        write_results([shifted], place, wav=wav, named=not found.many)
        draw_rolls([replace(source.melody, name="original"), replace(shifted, name="shifted")], png)
        say_choices(source)
        before, after = (blend.attributes_of(loaded, m) for m in (source.melody, shifted))
        changed = blend.hamming(source.melody, shifted)
        report = {"out": str(place), "asked": amounts, "before": before, "after": after}
        reports.append({**report, "hamming": changed})
        if as_json:
            continue
        announce(f"{place}: {source.melody.name}, {changed:.0%} of its steps changed")
        for attribute in before:
            asked = f"  asked: {amounts[attribute]:+g}" if attribute in amounts else ""
            announce(f"{attribute:18} {before[attribute]:6.3f} -> {after[attribute]:6.3f}{asked}")
    if as_json:
        print_json(reports if found.many else reports[0])
    report_skipped(found.skipped, total=found.num_files)


def _amounts(given: Mapping[str, float | None]) -> dict[str, float]:
    """How far to go along each attribute; syncopation is that of eighths and of sixteenths.

    Raises:
        UsageError: nowhere.
    """
    amounts = {name.replace("_", "-"): value for name, value in given.items() if value}
    both = amounts.pop("syncopation", 0.0)
    for kind in ("syncopation-8th", "syncopation-16th") if both else ():
        amounts[kind] = amounts.get(kind, 0.0) + both
    if not amounts:
        raise UsageError("say what to shift and how far, such as --density +1; see --help")
    return amounts
