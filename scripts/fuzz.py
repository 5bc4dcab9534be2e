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
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fuzz_kinds import KINDS, Kind, broken_file

SECONDS = 5.0  #: of computing that a read may take
WAIT_SECONDS = 120.0  #: that it may take in all, also where the machine is busy
GROWTH_BYTES = 1 << 30  #: that a read may add to the peak of resident memory
ADDRESS_BYTES = 4 << 30  #: that all reads of a process may add to its address space


class Outcome(NamedTuple):
    """What became of a broken file: `read`, `refused`, or what must not be, and the words."""

    kind: str
    words: str = ""


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
        if isinstance(error, OSError) and error.filename:  # commands say it in a sentence
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
