"""`scripts/prove_cuda.py`, on the CPU: what it counts, what it says, and all of it, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import prove_cuda
from bench import card, report

SCRIPT = ROOT / "scripts/prove_cuda.py"


def test_a_device_is_busy_while_any_kernel_runs() -> None:
    """Kernels of 0 to 4, 1 to 2, 3 to 6 and 8 to 9 µs, and a copy, which is none."""
    spans = [(0, 4), (1, 1), (8, 1), (3, 3)]
    events = [{"cat": "kernel", "ts": start, "dur": length} for start, length in spans]
    events += [{"cat": "gpu_memcpy", "ts": 10, "dur": 5}, {"name": "no span"}]
    assert card.busy_us(events, "kernel") == 7


def test_whatever_failed_is_found() -> None:
    result = {
        "checks": {"tests": {"failed": "a"}, "equality": {}},
        "trainings": {"x": [{"failed": "b"}]},
    }
    assert prove_cuda.failures_of(result) == ["a", "b"]


def test_tests_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        "<testsuites><testsuite><testcase name='good'/><testcase name='bad'><failure/></testcase>"
        "<testcase name='none'><skipped/></testcase></testsuite></testsuites>"
    )
    found = prove_cuda.counted(path)
    assert found == {"passed": 1, "skipped": 1, "failed": "tests failed: bad"}


def test_the_page_says_whether_it_has_run_on_a_card() -> None:
    page = prove_cuda.PAGE.read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    assert ("has ever run on a GPU" in page) != prove_cuda.PAGE.with_suffix(".json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("sees no CUDA device here\n")


def test_a_page_of_cards_is_not_written_from_a_cpu() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "needs --out FOLDER" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif("AE_PROVE" not in os.environ, reason="takes minutes: set AE_PROVE=1")
def test_all_of_it_small_on_the_cpu(tmp_path: Path) -> None:
    words = [SCRIPT, "--device", "cpu", "--small", "--out", tmp_path, "--limit", "1200"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "benchmarks-cuda.json").read_text())
    assert result["checks"]["equality"]["off"].keys() >= {"mnist-vae: gradients"}
    assert [found["kills"] for name, found in result["checks"].items() if "kill" in name] == [1]
    rows = [row for rows in result["trainings"].values() for row in rows]
    assert len(rows) == 5 and all(row["busy_share"] > 0 for row in rows)
    assert result["loops"]["runs"].keys() == {"ours", "ours uncompiled", "torch loop"}
    page = (tmp_path / "benchmarks-cuda.md").read_text()
    assert "nothing of CUDA" in page and "torch loop" in page
