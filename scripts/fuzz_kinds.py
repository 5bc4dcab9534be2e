"""What `fuzz.py` breaks: pictures, sounds, MIDI files, models and trainings of what ships."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuzz_mutations import edited, mutated, mutated_inside, text_of

ROOT = Path(__file__).parents[1]
SMALL_PART = {"name": "mlp", "hidden": [8]}


class Kind(NamedTuple):
    """Files of a kind.

    Attributes:
        seeds: makes whole ones, in an empty folder.
        broken: writes a broken one to a place, by chance.
        read: reads it, and raises what a command would.
    """

    seeds: Callable[[Path], Sequence[Path]]
    broken: Callable[[random.Random, Sequence[Path], Path], Path]
    read: Callable[[Path], None]


def broken_file(chance: random.Random, seeds: Sequence[Path], place: Path) -> Path:
    seed, other = chance.choice(seeds), chance.choice(seeds)
    place = place.with_suffix(seed.suffix)
    place.write_bytes(mutated_inside(seed.read_bytes(), chance, other.read_bytes()))
    return place


def pictures(folder: Path) -> list[Path]:
    from PIL import Image

    digit = Image.open(ROOT / "plugins/ae_image/samples/digit-3.png").convert("L").resize((24, 20))
    colour = Image.merge("RGB", [digit, digit.rotate(90).resize(digit.size), digit])
    clear = colour.copy()
    clear.putalpha(digit)
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "grey.png": (digit, {}), "colour.png": (colour, {}), "clear.png": (clear, {}),
        "bits.png": (digit.convert("1"), {}), "palette.png": (colour.quantize(8), {}),
        "transparent.png": (colour.quantize(8), {"transparency": 0}),
        "16.png": (Image.fromarray(np.asarray(digit).astype(np.uint16) * 257), {}),
        "moving.png": (colour, {"save_all": True, "append_images": [colour, colour]}),
        "colour.jpg": (colour, {}), "grey.jpg": (digit, {}),
        "progressive.jpg": (colour, {"progressive": True, "exif": turned}),
        "cmyk.jpg": (colour.convert("CMYK"), {}), "lossy.webp": (colour, {}),
        "lossless.webp": (clear, {"lossless": True}),
        "moving.webp": (colour, {"save_all": True, "append_images": [clear, digit]}),
    }  # fmt: skip
    for name, (picture, how) in ways.items():
        picture.save(folder / name, **how)
    return sorted(folder.iterdir())


def read_picture(path: Path) -> None:
    from ae_image.modality import Image

    for modality in (Image(), Image(size=(32, 48), channels=3, fit="pad")):
        read_items(path, modality)


def sounds(folder: Path) -> list[Path]:
    import soundfile

    samples, rate = soundfile.read(ROOT / "plugins/ae_audio/samples/flute.flac", dtype="float32")
    samples = samples[4000:6500]
    stereo = np.stack([samples, samples[::-1]], 1)
    for name, subtype in (
        ("a.wav", "PCM_16"), ("b.wav", "PCM_U8"), ("c.wav", "FLOAT"), ("d.wav", "DOUBLE"),
        ("e.wav", "ULAW"), ("f.wav", "IMA_ADPCM"), ("g.wav", "MS_ADPCM"), ("h.wav", "GSM610"),
        ("i.flac", "PCM_16"), ("j.flac", "PCM_24"), ("k.ogg", "VORBIS"),
    ):  # fmt: skip
        soundfile.write(folder / name, samples, rate, subtype)
        if subtype != "GSM610":
            soundfile.write(folder / f"stereo-{name}", stereo, rate, subtype)
    soundfile.write(folder / "l.ogg", samples, rate, "OPUS", format="OGG")
    return sorted(folder.iterdir())


def read_sound(path: Path) -> None:
    from ae_audio.modality import Notes

    for sound in read_items(path, Notes()):
        Notes().to_input(sound)


def tunes(folder: Path) -> list[Path]:
    return sorted((ROOT / "plugins/ae_music/samples").rglob("*.mid"))


def read_tune(path: Path) -> None:
    from ae_music.modality import Melodies

    for melody in read_items(path, Melodies()):
        assert len(melody) == len(melody.velocities) == melody.num_bars * melody.meter.steps > 0
        assert melody.num_notes and melody.steps.max() < 90 and 10 <= melody.tempo <= 1000
        assert bool((melody.velocities > 0).sum() == melody.num_notes)


def read_song(path: Path) -> None:
    from ae_audio.latent.song import read_melody

    read_melody(path)


def read_items(path: Path, modality: Any) -> list[Any]:
    """The items of a file, of which tensors can be made."""
    from ae_toolkit.modality import each_item, examples_of

    items = list(each_item(path, modality))
    for item in items:
        for example in examples_of(item, modality):
            assert modality.prepare(example.y[None]).isfinite().all()
    return items


def models(folder: Path) -> list[Path]:
    """Small ones of every plugin, as `ae export` writes them."""
    from ae_toolkit.autoencoder import Autoencoder
    from ae_toolkit.recipe import named
    from ae_toolkit.runs import checkpoint

    changes: dict[str, dict[str, Any]] = {
        "mnist-2d": {"encoder": SMALL_PART, "decoder": SMALL_PART},
        "mnist-denoise": {"encoder.widths": [4], "decoder.widths": [4]},
        "note-denoise": {"encoder.widths": [4], "decoder.widths": [4]},
        "melody-2bar": {"encoder.width": 16, "decoder.width": 16},
    }
    for name, change in changes.items():
        recipe = named(name).with_(change)
        weights = Autoencoder(recipe, modality=recipe.make("modality")).state_dict()
        checkpoint.save(folder / name, weights, unsealed(checkpoint.config_json(recipe)))
        config = folder / name / checkpoint.CONFIG_FILE
        config.write_text(unsealed(config.read_text()))
    return sorted(folder.iterdir())


def unsealed(config: str) -> str:
    """Without checksums, which an attacker would compute anew."""
    tree = json.loads(config)
    return json.dumps({k: v for k, v in tree.items() if k not in ("checksum", "files")})


def broken_model(chance: random.Random, seeds: Sequence[Path], place: Path) -> Path:
    from ae_toolkit.runs import checkpoint

    seed, other = chance.choice(seeds), chance.choice(seeds)
    shutil.copytree(seed, place)
    break_model(place, chance, other)
    if chance.random() < 0.05:
        name = chance.choice([checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE])
        shutil.copy(other / name, place)
    return place


def break_model(folder: Path, chance: random.Random, other: Path) -> None:
    """Breaks the configuration or the weights of a model folder, at least one of them."""
    from ae_toolkit.runs import checkpoint

    config, weights = folder / checkpoint.CONFIG_FILE, folder / checkpoint.WEIGHTS_FILE
    how = chance.random()
    if how < 0.55:
        tree = json.loads(config.read_text())
        config.write_bytes(text_of(edited(tree, chance, known=names())))
    elif how < 0.65:
        theirs = (other / checkpoint.CONFIG_FILE).read_bytes()
        config.write_bytes(mutated(config.read_bytes(), chance, theirs))
    elif how < 0.9:
        weights.write_bytes(odd_safetensors(weights.read_bytes(), chance))
    else:
        theirs = (other / checkpoint.WEIGHTS_FILE).read_bytes()
        weights.write_bytes(mutated(weights.read_bytes(), chance, theirs))


@cache
def names() -> list[Any]:
    """Of all parts, which a configuration can ask for, also as one that has no settings."""
    from ae_toolkit import registry

    known = sorted({name for kind in registry.ALL_REGISTRIES.values() for name in kind.names()})
    return [*known, *({"name": name} for name in known)]


def odd_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Another header, and sometimes another size of it or other numbers."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if chance.random() < 0.2:
        start = 4 * chance.randrange(len(body) // 4)
        body[start : start + 4] = struct.pack("<f", chance.choice([math.nan, math.inf, 3e38]))
    else:
        kinds = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "Q4"]
        header = edited(header, chance, known=[*kinds, [1 << 40], [0], [1 << 32, 1 << 32]])
    text = text_of(header)
    promised = len(text)
    if chance.random() < 0.1:
        promised = chance.choice([0, 1, promised - 1, promised + 1, 1 << 40, (1 << 64) - 1])
    return promised.to_bytes(8, "little") + text + bytes(body)


def read_model(path: Path) -> None:
    from ae_toolkit import load

    load(path)


def runs(folder: Path) -> list[Path]:
    """A finished training, so that a resume is all reading."""
    from ae_toolkit import fit
    from ae_toolkit.runs import checkpoint

    run = fit(recipe_of_runs(), folder / "run", progress=False, device="cpu")
    for config in run.rglob(checkpoint.CONFIG_FILE):
        config.write_text(unsealed(config.read_text()))
    return [run]


@cache
def recipe_of_runs() -> Any:
    from ae_toolkit.recipe import named

    train = {"epochs": 1, "batch_size": 64, "precision": "fp32", "compile": "off"}
    return named("mnist-2d").with_(
        {"data.name": "mnist-sample", "encoder": SMALL_PART, "decoder": SMALL_PART, "train": train}
    )


def broken_run(chance: random.Random, seeds: Sequence[Path], place: Path) -> Path:
    from ae_toolkit.runs import checkpoint

    shutil.copytree(seeds[0], place)
    [newest] = place.glob("checkpoints/*")
    state = newest / checkpoint.STATE_FILE
    how = chance.random()
    if how < 0.6:
        tree = edited(torch.load(state), chance, known=[torch.zeros(3), {1}, (1, 2), 1j, b"a"])
        try:
            torch.save(tree, state)
        except Exception:  # some tensors cannot be saved; then it is cut short
            state.write_bytes(state.read_bytes()[:1000])
    elif how < 0.75:
        state.write_bytes(mutated(state.read_bytes(), chance, b"PK\x03\x04"))
    elif how < 0.85:
        state.write_bytes(odd_zip(state.read_bytes(), chance))
    elif how < 0.95:
        break_model(newest, chance, newest)
    else:
        logs = ["metrics.jsonl", "timings.jsonl", "engine.json", "config.json"]
        log = place / chance.choice(logs)
        log.write_bytes(mutated(log.read_bytes(), chance, b"{}"))
    return place


def odd_zip(data: bytes, chance: random.Random) -> bytes:
    """A training state whose pickle or tensors are broken, inside of a ZIP that is whole."""
    from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

    out, kind = io.BytesIO(), chance.choice([ZIP_STORED, ZIP_STORED, ZIP_DEFLATED])
    with ZipFile(io.BytesIO(data)) as whole, ZipFile(out, "w", kind) as broken:
        members = whole.namelist()
        which = chance.choice([members[0], members[0], chance.choice(members)])
        for name in members:
            content = whole.read(name)
            if name == which:
                content = mutated(content, chance, content)
            broken.writestr(name, content)
    return out.getvalue()


def read_run(path: Path) -> None:
    from ae_toolkit import fit

    fit(recipe_of_runs(), path, resume=True, progress=False, device="cpu")


KINDS = {
    "image": Kind(pictures, broken_file, read_picture),
    "sound": Kind(sounds, broken_file, read_sound),
    "midi": Kind(tunes, broken_file, read_tune),
    "song": Kind(tunes, broken_file, read_song),
    "model": Kind(models, broken_model, read_model),
    "state": Kind(runs, broken_run, read_run),
}
