"""Breaks real MIDI files in every way and reads them: `python scripts/fuzz_midi.py FOLDER`.

Every broken file must be read, or refused with one sentence. Reads happen in a process of its own
with limits on time and memory (of Linux), so that whatever else happens, a crash of the parser
included, is noticed; such files are kept. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

SECONDS = 60.0  #: that a read may take, also where the machine is busy
MEMORY = 2 << 30  #: bytes of address space that all reads may take
GROWTH = 200 << 20  #: bytes by which one read may raise the peak of resident memory

#: What parsers stumble over: extreme bytes, and events that are odd, too short or too long.
TOKENS = [
    *(bytes([value]) for value in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xF0, 0xF4, 0xF7, 0xF8, 0xFF)),
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
    b"MTrk\x00\x00\x00\x00",
    b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0",
]


Mutation = Callable[[bytearray, random.Random, bytes], bytearray]


class Outcome(NamedTuple):
    """What became of a broken file: `read`, `refused`, or what must not be, and the words."""

    kind: str
    words: str = ""


def flip(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def overwrite(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    at, token = chance.randrange(len(data)), chance.choice(TOKENS)
    data[at : at + len(token)] = token
    return data


def insert(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    at = chance.randrange(len(data) + 1)
    piece = chance.choice([chance.choice(TOKENS), chance.randbytes(chance.randint(1, 9))])
    data[at:at] = piece * chance.choice([1, 1, 1, 20])
    return data


def delete(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice([1, 1, 2, 5, 40])]
    return data


def truncate(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    return data[: chance.randrange(len(data))]


def duplicate(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    first, last = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    at = chance.choice([first, last, chance.randrange(len(data) + 1)])
    data[at:at] = data[first:last] * chance.choice([1, 1, 2, 10])
    return data


def resize(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    """Another size for a chunk, or other numbers in the header."""
    chunks = [i for i in range(len(data) - 7) if data[i : i + 4] in (b"MTrk", b"MThd")]
    if not chunks or chance.random() < 0.3:
        at = chance.choice([9, 11, 12, 13])
        data[at : at + 1] = bytes([chance.choice([0, 1, 2, 3, 127, 128, 255])])
        return data
    at = chance.choice(chunks) + 4
    size = int.from_bytes(data[at : at + 4], "big")
    sizes = (0, size - 1, size + 1, size + 8, chance.randrange(len(data)), 0x7FFFFFFF, 0xFFFFFFFF)
    data[at : at + 4] = min(max(chance.choice(sizes), 0), 0xFFFFFFFF).to_bytes(4, "big")
    return data


def splice(data: bytearray, chance: random.Random, other: bytes) -> bytearray:
    """The beginning of one file, the end of another."""
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


ANYWHERE = (flip, overwrite, insert, delete, truncate, duplicate, resize, splice)
INSIDE = (flip, flip, overwrite, insert, delete, truncate, duplicate, splice)


def broken(files: Sequence[Path], seed: int, index: int) -> bytes:
    """The broken file of a number: broken anywhere, or inside of tracks whose sizes are right."""
    chance = random.Random(f"{seed} {index}")
    data, other = (chance.choice(files).read_bytes() for _ in range(2))
    times = chance.choice([1, 1, 1, 2, 3])
    if chance.random() < 0.4:
        return mutated(data, chance, other, ANYWHERE, times)
    head, *tracks = data.split(b"MTrk")
    which = chance.randrange(len(tracks))
    bodies = [track[4:] for track in tracks]
    bodies[which] = mutated(bodies[which], chance, other.split(b"MTrk")[-1][4:], INSIDE, times)
    return head + b"".join(b"MTrk" + len(body).to_bytes(4, "big") + body for body in bodies)


def mutated(
    data: bytes, chance: random.Random, other: bytes, how: Sequence[Mutation], times: int
) -> bytes:
    changed = bytearray(data)
    for _ in range(times):
        if changed:
            changed = chance.choice(how)(changed, chance, other)
    return bytes(changed)


def read(path: Path) -> Outcome:
    """Reads a file as every command does."""
    from ae_music.extract import melodies_of
    from ae_music.score import read_score

    from ae_toolkit import Failure, Misuse

    try:
        melodies = melodies_of(read_score(path), where=f"{path}: ")
        for melody in melodies:
            assert len(melody) == len(melody.velocities) == melody.num_bars * melody.meter.steps > 0
            assert melody.num_notes and melody.steps.max() < 90 and 10 <= melody.tempo <= 1000
            assert bool((melody.velocities > 0).sum() == melody.num_notes)
    except (Failure, Misuse) as error:
        words = str(error)
        right = words.startswith(f"{path}: ") and "\n" not in words and len(words) < 400
        return Outcome("refused" if right else "no clear sentence", words.removeprefix(f"{path}: "))
    except BaseException:
        return Outcome("other exception", traceback.format_exc())
    return Outcome("read")


def work(files: Sequence[Path], seed: int, path: Path, channel: Connection) -> None:
    """Answers numbers with outcomes, until told to stop."""
    warnings.simplefilter("error")
    import ae_music.extract  # noqa: F401  # before memory is counted

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    while (index := channel.recv()) is not None:
        path.write_bytes(broken(files, seed, index))
        outcome = read(path)
        before, peak = peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak - before > GROWTH:
            outcome = Outcome("much memory", f"{(peak - before) >> 20} MB more")
        channel.send(outcome)


class Reader:
    """A process that reads, and is begun anew when it ends or takes too long."""

    def __init__(self, files: Sequence[Path], seed: int, path: Path):
        self.arguments = files, seed, path
        self.begin()

    def begin(self) -> None:
        self.channel, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=work, args=(*self.arguments, theirs))
        self.process.start()
        theirs.close()

    def outcome(self, index: int) -> Outcome:
        try:
            self.channel.send(index)
            if self.channel.poll(SECONDS):
                return self.channel.recv()
            said = Outcome("hang", f"more than {SECONDS:.0f} s")
        except (EOFError, ConnectionError):
            self.process.join()
            said = Outcome("crash", f"exit status {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self.begin()
        return said

    def end(self) -> None:
        self.channel.send(None)
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Breaks MIDI files and reads them.")
    parser.add_argument("folder", type=Path, help="with MIDI files that can be read")
    parser.add_argument("--num", type=int, default=2000, help="broken files [2000]")
    parser.add_argument("--seed", type=int, default=0, help="of what is broken [0]")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="for bad ones")
    options = parser.parse_args()
    files = sorted(options.folder.rglob("*.mid"))
    if not files:
        sys.exit(f"{options.folder}: there are no files that end in .mid")

    counts: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(files, options.seed, Path(folder) / "broken.mid")
        for index in range(options.num):
            began = time.perf_counter()
            outcome = reader.outcome(index)
            slowest = max(slowest, time.perf_counter() - began)
            counts[outcome.kind] += 1
            if outcome.kind == "refused":
                sentences["".join(c for c in outcome.words if not c.isdigit())[:60]] += 1
            elif outcome.kind != "read":
                options.keep.mkdir(exist_ok=True)
                kept = options.keep / f"{options.folder.name}-{options.seed}-{index}.mid"
                kept.write_bytes(broken(files, options.seed, index))
                print(f"{kept}: {outcome.kind}: {outcome.words}")
        reader.end()
    print(f"{options.num} broken files, the slowest took {slowest:.2f} s:")
    for kind, num in counts.most_common():
        print(f"{num:8}  {kind}")
    print("refused, since the file ...")
    for words, num in sentences.most_common(30):
        print(f"{num:8}  {words}")
    sys.exit(any(kind not in ("read", "refused") for kind in counts))


if __name__ == "__main__":
    main()
