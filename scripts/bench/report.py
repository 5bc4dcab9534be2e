"""The results as tables, for a terminal and for `docs/benchmarks.md`; the machine and versions."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ae-toolkit", "torch", "torchvision", "pythae", "jax", "optax", "numpy", "pretty_midi",
    "miditoolkit", "symusic",
)  # fmt: skip

#: Instructions that decide which matrix products are fast.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")

OURS = "ours"

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def machine(threads: int, device: str) -> dict[str, Any]:
    """The processor and what it can do, and the versions of everything that is compared."""
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        rows = dict(re.findall(r"^([^\t:]+)\s*: (.*)$", info.read_text(), re.MULTILINE))
        name = rows.get("model name", name)
        flags = set(rows.get("flags", rows.get("Features", "")).split())
    if device == "cuda":
        import torch

        name = f"{torch.cuda.get_device_name()}, {name}"
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name,
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": found,
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: the first to the left, the others to the right."""
    if not rows:
        return "Nobody was there to be measured."
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = [f"{'-' * (width - (i > 0))}{':' * (i > 0)}" for i, width in enumerate(widths)]
    return "\n".join([line(columns), line(rule), *(line(row) for row in rows)])


def median(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Ours to theirs, round by round: the median, and the range where there are several."""
    each = sorted(ours[i] / theirs[i] for i in ours if i in theirs)
    if not each:
        return ""
    middle = f"{statistics.median(each):.2f}"
    return middle if len(each) == 1 else f"{middle} ({each[0]:.2f} to {each[-1]:.2f})"


def by_round(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    return {row["round"]: row[key] for row in rows}


TRAINING = (
    "", "images/s", "ours / it", "of the limit", "warm-up s", "first step s", "in all s",
    "peak MB", "-ELBO nats",
)  # fmt: skip


def training_table(work: Mapping[str, Any]) -> str:
    """One work's contenders: medians over rounds, the ratio to ours within each round."""
    runs: dict[str, list[dict[str, Any]]] = work["runs"]
    ours = by_round(runs.get(OURS, []), "steady")
    rows = []
    for name, mine in runs.items():
        if not mine:
            continue
        precision = mine[-1]["precision"]
        compiled = ", compiled" if mine[-1].get("compiled") else ""
        label = f"{name}{compiled}" if precision in name else f"{name} ({precision}{compiled})"
        speed = median(mine, "steady")
        # Where bf16 products are not made in hardware, a good compiler makes them in fp32.
        kind = precision if work["fast_bf16"] else "fp32"
        share = f"{speed * work['flops'] / work['limit'][kind]:.0%} of {kind}"
        rows.append(
            [
                label,
                f"{speed:,.0f}",
                ratios(ours, by_round(mine, "steady")),
                share,
                f"{median(mine, 'warm_up'):.1f}",
                f"{median(mine, 'first_step'):.1f}",
                f"{median(mine, 'wall'):.1f}",
                f"{median(mine, 'peak_mb'):,.0f}",
                f"{median(mine, 'negative_elbo'):.2f}",
            ]
        )
    return table(TRAINING, rows)


def training_section(work: Mapping[str, Any]) -> str:
    """A work's heading, its table, its limit, and who is not in it and why."""
    whole = f"{work['epochs']} epoch{'s' * (work['epochs'] > 1)} of {work['num']:,} images"
    limits = ", ".join(
        f"{name} {rate / 1e9:,.1f} GFLOP/s ({rate / work['flops']:,.0f} images/s)"
        for name, rate in work["limit"].items()
    )
    lines = [
        f"### {work['title']}: {whole}",
        "",
        training_table(work),
        "",
        f"A training step takes {work['flops'] / 1e6:,.2f} MFLOP per image; the matrix products "
        f"alone, at these shapes: {limits}.",
        *absences(work["absent"]),
    ]
    return "\n".join(lines)


def midi_section(midi: Mapping[str, Any]) -> str:
    runs = midi["runs"]
    ours = by_round(runs.get(OURS, []), "files_per_s")
    rows = []
    for name, mine in runs.items():
        if not mine:
            continue
        agreed = midi["agreement"].get(name, {})
        rows.append(
            [
                name,
                f"{median(mine, 'files_per_s'):,.0f}",
                ratios(ours, by_round(mine, "files_per_s")),
                f"{median(mine, 'peak_mb'):,.0f}" if "peak_mb" in mine[0] else "",
                f"{agreed['agree']:,} of {midi['num']:,}" if agreed else "",
            ]
        )
    lines = [
        f"### MIDI files to notes: {midi['num']:,} {midi['title']}",
        "",
        table(["", "files/s", "ours / it", "peak MB", "files with our notes"], rows),
        *absences(midi["absent"]),
    ]
    return "\n".join(lines)


def absences(absent: Mapping[str, str]) -> list[str]:
    """Who is missing, as a list below a table."""
    return [""] * bool(absent) + [f"- {name}: {why}" for name, why in absent.items()]


def whole(result: Mapping[str, Any]) -> str:
    """Everything, as it is printed and as it goes into the documentation."""
    on = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    parts = [
        f"`{result['command']}`, {result['date']}: {result['rounds']} "
        f"round{'s' * (result['rounds'] > 1)} of every contender in turn, medians.\n\n"
        f"{on['processor']}, {on['cores']} cores, {on['threads']} used, "
        f"{', '.join(on['flags']) or 'no flags known'}; {on['system']}; {versions}.",
        *([f"Note: {result['note']}."] if result["note"] else []),
        *(training_section(work) for work in result["works"]),
        *([midi_section(result["midi"])] if result["midi"] else []),
    ]
    return "\n\n".join(parts)


def write_docs(path: Path, text: str) -> None:
    """Puts a text between the markers of a page, and leaves the rest of it as it is.

    Raises:
        ValueError: the page has no markers.
    """
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{path}: must hold {BEGIN} and {END}, once each")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
