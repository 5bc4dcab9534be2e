"""How `fuzz.py` breaks files: their bytes, the chunks that are in them, and trees as of a JSON.

What is broken inside of a chunk gets a checksum and a size that are right again. Everything is by
chance, the same by the same generator.
"""

from __future__ import annotations

import json
import math
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch

Data = bytearray
Tree = Any  #: of dicts, lists and leaves, as of a JSON

#: What parsers stumble over: extreme bytes, sizes, and events of MIDI that are odd or too long.
TOKENS = [
    *(bytes([value]) for value in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xF0, 0xF4, 0xF7, 0xF8, 0xFF)),
    *(struct.pack(kind, value) for kind, bits in (("<H", 16), (">H", 16), ("<I", 32), (">I", 32))
      for value in (0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1)),
    struct.pack("<d", math.nan), struct.pack("<f", math.inf), struct.pack("<f", 1e30),
    b"\x00\xff\x51\x00", b"\x00\xff\x51\x03\x00\x00\x00", b"\x00\xff\x51\x03\xff\xff\xff",
    b"\x00\xff\x58\x01\x04", b"\x00\xff\x58\x04\x00\x02\x18\x08",
    b"\x00\xff\x58\x04\x05\x03\x18\x08", b"\x00\xff\x58\x04\x03\x05\x18\x08",
    b"\x00\xff\x58\x04\xff\x00\x18\x08", b"\x00\xff\x58\x04\x01\xff\x18\x08", b"\x00\xff\x59\x00",
    b"\x00\xff\x59\x02\x7f\x7f", b"\x00\xff\x2f\x00", b"\x00\xff\x03\xff\xff\xff\x7f",
    b"\x00\xf0\x02\x01\xf7", b"\x00\xf7\x02\x90\x40", b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\xff\x7f", b"\x87\xff\xff\x7f\x90\x40\x40", b"\x00\x90\x3c\x40",
    b"\x00\x80\x3c\x40", b"\x00\xc0\x7f",
]  # fmt: skip


def flip(data: Data, chance: random.Random, other: bytes) -> Data:
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def overwrite(
    data: Data, chance: random.Random, other: bytes, *, within: int = sys.maxsize
) -> Data:
    """A number becomes an extreme one."""
    at, token = chance.randrange(min(len(data), within)), chance.choice(TOKENS)
    data[at : at + len(token)] = token
    return data


overwrite_header = partial(overwrite, within=64)


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
            with_pixels = name == b"IDAT" and all(mine != b"IDAT" for mine, _ in found)
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
