"""What has only ever been written for CUDA, tried on a card: `python scripts/prove_cuda.py`.

One command, at most eight minutes, no network. It runs the tests marked `cuda`, compares the card
with the CPU, kills trainings on it and resumes them, trains on bundled data eager and compiled, in
fp32 and bf16, and trains one VAE beside loops by hand. A page and a JSON file say what came out,
what failed and what there was no time for; it exits with 1 unless all of it passed.

    python scripts/prove_cuda.py                               # into docs/benchmarks-cuda.md
    python scripts/prove_cuda.py --device cpu --small --out x  # the same, small, without a card
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from bench import report
from bench.card import RECIPES, TASKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks-cuda.md"

LIMIT_S = 480.0  #: of all of it, on a card
RESERVED_S = 5.0  #: of these, for writing what came out
KILLS = {"eager": ("off", 3), "compiled": ("on", 2)}
CONTENDERS = ("dense", "ours", "torch loop", "torch loop, compiled")


class Proof:
    """One run of everything.

    Args:
        options: of the command line.
        folder: for what is only needed meanwhile.
    """

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.device, self.small, self.folder = options.device, options.small, folder
        self.limit = options.limit - RESERVED_S
        self.began = time.perf_counter()

    def run(self) -> dict[str, Any]:
        """Returns what came out: what is right or wrong at once, then what is timed in turn."""
        result: dict[str, Any] = {
            "command": " ".join(["python scripts/prove_cuda.py", *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "device": self.device,
            "small": self.small,
            "machine": self.ask("machine"),
        }
        checks: dict[str, Callable[[], Any]] = {"tests": self.tests}
        checks["equality"] = lambda: self.ask("equality")
        for name in list(KILLS)[: 1 if self.small else None]:
            checks[f"killed, {name}"] = lambda name=name: self.kill(name)
        with ThreadPoolExecutor(2 if self.device == "cpu" else len(checks)) as pool:
            waiting = {name: pool.submit(self.attempt, name, work) for name, work in checks.items()}
            result["checks"] = {name: each.result() for name, each in waiting.items()}
        result["trainings"] = {
            name: self.attempt(name, lambda name=name: self.ask("train", name=name))
            for name in RECIPES
        }
        result["loops"] = self.attempt("loops", self.loops)
        result["seconds"] = time.perf_counter() - self.began
        return result

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Returns what some work makes, or `{"failed": why}`."""
        self.say(name)
        try:
            answer = work()
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            answer = {"failed": f"{name}: {str(error) or type(error).__name__}"}
        self.say(f"{name}: {failures_of(answer) or 'done'}")
        return answer

    def say(self, line: str) -> None:
        print(f"[{time.perf_counter() - self.began:5.0f} s] {line}", file=sys.stderr, flush=True)

    def call(self, words: Sequence[object], *, given: str = "") -> tuple[int, str, str]:
        """Runs a command within the time that is left; returns its exit code and what it said.

        Raises:
            RuntimeError: there is no time left, before or after it began.
        """
        left = self.limit - (time.perf_counter() - self.began)
        if left <= 0:
            raise RuntimeError("left out: the time was over")
        process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )
        try:
            said, errors = process.communicate(given, timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
            process.communicate()
            raise RuntimeError("cut short: the time was over") from None
        return process.returncode, said, errors

    def ask(self, task: str, **request: Any) -> Any:
        """Does a task in a process of its own, which an error on the card ends for good.

        Raises:
            RuntimeError: it failed; the message is its last line.
        """
        answer = self.folder / f"{task}-{'-'.join(map(str, request.values()))}.json"
        request |= {"task": task, "device": self.device, "small": self.small}
        words = [sys.executable, __file__, "--worker", answer]
        code, _, errors = self.call(words, given=json.dumps(request))
        if code or not answer.exists():
            raise RuntimeError(last_line(errors) or f"exit code {code}")
        return json.loads(answer.read_text())

    def tests(self) -> dict[str, Any]:
        """The tests marked `cuda`: how many passed, failed and were skipped."""
        found = self.folder / "tests.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={found}"]
        code, said, errors = self.call([*words, ROOT / "tests"])
        if not found.exists():
            raise RuntimeError(last_line(said + errors) or f"pytest ended with {code}")
        return counted(found)

    def kill(self, name: str) -> dict[str, Any]:
        """Trainings on the device, killed at random moments and resumed, bit for bit."""
        compiled, kills = KILLS[name]
        words = [sys.executable, ROOT / "scripts/kill.py", "--device", self.device]
        words += ["--kills", 1 if self.small else kills, "--set", f"train.compile={compiled}"]
        words += ["--set", f"train.epochs={2 if self.small else 30}"]
        code, said, errors = self.call(words)
        if code:
            raise RuntimeError(last_line(said + errors))
        return {"kills": int(last_line(said).split()[0])}

    def loops(self) -> dict[str, Any]:
        """One VAE, trained by ours, by a plain loop in PyTorch and by a compiled one."""
        found = self.folder / "loops.json"
        words = [sys.executable, ROOT / "scripts/bench.py", "--quick", "--json", found]
        words += ["--device", self.device, "--epochs", 1 if self.small else 10]
        words += ["--set", "train.compile=off"] if self.small else []
        for name in CONTENDERS[: 3 if self.small else None]:
            words += ["--only", name]
        code, _, errors = self.call(words)
        if code:
            raise RuntimeError(last_line(errors))
        [work] = json.loads(found.read_text())["works"]
        return work


