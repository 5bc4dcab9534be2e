"""`scripts/bench.py`: what is counted, how it is judged and printed, and a small run of ours."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from bench import contenders, midi, ours, report, work


def test_flops_of_the_dense_net() -> None:
    """Two per multiply-add forward and four backward, less the gradient of the pictures."""
    weights = 784 * 512 + 512 * 32 + 16 * 512 + 512 * 784
    assert work.flops(work.DENSE) == 6 * weights - 2 * 784 * 512 == 4_161_536


def test_flops_of_the_conv_net_are_pytorchs() -> None:
    from bench.conv_vae import mnist_conv_vae
    from torch.utils.flop_counter import FlopCounterMode

    from ae_toolkit.autoencoder import Autoencoder
    from ae_toolkit.contracts import Batch
    from ae_toolkit.randomness import Source

    recipe = mnist_conv_vae()
    net = Autoencoder(recipe, modality=recipe.make("modality"))
    with FlopCounterMode(display=False) as counter:
        batch = Batch(torch.rand(2, 1, 28, 28), None, {})
        terms = net(batch, Source(0, "test").step(0)).terms
        terms.distortion.sum().backward()
    assert counter.get_total_flops() == pytest.approx(2 * work.flops(work.CONV), rel=0.02)


def test_products_are_the_shapes_of_the_dense_net() -> None:
    layers = contenders.dense_net().values()
    shapes = [(1, layer.in_features, layer.out_features) for layer in layers]
    assert shapes == [each[:3] for each in work.DENSE]


def test_matmul_rate_is_a_rate() -> None:
    products = (work.Product(1, 8, 8, input_gradient=False),)
    assert 0 < work.matmul_rate(products, 4, "fp32", "cpu", seconds=0.01) < math.inf


def test_judge_on_a_known_case() -> None:
    """A code N(1, 1) whatever the picture, and grey: KL 1/2 a dimension, log 2 a pixel."""
    pictures = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    found = work.negative_elbo(
        lambda x: (torch.ones(len(x), 3), torch.zeros(len(x), 3)),
        lambda z: torch.zeros(len(z), 1, 28, 28),
        pictures,
    )
    assert found["rate"] == pytest.approx(1.5)
    assert found["distortion"] == pytest.approx(784 * math.log(2), rel=1e-5)
    assert found["negative_elbo"] == pytest.approx(found["rate"] + found["distortion"])


def test_clock_leaves_the_first_stretch_out() -> None:
    """2 s until the loop; 3 s of compiling in the first stretch; then 100 images/s."""
    speed = work.speed_of(2.0, [(200, 7.0), (200, 9.0), (200, 11.0), (200, 16.0)], 100)
    assert speed.steady == pytest.approx(100)
    assert speed.warm_up == pytest.approx(3)
    assert speed.first_step == pytest.approx(6)


def test_digits_are_read_as_they_are_written(tmp_path: Path) -> None:
    pictures = np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28)
    for split in ("train", "test"):
        work.write_digits(tmp_path, split, pictures)
        assert (work.read_digits(tmp_path, split) == pictures).all()
    assert work.find_digits([tmp_path / "nowhere", tmp_path]) == tmp_path


def test_table_lines_up() -> None:
    text = report.table(["", "images/s"], [["ours", "12"], ["somebody else", "3"]])
    assert text.splitlines() == [
        "|               | images/s |",
        "| ------------- | -------: |",
        "| ours          |       12 |",
        "| somebody else |        3 |",
    ]


def test_table_of_nobody() -> None:
    assert "|" not in report.table(["", "images/s"], [])


def test_ratios_are_taken_within_rounds() -> None:
    assert report.ratios({0: 10.0, 1: 40.0, 2: 30.0}, {0: 5.0, 1: 10.0}) == "3.00 (2.00 to 4.00)"
    assert report.ratios({0: 10.0}, {0: 5.0}) == "2.00"
    assert report.ratios({}, {0: 5.0}) == ""


def test_docs_are_rewritten_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for text in ("new", "newer"):
        report.write_docs(page, text)
        marked = f"{report.BEGIN}\n\n{text}\n\n{report.END}"
        assert page.read_text() == f"# Before\n{marked}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must hold"):
        report.write_docs(page, "text")


def test_page_of_the_documentation_has_markers() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1


def test_command_is_one_that_trains(tmp_path: Path) -> None:
    """The settings fit the recipe, which is checked before anything is read."""
    from ae_toolkit.recipe import named, parse_settings

    some = work.Work("dense", str(tmp_path), 1000, 200, 128, 5, "cpu")
    words = ours.command(some, tmp_path / "run", ["train.precision=fp32"])
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    recipe = named(words[words.index("train") + 1]).with_(parse_settings(pairs)).check()
    assert recipe.bottleneck.arguments == {"z_dim": work.Z_DIM}
    assert recipe.train.lr == work.LEARNING_RATE and recipe.train.precision == "fp32"


def test_readers_find_the_same_notes() -> None:
    paths = sorted((ROOT / "plugins/ae_music/samples/tunes").glob("*.mid"))[:10]
    assert midi.agreement("pretty_midi", paths)["agree"] == len(paths)
    assert midi.read_all("ours", paths, seconds=0.01)["files_per_s"] > 0


def bench(tmp_path: Path, *arguments: str) -> tuple[str, dict]:
    """Runs the script without any data but what ships."""
    out = tmp_path / "bench.json"
    env = {**os.environ, "AE_DATA": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench.py"), *arguments, "--json", str(out)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


def test_unknown_name_is_a_sentence(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts/bench.py"), "--only", "tensorflow"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "there is no 'tensorflow'" in done.stderr


@pytest.mark.slow
def test_quick_with_only_ours_on_the_bundled_sample(tmp_path: Path) -> None:
    text, result = bench(
        tmp_path, "--quick", "--only", "ours", "--only", "dense", "--set", "train.compile=off"
    )
    (entry,) = result["works"]
    (row,) = entry["runs"]["ours"]
    assert entry["num"] == 1000 and "bundled sample" in text
    assert 100 < row["negative_elbo"] < 550 and row["steady"] > 0
    assert 0 < row["first_step"] < row["wall"] and row["peak_mb"] > 100
    assert f"{row['negative_elbo']:.2f}" in text
