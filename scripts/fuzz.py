"""Breaks files in every way and reads them as commands do: `python scripts/fuzz.py FOLDER`.

Pictures, sounds, MIDI files, model folders and training states are made from what ships, and are
broken: anywhere, or inside of chunks whose checksums and sizes are right again, or in the structure
of a JSON or of a training state. Each must be read, or refused with one sentence, within seconds of
computing and a gigabyte of memory. That happens in a process of its own (on Linux), so that
whatever else happens, a crash included, is noticed. What must not be is kept in FOLDER.

    python scripts/fuzz.py found --kind image --num 500 --seed 3
    python scripts/fuzz.py found --kind image --seed 3 --case 17     that one again, in the open

The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
SECONDS = 5.0  #: of computing that a read may take
WAIT_SECONDS = 120.0  #: that it may take in all, also where the machine is busy
GROWTH_BYTES = 1 << 30  #: that a read may add to the peak of resident memory
ADDRESS_BYTES = 4 << 30  #: that all reads of a process may add to its address space

Data = bytearray
Tree = Any  #: of dicts, lists and leaves, as of a JSON


class Outcome(NamedTuple):
    """What became of a broken file: `read`, `refused`, or what must not be, and the words."""

    kind: str
    words: str = ""


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


# Bytes.

#: What parsers stumble over: extreme bytes, sizes, and events of MIDI that are odd or too long.
TOKENS = [
    *(bytes([value]) for value in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xF0, 0xF4, 0xF7, 0xF8, 0xFF)),
    *(struct.pack(kind, value) for kind, bits in (("<H", 16), (">H", 16), ("<I", 32), (">I", 32))
      for value in (0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1)),
    struct.pack("<d", math.nan), struct.pack("<f", math.inf), struct.pack("<f", 1e30),
    b"\x00\xff\x51\x00",
    b"\x00\xff\x51\x03\x00\x00\x00",
    b"\x00\xff\x51\x03\xff\xff\xff",
    b"\x00\xff\x58\x01\x04",
    b"\x00\xff\x58\x04\x00\x02\x18\x08",
    b"\x00\xff\x58\x04\x05\x03\x18\x08",
    b"\x00\xff\x58\x04\x03\x05\x18\x08",
    b"\x00\xff\x58\x04\xff\x00\x18\x08",
    b"\x00\xff\x58\x04\x01\xff\x18\x08",
    b"\x00\xff\x59\x00",
    b"\x00\xff\x59\x02\x7f\x7f",
    b"\x00\xff\x2f\x00",
    b"\x00\xff\x03\xff\xff\xff\x7f",
    b"\x00\xf0\x02\x01\xf7",
    b"\x00\xf7\x02\x90\x40",
    b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\xff\x7f",
    b"\x87\xff\xff\x7f\x90\x40\x40",
    b"\x00\x90\x3c\x40",
    b"\x00\x80\x3c\x40",
    b"\x00\xc0\x7f",
]  # fmt: skip


def flip(data: Data, chance: random.Random, other: bytes) -> Data:
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def overwrite(data: Data, chance: random.Random, other: bytes) -> Data:
    at, token = chance.randrange(len(data)), chance.choice(TOKENS)
    data[at : at + len(token)] = token
    return data


def overwrite_header(data: Data, chance: random.Random, other: bytes) -> Data:
    """A number of the header becomes an extreme one."""
    at, token = chance.randrange(min(len(data), 64)), chance.choice(TOKENS)
    data[at : at + len(token)] = token
    return data


def insert(data: Data, chance: random.Random, other: bytes) -> Data:
    at = chance.randrange(len(data) + 1)
    piece = chance.choice([chance.choice(TOKENS), chance.randbytes(chance.randint(1, 9))])
    data[at:at] = piece * chance.choice([1, 1, 1, 20])
    return data


def delete(data: Data, chance: random.Random, other: bytes) -> Data:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice([1, 1, 2, 5, 40])]
    return data


def truncate(data: Data, chance: random.Random, other: bytes) -> Data:
    return data[: chance.randrange(len(data))]


def duplicate(data: Data, chance: random.Random, other: bytes) -> Data:
    first, last = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    at = chance.choice([first, last, chance.randrange(len(data) + 1)])
    data[at:at] = data[first:last] * chance.choice([1, 1, 2, 10])
    return data


def splice(data: Data, chance: random.Random, other: bytes) -> Data:
    """The beginning of one file, the end of another."""
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other) + 1) :]


MUTATIONS = (flip, flip, overwrite, overwrite_header, insert, delete, truncate, duplicate, splice)


def mutated(data: bytes, chance: random.Random, other: bytes) -> bytes:
    changed = Data(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if changed:
            changed = chance.choice(MUTATIONS)(changed, chance, other)
    return bytes(changed)


def mutated_inside(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """Broken anywhere or, in formats that have them, in a chunk that is right outwardly."""
    bodies, join = chunks(data)
    if chance.random() < 0.4 or not bodies:
        return mutated(data, chance, other)
    which = chance.randrange(len(bodies))
    if chance.random() < 0.1:
        bodies.insert(chance.randrange(len(bodies) + 1), bodies[which])
    else:
        head, body = bodies[which]
        bodies[which] = head, mutated(body, chance, (chunks(other)[0] or [(b"", other)])[-1][1])
    return join(bodies)


Chunks = list[tuple[bytes, bytes]]  #: what a chunk is called, and what it holds


def chunks(data: bytes) -> tuple[Chunks, Callable[[Chunks], bytes]]:
    """The chunks of a file, and how they become one; none where the format has none."""
    found: Chunks = []
    if data.startswith(b"MThd"):
        head, *tracks = data.split(b"MTrk")
        found = [(b"MTrk", track[4:]) for track in tracks]
        return found, lambda some: head + b"".join(n + _size(b) + b for n, b in some)
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
            with_pixels = name == b"IDAT" and not found_name(found, b"IDAT")
            found.append((name, zlib.decompressobj().decompress(body) if with_pixels else body))
            at += 12 + size
        return found, _png
    if data.startswith(b"OggS"):
        at = 0
        while at + 27 <= len(data):
            num = data[at + 26]
            head = data[at : at + 27 + num]
            size = sum(head[27:])
            found.append((head, data[at + 27 + num : at + 27 + num + size]))
            at += 27 + num + size
        return found, lambda some: b"".join(_ogg_page(head, body) for head, body in some)
    if data.startswith(b"RIFF"):
        at = 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            found.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
            at += 8 + size + size % 2
        return found, partial(_riff, data[8:12])
    return found, lambda some: data


def found_name(found: Chunks, name: bytes) -> bool:
    return any(mine == name for mine, _ in found)


def _size(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big")


def _png(some: Chunks) -> bytes:
    whole, packed = b"\x89PNG\r\n\x1a\n", False
    for name, body in some:
        if name == b"IDAT" and not packed:
            body, packed = zlib.compress(body, 1), True
        whole += _size(body) + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    return whole


def _riff(kind: bytes, some: Chunks) -> bytes:
    whole = b"".join(
        name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2) for name, body in some
    )
    return b"RIFF" + (len(whole) + 4).to_bytes(4, "little") + kind + whole


def _ogg_page(head: bytes, body: bytes) -> bytes:
    page, crc = bytearray(head + body), 0
    page[22:26] = bytes(4)
    table = _ogg_table()
    for byte in page:
        crc = (crc << 8) & 0xFFFFFFFF ^ table[crc >> 24 ^ byte]
    page[22:26] = crc.to_bytes(4, "little")
    return bytes(page)


@cache
def _ogg_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


# Trees.

EXTREMES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 40_000, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308,
    math.inf, math.nan, "", "a", "../../a", "/etc/passwd", "\x00\x1b[2J\n", "\ud800", "ü" * 1000,
    "@deep", [], {}, [1], [[1]], [0, -1], [40_000, 40_000], {"name": "mlp"}, {"": None}, {"a": [1]},
]  # fmt: skip


def places(tree: Tree, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is below the root."""
    items: Iterable[Any] = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    return [p for key, value in items for p in ((*path, key), *places(value, (*path, key)))]


