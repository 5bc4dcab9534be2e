"""Data that does not fit into memory: read ahead in a shuffled order, split without copies."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ae_toolkit import Examples, RunError
from ae_toolkit.data import batches, examples
from ae_toolkit.data.batches import Batches
from ae_toolkit.data.columns import ArrayFile
from ae_toolkit.data.examples import train_test_split
from ae_toolkit.randomness import Source

NUM, CPU = 1000, torch.device("cpu")


def stored(folder: Path, num: int = NUM) -> Examples:
    """Numbered examples in files."""
    np.save(folder / "y.npy", np.arange(num * 6, dtype=np.int32).reshape(num, 2, 3))
    np.save(folder / "mask.npy", np.arange(num * 2).reshape(num, 2) % 3 > 0)
    np.save(folder / "kind.npy", np.arange(num))
    y, mask, kind = (ArrayFile(folder / f"{name}.npy") for name in ("y", "mask", "kind"))
    return Examples(y, mask, {"kind": kind}, [f"file {i // 4}" for i in range(num)])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large for memory."""
    row = 24 + 2 + 8
    monkeypatch.setattr(examples, "MAX_COPY_BYTES", 0)
    monkeypatch.setattr(batches, "ON_DEVICE", 0)
    monkeypatch.setattr(batches, "ROW_INDEX_BYTES", 0)
    monkeypatch.setattr(batches, "BLOCK_BYTES", 7 * row)
    monkeypatch.setattr(batches, "WINDOW_BYTES", 130 * row)


def rows_of(made: Batches, numbers: range) -> list[list[int]]:
    found = []
    for micro in numbers:
        batch = made.at(micro)
        kinds = batch.labels["kind"]
        assert batch.mask is not None
        assert torch.equal(batch.y[:, 0, 0], 6 * kinds.int())
        assert torch.equal(batch.mask, torch.stack([2 * kinds, 2 * kinds + 1], 1) % 3 > 0)
        found.append(kinds.tolist())
    return found


def flat(epochs: list[list[list[int]]]) -> list[int]:
    return [*chain(*chain(*epochs))]


def of(examples: Examples, *, batch_size: int = 32, rank: int = 0, num_ranks: int = 1) -> Batches:
    return Batches.of(
        examples,
        batch_size=batch_size,
        batches=len(examples) // batch_size,
        seed=3,
        device=CPU,
        rank=rank,
        num_ranks=num_ranks,
    )


