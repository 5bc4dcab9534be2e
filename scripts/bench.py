"""Training and reading files beside everybody else's: `python scripts/bench.py [--quick]`.

One VAE of MNIST, trained side by side by ours (the command `ae train`), pythae, loops in PyTorch
and JAX, each in a process of its own, in turn, for several rounds; pythae's own convolutional VAE
in its trainer and in ours; MIDI files read by ours, pretty_midi and miditoolkit. Prints tables.
Competitors come with `pip install -e ".[bench]"`; who is missing is listed, and so is a data set
that is not there. `--write-docs` puts the tables into `docs/benchmarks.md`.

`--quick` takes some minutes on two cores. All of MNIST is looked for where `ae` looks for
it (see `AE_DATA`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from bench import midi, report
from bench.contenders import CONTENDERS, compete
from bench.ours import judge, train
from bench.work import (
    PRODUCTS,
    Work,
    fast_bf16,
    find_digits,
    flops,
    matmul_rate,
    read_digits,
    write_digits,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/benchmarks.md"

OURS = report.OURS
#: Ours in other ways: as a short training is, which no compiler is waited for, and in fp32 where
#: `auto` is something else.
OURS_EAGER, OURS_FP32 = "ours uncompiled", "ours fp32"
SETTINGS = {
    OURS: ["train.compile=on"],
    OURS_EAGER: ["train.compile=off"],
    OURS_FP32: ["train.compile=on", "train.precision=fp32"],
}

BATCHES = {"dense": (128, 512), "conv": (128,)}
TITLES = {
    "dense": "Dense VAE 784-512-16",
    "conv": "pythae's convolutional VAE of MNIST",
}

#: Images per epoch of the convolutional net (0.6 TFLOP a batch), and of everything in `--quick`.
NUM_CONV, NUM_QUICK, NUM_QUICK_CONV = 2560, 12_800, 512
NUM_TEST, NUM_TEST_QUICK, NUM_TEST_CONV = 10_000, 1000, 250

PARTS = ("dense", "conv", "midi")


def main() -> None:
    options = parse()
    if options.worker:
        request = json.load(sys.stdin)
        answer = WORKERS[request.pop("task")](**request)
        Path(os.environ["BENCH_ANSWER"]).write_text(json.dumps(answer))
        return
    result = Bench(options).run()
    text = report.whole(result)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.write_docs:
        report.write_docs(DOCS, text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small part, in three minutes")
    known = [*PARTS, OURS, *CONTENDERS, *midi.READERS]
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help=f"a part ({', '.join(PARTS)}) or a contender; repeatable",
    )
    parser.add_argument("--rounds", type=int, help="default: 3; with --quick: 1")
    parser.add_argument("--epochs", type=int, help="default: 5; with --quick: 1")
    parser.add_argument("--threads", type=int, default=available(), help="default: all cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="changes ours, as in ae train",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--write-docs", action="store_true", help=f"into {DOCS.name}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.only or []:
        if name not in known:
            parser.error(f"there is no {name!r}: choose from {', '.join(dict.fromkeys(known))}")
    if min(options.threads, options.rounds or 1, options.epochs or 1) < 1:
        parser.error("--threads, --rounds and --epochs are at least 1")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.epochs = options.epochs or (1 if options.quick else 5)
    return options


class Bench:
    """One run of everything that was asked for.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.names = [name for name in options.only or [] if name not in PARTS]
        asked = [name for name in options.only or [] if name in PARTS]
        self.parts = asked or PARTS
        if self.names and not asked:  # a contender alone brings its own parts
            trains = any(name in CONTENDERS or name == OURS for name in self.names)
            reads = any(name in midi.READERS for name in self.names)
            self.parts = ("dense", "conv") * trains + ("midi",) * reads
        self.env = environment(options)
        self.note = ""
        self.began = time.perf_counter()

    def run(self) -> dict[str, Any]:
        options = self.options
        with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
            self.folder = Path(temporary)
            works = [
                self.prepare(net, batch_size)
                for net in ("dense", "conv")
                if net in self.parts
                for batch_size in (BATCHES[net][:1] if options.quick else BATCHES[net])
            ]
            result = {
                "command": shown_command(),
                "date": date.today().isoformat(),
                "rounds": options.rounds,
                "note": self.note,
                "machine": self.ask("machine", threads=options.threads, device=options.device),
                "works": [self.begin(work) for work in works],
                "midi": self.begin_midi() if "midi" in self.parts else None,
            }
            for i in range(options.rounds):
                for work, entry in zip(works, result["works"], strict=True):
                    self.train(work, entry, i)
                if result["midi"]:
                    self.read(result["midi"], i)
        self.say("done")
        return result

    def say(self, line: str) -> None:
        seconds = time.perf_counter() - self.began
        print(f"[{seconds:6.1f} s] {line}", file=sys.stderr, flush=True)

    # What there is to do.

    def prepare(self, net: str, batch_size: int) -> Work:
        """A work with its data."""
        options = self.options
        folder = str(self.folder / f"{net}-digits")
        found = self.ask("prepare", net=net, quick=options.quick, folder=folder)
        self.note = found["note"] or self.note
        epochs = options.epochs if net == "dense" else 1
        return Work(
            net=net,
            folder=found["root"],
            num=found["num"],
            num_test=found["num_test"],
            batch_size=batch_size,
            epochs=epochs * found["repeat"],
            device=options.device,
        )

    def begin(self, work: Work) -> dict[str, Any]:
        """A work's entry in the result, and who cannot take part."""
        entry: dict[str, Any] = {
            "title": f"{TITLES[work.net]}, batch {work.batch_size}",
            **work._asdict(),
            "folder": "",
            "flops": flops(PRODUCTS[work.net]),
            "absent": {},
            "runs": {OURS: []} if self.wanted(OURS) else {},
        }
        entry["fast_bf16"] = self.ask("fast_bf16", device=work.device)
        entry["limit"] = {}
        if work.net == "dense" and OURS in entry["runs"]:
            entry["runs"][OURS_EAGER] = []
        if work.net == "dense" and entry["fast_bf16"] and OURS in entry["runs"]:
            entry["runs"][OURS_FP32] = []
        for name, contender in CONTENDERS.items():
            if work.net not in contender.nets or not self.wanted(name):
                continue
            if self.options.quick and not contender.quick and name not in self.names:
                continue
            if contender.missing:
                needed = " ".join(contender.missing)
                entry["absent"][name] = f"not installed: pip install {needed}"
            else:
                entry["runs"][name] = []
        return entry

    def begin_midi(self) -> dict[str, Any]:
        paths, title = self.ask("tunes")
        paths = paths[:300] if self.options.quick else paths
        entry: dict[str, Any] = {"num": len(paths), "title": title, "absent": {}, "agreement": {}}
        entry["runs"], self.paths = {}, paths
        for name in midi.READERS:
            if not self.wanted(name):
                continue
            if needed := midi.missing(name):
                entry["absent"][name] = f"not installed: pip install {' '.join(needed)}"
                continue
            entry["runs"][name] = []
            self.say(f"MIDI: the notes of {name}")
            if agreed := self.ask("agreement", name=name, paths=self.paths):
                entry["agreement"][name] = agreed
        if self.options.threads > 1 and self.wanted(OURS):
            entry["runs"][f"ours, {self.options.threads} cores"] = []
        return entry

    def wanted(self, name: str) -> bool:
        return not self.names or name in self.names

    # Doing it.

    def train(self, work: Work, entry: dict[str, Any], number: int) -> None:
        """One round of a work: the limit, of which the best round counts, and every contender."""
        self.say(f"round {number + 1}: {work}: the matrix products alone")
        seconds = 0.1 if self.options.quick else 0.3
        for dtype, rate in self.ask("limit", work=work, seconds=seconds).items():
            entry["limit"][dtype] = max(rate, entry["limit"].get(dtype, 0.0))
        for name in entry["runs"]:
            self.say(f"round {number + 1}: {work}: {name}")
            try:
                if name.startswith(OURS):
                    row = self.train_ours(work, name)
                else:
                    row = self.ask("compete", name=name, work=work, spawned=time.time())
            except RuntimeError as error:
                entry["absent"][name] = f"failed: {error}"
                self.say(f"{name} failed: {error}")
                continue
            entry["runs"][name].append({"round": number, **row})
            self.say(f"  {row['steady']:,.0f} images/s, -ELBO {row['negative_elbo']:.2f}")

    def train_ours(self, work: Work, name: str) -> dict[str, Any]:
        settings = [*(SETTINGS[name] if work.net == "dense" else []), *self.options.settings]
        with tempfile.TemporaryDirectory(dir=self.folder) as run:
            out = Path(run) / "run"
            row = train(work, out, settings, fresh(self.env, run))
            return {**row, **self.ask("judge", work=work, out=str(out))}

    def read(self, entry: Mapping[str, Any], number: int) -> None:
        """One round of reading MIDI files."""
        for name in entry["runs"]:
            if name in midi.READERS:
                row = self.ask("read", name=name, paths=self.paths)
            else:
                row = self.ask("read_parallel", paths=self.paths, num=self.options.threads)
            entry["runs"][name].append({"round": number, **row})
            self.say(f"round {number + 1}: MIDI: {name}: {row['files_per_s']:,.0f} files/s")

    def ask(self, task: str, **request: Any) -> Any:
        """Does a task in a process of its own.

        Raises:
            RuntimeError: it failed; the message is its last line.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            answer = Path(folder) / "answer.json"
            done = subprocess.run(
                [sys.executable, __file__, "--worker"],
                input=json.dumps({"task": task, **request}),
                capture_output=True,
                text=True,
                env={**fresh(self.env, folder), "BENCH_ANSWER": str(answer)},
                cwd=folder,
            )
            if done.returncode or not answer.exists():
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(lines[-1])
            return json.loads(answer.read_text())


# In a process of its own: this one stays small, since a child's peak memory begins at its size.


def prepare(net: str, quick: bool, folder: str) -> dict[str, Any]:
    """All of MNIST where it lies, or in `folder` a part of it, or the digits that ship with us.

    Returns:
        Where it is, how much, how often it is repeated to be as much as was asked for, and what
        is to be said of it.
    """
    from ae_toolkit.data.examples import data_roots

    num = {("dense", True): NUM_QUICK, ("conv", True): NUM_QUICK_CONV, ("conv", False): NUM_CONV}
    wanted = num.get((net, quick))
    num_test = NUM_TEST_CONV if net == "conv" else NUM_TEST_QUICK if quick else NUM_TEST
    root, note = find_digits(data_roots()), ""
    if root:
        train, test = (read_digits(root, split) for split in ("train", "test"))
    else:
        train, test = (bundled_digits(split) for split in ("train", "test"))
        note = (
            "all of MNIST is not here (set AE_DATA to the folder that holds MNIST/raw), so this is "
            "the bundled sample of 1,000 digits: a smoke test"
        )
    if wanted or not root:
        root = Path(folder)
        repeat = -(-(wanted or len(train)) // len(train))
        train = train[:wanted]
        write_digits(root, "train", train)
        write_digits(root, "test", test)
    else:
        repeat = 1
    sizes = {"num": len(train), "num_test": min(num_test, len(test))}
    return {"root": str(root.resolve()), **sizes, "repeat": repeat, "note": note}


def bundled_digits(split: str) -> Any:
    """The digits that ship with the package, `(N, 28, 28)` in uint8."""
    from ae_image.datasets import mnist_sample
    from ae_image.modality import Image

    return mnist_sample(modality=Image(), split=split).y[:, 0].numpy()


def tunes() -> tuple[list[str], str]:
    """The MIDI files of the collections of folk tunes, or the bundled ones, and what they are."""
    from ae_music.datasets import TUNE_COLLECTIONS

    from ae_toolkit.data.examples import data_roots

    for root in data_roots():
        folders = [root / "midi" / name for name in TUNE_COLLECTIONS]
        if all(folder.is_dir() for folder in folders):
            found = [path for folder in folders for path in sorted(folder.glob("*.mid"))]
            return [str(path.resolve()) for path in found], "folk tunes"
    with as_file(files("ae_music") / "samples/tunes") as folder:
        return [str(path) for path in sorted(folder.glob("*.mid"))], "bundled tunes"


def limit(work: list[Any], seconds: float) -> dict[str, float]:
    """The rates of a work's matrix products; bf16 only where it is used and does not take hours."""
    given = Work(*work)
    both = given.net == "dense" or fast_bf16(given.device)
    return {
        dtype: matmul_rate(
            PRODUCTS[given.net], given.batch_size, dtype, given.device, seconds=seconds
        )
        for dtype in (("fp32", "bf16") if both else ("fp32",))
    }