def at(tree: Tree, path: Sequence[Any]) -> Tree:
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Tree, path: Sequence[Any], value: Any, *, remove: bool = False) -> Tree:
    """A copy in which one place is something else, or is not any more."""
    key, *rest = path
    whole = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest:
        whole[key] = changed(tree[key], rest, value, remove=remove)
    elif remove:
        del whole[key]
    else:
        whole[key] = value
    return tuple(whole) if isinstance(tree, tuple) else whole


def edited(tree: Tree, chance: random.Random, *, known: Sequence[Any] = ()) -> Tree:
    """A tree in which places hold what others or nobody would put there.

    Args:
        tree: of dicts, lists, numbers, texts and tensors.
        chance: of which ones.
        known: more values to put somewhere.
    """
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        paths = places(tree)
        if not paths or chance.random() < 0.01:
            return chance.choice(EXTREMES)
        path = chance.choice(paths)
        value = at(tree, path)
        how = chance.randrange(8)
        if how == 0:
            tree = changed(tree, path, None, remove=True)
        elif how == 1:
            tree = changed(tree, path, at(tree, chance.choice(paths)))
        elif how == 2:
            key = chance.choice(["new", "name", "a.b", 7, *(p[-1] for p in paths)])
            inside = (
                {**value, key: at(tree, chance.choice(paths))} if isinstance(value, dict) else 0
            )
            inside = [*value, value] if isinstance(value, (list, tuple)) else inside
            tree = changed(tree, path, inside)
        elif how < 6 and isinstance(value, torch.Tensor):
            tree = changed(tree, path, odd_tensor(value, chance))
        elif how < 5 and type(value) in (int, float):
            scale = chance.choice([-1, 0, 0.5, 2, 10, 1e3, 1e9])
            tree = changed(tree, path, type(value)(value * scale))
        else:
            tree = changed(tree, path, chance.choice([*EXTREMES, *known]))
    return tree