# What is said of it.


def counted(path: Path) -> dict[str, Any]:
    """What pytest found, out of its XML: numbers, and the names of tests that failed."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    failed = [c.get("name", "") for c in cases if {"failure", "error"} & {e.tag for e in c}]
    skipped = sum(c.find("skipped") is not None for c in cases)
    passed = len(cases) - len(failed) - skipped
    found = {"passed": passed, "skipped": skipped}
    return found | ({"failed": f"tests failed: {', '.join(failed)}"} if failed else {})


def failures_of(found: Any) -> list[str]:
    """Every `failed` in what was found."""
    if isinstance(found, Mapping):
        own = [found["failed"]] if "failed" in found else []
        return own + [why for each in found.values() for why in failures_of(each)]
    return [why for each in found for why in failures_of(each)] if isinstance(found, list) else []


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def page_of(result: Mapping[str, Any]) -> str:
    """The results as the page shows them."""
    on = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    wrong = failures_of(result)
    verdict = "Not everything passed:" if wrong else "Everything passed."
    head = (
        f"`{result['command']}`, {result['date']}, {result['seconds']:.0f} s. {on['processor']}, "
        f"{on['cores']} cores; {on['system']}; CUDA {on['cuda']}; {versions}."
    )
    steps = "one graph" if on["whole_steps"] else "two graphs, since this PyTorch is before 2.13"
    parts = [head, verdict, *(["\n".join(f"- {why}" for why in wrong)] if wrong else [])]
    if result["device"] == "cpu":
        parts.append("Without a card: this says that the script works, and nothing of CUDA.")
    parts += ["### Right or wrong", checks_table(result["checks"])]
    parts += [f"### Trainings, a compiled step as {steps}", trainings_table(result["trainings"])]
    if "runs" in result["loops"]:
        parts.append(report.training_section(result["loops"]))
    return "\n\n".join(parts)


def checks_table(checks: Mapping[str, Any]) -> str:
    tests, equal = checks["tests"], checks["equality"]
    rows = []
    if "passed" in tests:
        rows.append(
            ["tests marked `cuda`", f"{tests['passed']} passed, {tests['skipped']} skipped"]
        )
    rows += [[f"off the CPU, {name}", f"{far:.1e}"] for name, far in equal.get("off", {}).items()]
    for name, found in checks.items():
        if "kills" in found:
            rows.append([name, f"{found['kills']} times, bit for bit"])
    return report.table(["", "found"], rows)


def trainings_table(trainings: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{name}, {row['precision']}, {'compiled' if row['compiled'] else 'eager'}",
            f"{row['losses'][0]:.2f}",
            f"{row['losses'][-1]:.2f}",
            f"{row['examples_per_s']:,.0f}",
            f"{row['step_ms']:.2f}",
            f"{row['busy_ms']:.2f}",
            f"{row['busy_share']:.0%}",
            f"{row['graph_launches']:g}",
            f"{row['peak_mb']:,.0f}" if row["peak_mb"] else "",
            f"{row['seconds']:.1f}",
        ]
        for name, found in trainings.items()
        for row in (found if isinstance(found, list) else [])
        if "losses" in row
    ]
    columns = ["", "first loss", "last loss", "examples/s", "step ms", "of which it computes"]
    columns += ["share", "graph launches a step", "peak MB", "in all s"]
    return report.table(columns, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="a few steps of each")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: docs/, for a card only"
    )
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="in all")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu" and not options.out and not options.worker:
        parser.error("--device cpu needs --out FOLDER: the page in docs/ is of cards")
    return options


def main() -> None:
    options = parse()
    if options.worker:
        request = json.load(sys.stdin)
        answer = TASKS[request.pop("task")](**request)
        options.worker.write_text(json.dumps(answer))
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"PyTorch {torch.__version__} sees no CUDA device here")
    page = PAGE
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        page = Path(shutil.copy(PAGE, options.out))
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        result = Proof(options, Path(folder)).run()
    text = page_of(result)
    print(text)
    page.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    report.write_docs(page, text)
    if failures_of(result):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
