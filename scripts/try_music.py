"""Tries `ae music` on real files: `python scripts/try_music.py FOLDER --pairs 200 --seed 0`.

Every MIDI file below FOLDER goes through `ae music info`, and random pairs of them through
`ae music interpolate`. What ends in anything but a result or a sentence is printed with its
traceback, and the exit code is 1. The same seed makes the same pairs.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from click.testing import CliRunner
from tqdm import tqdm

from ae_toolkit.cli.app import main as ae

SUFFIXES = (".mid", ".midi", ".kar")


def attempt(commands: Iterable[Sequence[str]], *, total: int, title: str) -> int:
    """Runs commands, prints what became of them, and returns how many ended in a traceback."""
    ends: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    for command in tqdm(commands, total=total, desc=title):
        result = CliRunner().invoke(ae, command)
        if result.exception and not isinstance(result.exception, SystemExit):
            ends["traceback"] += 1
            print(" ".join(command), file=sys.stderr)
            traceback.print_exception(result.exception)
            continue
        ends[f"exit code {result.exit_code}"] += 1
        for line in {*map(general, result.stderr.splitlines())}:
            sentences[line] += 1
    print(f"{title}, {total}: " + ", ".join(f"{num} {end}" for end, num in ends.most_common()))
    for sentence, num in sentences.most_common(20):
        print(f"{num:8}  {sentence}")
    return ends["traceback"]


def general(sentence: str) -> str:
    """A sentence without what is its file's own: its path and its numbers."""
    return re.sub(r"\d[\d.,]*", "N", re.sub(r"(Error: )?\S*/.*?: ", r"\1", sentence, count=1))[:160]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tries `ae music` on real files.")
    parser.add_argument("folder", type=Path, help="with MIDI files")
    parser.add_argument("--pairs", type=int, default=200, help="to interpolate between [200]")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs [0]")
    options = parser.parse_args()
    found = (path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(str(path.resolve()) for path in found)
    if not files:
        sys.exit(f"{options.folder}: there are no files that end in {', '.join(SUFFIXES)}")
    chance = random.Random(options.seed)
    pairs = [[chance.choice(files), chance.choice(files)] for _ in range(options.pairs)]
    with tempfile.TemporaryDirectory() as folder:
        out = ["--steps", "3", "-o", f"{folder}/blend.mid"]
        wrong = attempt((["music", "info", f] for f in files), total=len(files), title="info")
        walks = (["music", "interpolate", *pair, *out] for pair in pairs)
        wrong += attempt(walks, total=len(pairs), title="interpolate")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