@pytest.mark.parametrize("fits", [True, False], ids=["in memory", "read ahead"])
def test_an_epoch_is_a_shuffle_and_ranks_share_it(
    fits: bool, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fits:
        monkeypatch.setattr(batches, "ON_DEVICE", 1 << 30)
    examples = stored(tmp_path)
    with of(examples) as made:
        epochs = [rows_of(made, range(31 * e, 31 * e + 31)) for e in range(3)]
    for epoch in epochs:
        seen = flat([epoch])
        assert len(set(seen)) == len(seen) == 31 * 32 and max(seen) < NUM
        assert sum(a + 1 == b for a, b in pairwise(seen)) < 30, "unshuffled"
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({*flat(epochs)}) == NUM, "what waits is never the same"

    shares = [rows_of(of(examples, rank=r, num_ranks=4), range(62)) for r in range(4)]
    joined = [[*chain(*four)] for four in zip(*shares, strict=True)]
    assert joined == [*chain(*epochs[:2])]
    resumed = of(examples)
    for micro in (45, 46, 61, 62, 5):
        assert rows_of(resumed, range(micro, micro + 1))[0] == epochs[micro // 31][micro % 31]


def test_small_data_keeps_its_order(tmp_path: Path) -> None:
    made = of(stored(tmp_path))
    expected = Source(3, "order").permutation(NUM, 1)[:32]
    assert rows_of(made, range(31, 32)) == [expected.tolist()]


@pytest.mark.parametrize("batch_size", [1, 130, 131, 999, 1000])
def test_windows_of_any_size(batch_size: int, tmp_path: Path, tiny: None) -> None:
    examples = stored(tmp_path)
    num = NUM // batch_size
    with of(examples, batch_size=batch_size) as made:
        for epoch in range(2):
            seen = flat([rows_of(made, range(num * epoch, num * epoch + num))])
            assert len(set(seen)) == len(seen) == num * batch_size


def test_views_of_views_read_what_copies_hold(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = stored(tmp_path)
    mine, held = train_test_split(examples, 0.3, seed=1)
    inner, _ = train_test_split(mine, 0.3, seed=2)
    picked = inner.select([5, 3, 3, 200]).select(np.array([False, True, True, True]))
    assert all(part.rows is not None for part in (mine, held, inner, picked))
    assert not set(mine.groups) & set(held.groups)
    assert len(mine) + len(held) == NUM and 0 < len(inner) < len(mine)
    views = [mine, held, inner, picked, examples.select([])]
    monkeypatch.setattr("ae_toolkit.data.examples.MAX_COPY_BYTES", 1 << 30)
    mine, held = train_test_split(examples, 0.3, seed=1)
    inner, _ = train_test_split(mine, 0.3, seed=2)
    copies = [mine, held, inner, inner.select([3, 3, 200]), examples.select([])]
    for view, copy in zip(views, copies, strict=True):
        assert copy.rows is None
        assert torch.equal(view.y, copy.y) and torch.equal(view.mask, copy.mask)
        assert torch.equal(view.labels["kind"], copy.labels["kind"])
        assert view.groups == copy.groups == [f"file {i // 4}" for i in copy.labels["kind"]]
        if len(view):
            batch = view.at(range(1, len(view), 2))
            assert torch.equal(batch.y, copy.y[1::2])
            assert view.digest() == copy.digest()
    with of(views[0]) as made:
        seen = flat([rows_of(made, range(len(mine) // 32))])
    assert set(seen) <= set(mine.labels["kind"].tolist()) and len(set(seen)) == len(seen)
    with pytest.raises(IndexError):
        views[0].at(range(len(mine) + 1))


def test_digest_notices_another_size_kind_and_content(tmp_path: Path) -> None:
    y = torch.arange(400).view(200, 2)
    kind = {"kind": torch.zeros(200)}
    groups = ["a"] * 200
    changed = y.clone()
    changed[-1] += 1
    some = [
        Examples(y, None, {}, groups),
        Examples(y[:199], None, {}, groups[1:]),
        Examples(y.int(), None, {}, groups),
        Examples(changed, None, {}, groups),
        Examples(y, None, kind, groups),
        Examples(y, torch.ones(200, 2, dtype=torch.bool), {}, groups),
    ]
    assert len({examples.digest() for examples in some}) == len(some)
    assert Examples(y.clone(), None, {}, ["b"] * 200).digest() == some[0].digest()


def test_rows_of_several_files(tmp_path: Path) -> None:
    rows = np.arange(60).reshape(20, 3)
    for name, some in (("a", rows[:7]), ("b", rows[7:8]), ("c", rows[8:])):
        np.save(tmp_path / f"{name}.npy", some)
    stored = ArrayFile(*(tmp_path / f"{name}.npy" for name in "abc"))
    assert len(stored) == 20 and stored.shape == (20, 3)
    for index in ([19, 0, 7, 7, 6, 8], [3], [], [*range(20)]):
        index = torch.tensor(index, dtype=torch.int64)
        assert torch.equal(stored.index_select(0, index), torch.from_numpy(rows)[index])


@pytest.mark.parametrize("how", ["cut", "removed", "emptied"])
def test_a_file_that_goes_away_is_one_sentence(how: str, tmp_path: Path, tiny: None) -> None:
    examples = stored(tmp_path)
    with of(examples) as made:
        made.at(0)
        path = tmp_path / "y.npy"
        if how == "removed":
            path.unlink()
        else:
            os.truncate(path, 0 if how == "emptied" else path.stat().st_size // 2)
        sentence = "was removed" if how == "removed" else "is damaged or was cut"
        with pytest.raises(RunError, match=sentence) as caught:
            rows_of(made, range(62))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_small_data_is_in_memory_even_on_the_cpu(tmp_path: Path) -> None:
    examples = stored(tmp_path)
    mapped = torch.from_numpy(np.load(tmp_path / "y.npy", mmap_mode="c"))
    both = [examples.to(CPU), Examples(mapped, None, {}, examples.groups).to(CPU)]
    os.truncate(tmp_path / "y.npy", 0)
    assert all(int(some.y.sum()) == sum(range(NUM * 6)) for some in both)


PASS = """
import sys
import torch
from ae_toolkit import Examples
from ae_toolkit.data import batches
from ae_toolkit.data import examples
from ae_toolkit.data.batches import Batches
from ae_toolkit.data.columns import ArrayFile
from ae_toolkit.data.examples import train_test_split

examples.MAX_COPY_BYTES, batches.ON_DEVICE, batches.WINDOW_BYTES = 1 << 20, 1 << 20, 8 << 20

def used(of):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(of))

def go_through(path):
    y = ArrayFile(path)
    every = Examples(y, None, {"kind": torch.zeros(len(y))}, [str(i // 10) for i in range(len(y))])
    mine, held = train_test_split(every, 0.1, seed=0)
    num, device = len(mine) // 128, torch.device("cpu")
    with Batches.of(mine, batch_size=128, batches=num, seed=0, device=device) as made:
        total = sum(int(made.at(i).y[0, 0]) for i in range(num))
    for start in range(0, len(held), 1000):
        held.at(range(start, min(start + 1000, len(held))))
    return total + len(mine.digest())

assert go_through("small.npy")
before = used("VmRSS")
assert go_through("large.npy")
print(used("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_flat(tmp_path: Path) -> None:
    """A pass over 300 MB of examples, split and read ahead, takes a fifth of it at most."""
    for name, num in (("small", 30), ("large", 300)):
        path = tmp_path / f"{name}.npy"
        rows = np.lib.format.open_memmap(path, "w+", np.uint8, (num * 1000, 1000))
        for i in range(num):
            rows[1000 * i : 1000 * i + 1000] = i % 256
        del rows
    done = subprocess.run(
        [sys.executable, "-c", PASS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 60