def odd_tensor(tensor: torch.Tensor, chance: random.Random) -> Any:
    """A tensor of another shape, type or content; one that is odd already stays."""
    if tensor.numel() > 1 << 20 or tensor.layout != torch.strided or tensor.is_quantized:
        return tensor
    kinds = [torch.float64, torch.float16, torch.int8, torch.bool, torch.complex64, torch.int64]
    ways: list[Callable[[], Any]] = [
        lambda: tensor.flatten(),
        lambda: tensor[:0] if tensor.dim() else tensor[None],
        lambda: tensor[None],
        lambda: tensor.flatten()[:1].expand(1 << 34) if tensor.numel() else tensor,
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor,
        lambda: tensor.to(chance.choice(kinds)),
        lambda: torch.full_like(tensor, chance.choice([-1, 1])),
        lambda: tensor * chance.choice([math.nan, math.inf, -1e38, 0]),
        lambda: tensor.to_sparse() if tensor.dim() else tensor,
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: tensor.to("meta"),
        lambda: tensor.tolist(),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chance.choice(ways)()


def text_of(tree: Tree) -> bytes:
    """A JSON text; of `@deep`, so many brackets that parsers run out of stack."""
    deep = "[" * 100_000 + "]" * 100_000
    return json.dumps(tree, default=str).replace('"@deep"', deep).encode("utf-8", "surrogatepass")


# Kinds.


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

    small = {"hidden": [8]}
    changes: dict[str, dict[str, Any]] = {
        "mnist-2d": {"encoder": {"name": "mlp", **small}, "decoder": {"name": "mlp", **small}},
        "mnist-denoise": {"encoder.channels": [4, 4], "decoder.channels": [4, 4]},
        "note-denoise": {},
        "melody-2bar": {"encoder.dim": 16, "decoder.dim": 16},
    }
    for name, change in changes.items():
        recipe = named(name)
        settings = recipe.model_dump(mode="json")
        known = {key: value for key, value in change.items() if _is_setting(settings, key)}
        recipe = recipe.with_(known)
        weights = Autoencoder(recipe, modality=recipe.make("modality")).state_dict()
        checkpoint.save(folder / name, weights, unsealed(checkpoint.config_json(recipe)))
        config = folder / name / checkpoint.CONFIG_FILE
        config.write_text(unsealed(config.read_text()))
    return sorted(folder.iterdir())


def _is_setting(settings: Tree, key: str) -> bool:
    path = key.split(".")
    return len(path) == 1 or path[-1] in at(settings, path[:-1])


def unsealed(config: str) -> str:
    """Without checksums, which an attacker would compute anew."""
    return json.dumps(
        {k: v for k, v in json.loads(config).items() if k not in ("checksum", "files")}
    )


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

    small = {"name": "mlp", "hidden": [8]}
    train = {"epochs": 1, "batch_size": 64, "precision": "fp32", "compile": "off"}
    return named("mnist-2d").with_(
        {"data.name": "mnist-sample", "encoder": small, "decoder": small, "train": train}
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
        log = place / chance.choice(
            ["metrics.jsonl", "timings.jsonl", "engine.json", "config.json"]
        )
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


# Reading.


def outcome_of(kind: Kind, path: Path) -> Outcome:
    """Reads a file as commands do."""
    from ae_toolkit import RunError, UsageError
    from ae_toolkit.errors import MAX_CHARS, PluginError

    try:
        kind.read(path)
    except (RunError, UsageError) as error:
        words = str(error)
        if isinstance(error, PluginError):  # an exception of ours that a command would call a fault
            return Outcome("fault", traceback.format_exc())
        about_it = kind.broken is not broken_file or words.startswith(f"{path}: ")
        right = about_it and "\n" not in words and len(words) <= MAX_CHARS + 3
        return Outcome("refused" if right else "no clear sentence", words.replace(str(path), "…"))
    except BaseException as error:
        if (
            isinstance(error, OSError) and error.filename is not None
        ):  # commands say it in a sentence
            return Outcome("refused", str(error.strerror))
        return Outcome("other exception", traceback.format_exc())
    return Outcome("read")


def case(kind: Kind, seeds: Sequence[Path], place: Path, seed: int, index: int) -> Path:
    """Writes the broken file of a number, in place of a former one."""
    if place.is_dir():
        shutil.rmtree(place)
    return kind.broken(random.Random(f"{seed} {index}"), seeds, place)


def work(kind: Kind, seeds: Sequence[Path], seed: int, folder: Path, channel: Connection) -> None:
    """Answers numbers with outcomes, until told to stop."""
    # Of PyTorch, a warning about what is odd in a model is no fault.
    warnings.simplefilter("error" if kind.broken is broken_file else "ignore")
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    bounded = False
    while (index := channel.recv()) is not None:
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            path = case(kind, seeds, Path(inner) / "broken", seed, index)
            if not bounded:  # a first file, before memory is counted
                outcome_of(kind, seeds[0])
                most = memory("VmSize") + ADDRESS_BYTES
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
                bounded = True
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use
            before, began = memory("VmRSS"), time.process_time()
            outcome = outcome_of(kind, path)
        seconds = time.process_time() - began
        grown = memory("VmHWM") - before
        if seconds > SECONDS:
            outcome = Outcome("slow", f"{seconds:.1f} s; {outcome}")
        if grown > GROWTH_BYTES:
            outcome = Outcome("much memory", f"{grown >> 20} MB more; {outcome}")
        channel.send(outcome)


def memory(what: str) -> int:
    """Bytes of this process: of addresses (VmSize), in use (VmRSS), or their peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))


class Worker:
    """A process that reads, and is begun anew when it ends, takes too long or has grown."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.begin()

    def begin(self) -> None:
        context = get_context("fork")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(*self.arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def outcome(self, index: int) -> Outcome:
        self.channel.send(index)
        began, used = time.monotonic(), self.computed()
        try:
            while not self.channel.poll(SECONDS):
                computed, waited = self.computed() - used, time.monotonic() - began
                if computed > 2 * SECONDS or waited > WAIT_SECONDS:
                    said = Outcome("hang", f"{computed:.0f} s of computing in {waited:.0f} s")
                    break
            else:
                said = self.channel.recv()
                if said.kind != "much memory":
                    return said
        except (EOFError, ConnectionError):
            self.process.join()
            said = Outcome("crash", f"exit status {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self.begin()
        return said

    def computed(self) -> float:
        """Seconds that the process has computed."""
        try:
            numbers = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.channel.send(None)
        self.process.join()


def fuzz(name: str, num: int, seed: int, found: Path, folder: Path) -> bool:
    """Breaks and reads so many files of a kind, prints what became of them; whether all is well."""
    kind, began, slowest = KINDS[name], time.monotonic(), 0.0
    counts: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    (folder / "seeds").mkdir(parents=True)
    seeds = kind.seeds(folder / "seeds")
    worker = Worker(kind, seeds, seed, folder)
    for index in range(num):
        before = time.monotonic()
        outcome = worker.outcome(index)
        slowest = max(slowest, time.monotonic() - before)
        counts[outcome.kind] += 1
        if outcome.kind == "refused":
            words = outcome.words.removeprefix("…: ")
            sentences["".join(c for c in words if not c.isdigit())[:70]] += 1
        elif outcome.kind != "read":
            found.mkdir(parents=True, exist_ok=True)
            kept = found / f"{name}-{seed}-{index}"
            case(kind, seeds, kept, seed, index)
            kept.with_suffix(".txt").write_text(f"{outcome.kind}: {outcome.words}\n")
            print(f"{kept}: {outcome.kind}: {outcome.words.strip().splitlines()[-1]}", flush=True)
    worker.end()
    seconds = time.monotonic() - began
    print(f"{name}: {num} broken in {seconds:.0f} s, the slowest took {slowest:.2f} s:")
    for what, count in (*counts.most_common(), *sentences.most_common(8)):
        print(f"{count:8}  {what}")
    return not {*counts} - {"read", "refused"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Breaks files and reads them.")
    parser.add_argument("folder", type=Path, help="for what should not be; what is broken ships")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these; repeatable")
    parser.add_argument("--num", type=int, default=2000, help="broken files of each kind [2000]")
    parser.add_argument("--seed", type=int, default=0, help="of what is broken [0]")
    parser.add_argument(
        "--case", type=int, help="read only this one, here, and show what it raises"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ["XDG_CACHE_HOME"] = cached = tempfile.mkdtemp(prefix="fuzz-")
    try:
        if options.case is None:
            well = [
                fuzz(name, options.num, options.seed, options.folder, Path(cached) / name)
                for name in options.kind or KINDS
            ]
            sys.exit(not all(well))
        for name in options.kind or KINDS:
            kind, seeds = KINDS[name], Path(cached) / name
            seeds.mkdir()
            options.folder.mkdir(parents=True, exist_ok=True)
            place = options.folder / f"{name}-{options.seed}-{options.case}"
            path = case(kind, kind.seeds(seeds), place, options.seed, options.case)
            print(path, *outcome_of(kind, path), sep="\n")
    finally:
        shutil.rmtree(cached)


if __name__ == "__main__":
    main()