WORKERS: dict[str, Callable[..., Any]] = {
    "compete": lambda name, work, spawned: compete(name, Work(*work), spawned),
    "judge": lambda work, out: judge(Work(*work), Path(out)),
    "fast_bf16": fast_bf16,
    "limit": limit,
    "machine": report.machine,
    "prepare": prepare,
    "tunes": tunes,
    "agreement": lambda name, paths: midi.agreement(name, [Path(path) for path in paths]),
    "read": lambda name, paths: midi.read_all(name, [Path(path) for path in paths]),
    "read_parallel": lambda paths, num: {
        "files_per_s": midi.read_all_parallel([Path(path) for path in paths], num)
    },
}


# The machine.


def available() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(options: argparse.Namespace) -> dict[str, str]:
    """What every process is started with: so many threads, and so many cores where that can be."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: options.threads])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    return {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"}


def fresh(env: Mapping[str, str], folder: str) -> dict[str, str]:
    """An environment whose compilers remember nothing of former runs."""
    return {**env, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "compiled")}


def shown_command(arguments: Sequence[str] | None = None) -> str:
    """The command line as it goes into the documentation: what changes the numbers."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    return " ".join(["python scripts/bench.py", *(w for w in words if w != "--write-docs")])


if __name__ == "__main__":
    main()
