"""Reading many files: in parts, by many processes, and going on where it was ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Site

from ae_toolkit import Failure
from ae_toolkit.data import columns, digests, examples, ingest, shards
from ae_toolkit.data import folder as reading
from ae_toolkit.data.columns import Stored
from ae_toolkit.data.folder import Corpus, part_of, read_corpus
from ae_toolkit.modality import Modality
from ae_toolkit.registry import modalities

MODULE = '''
import os
import signal
import time
from pathlib import Path

import torch

from ae_toolkit import Example, Failure, Modality


class Lines(Modality):
    """Lines of three numbers, or of fewer, each an item; and words that do something."""

    suffixes = (".lines",)

    def __init__(self, *, delay=0.0):
        self.shape, self.labels, self.delay = (3, 2), {"first": 0, "even": 2}, delay

    def read(self, path):
        time.sleep(self.delay)
        for line in path.read_text().splitlines():
            if line == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if line == "hang":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
                while True:
                    pass
            if line == "exit":
                os._exit(3)
            if line == "killed" and not (flag := path.with_suffix(".flag")).exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if line == "killed":
                continue
            if line == "broken":
                raise Failure(f"{path}: is broken")
            if line == "wrong":
                raise ZeroDivisionError("no number")
            print("a parser that talks")
            yield [int(word) for word in line.split()]

    def to_tensor(self, item):
        y = torch.tensor(item, dtype=torch.int16)[:, None].expand(-1, 2)
        first = item[0] + 0.5 if item[0] % 7 == 0 else item[0]
        return Example(y, {"first": first, "even": item[0] % 2}, "")

    def from_tensor(self, y, *, like=None, labels=None):
        return y[:, 0].tolist()

    def write(self, items, path):
        raise NotImplementedError


def first_of(item):
    return f"group {item[0] % 5}"


class Kinds(Lines):
    def to_tensor(self, item):
        y, labels, group = super().to_tensor(item)
        return Example(y.float() if item[0] == 11 else y, labels, group)
'''


@pytest.fixture
def lines(site: Site) -> Iterator[Callable[..., Modality]]:
    """The data type of a module that other processes can import."""
    (site.folder / "lines_module.py").write_text(MODULE)
    import lines_module

    with modalities.temporarily(lines=lines_module.Lines):
        yield lines_module.Lines
    sys.modules.pop("lines_module")


def folder_of(tmp_path: Path, texts: dict[str, str], *, num: int = 30) -> Path:
    folder = tmp_path / "files"
    for i in range(num):
        path = folder / f"{i % 3}" / f"{i:03d}.lines"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(f"{i} {i + 1} {k}"[: 9 - 4 * (i == 21)] + "\n" for k in range(i % 4))
        )
    for name, text in texts.items():
        (folder / f"{name}.lines").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PART_FILES", 4)
    monkeypatch.setattr(shards, "PART_BYTES", 100)


def same(a: Corpus, b: Corpus) -> None:
    assert a.skipped == b.skipped and a.examples.groups == b.examples.groups
    one, other = a.examples, b.examples
    assert one.y.dtype == other.y.dtype and torch.equal(one.y, other.y)
    assert (one.mask is None) == (other.mask is None)
    assert one.mask is None or torch.equal(one.mask, other.mask)
    for name in ("first", "even"):
        assert one.labels[name].dtype == other.labels[name].dtype
        assert torch.equal(one.labels[name], other.labels[name])


def anew(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))


BAD = {"bad": "1 2 3\nbroken", "odd": "1 2 3 4", "worse": "wrong", "0/empty": ""}


@pytest.mark.parametrize("grouped", [False, True])
def test_many_processes_read_what_one_reads(
    grouped: bool, lines, tmp_path: Path, monkeypatch
) -> None:
    import lines_module

    group = lines_module.first_of if grouped else None
    folder = folder_of(tmp_path, BAD)
    found = []
    for num in (1, 3):
        anew(monkeypatch, tmp_path / f"cache {num}")
        found.append(read_corpus([folder], lines(), group=group, processes=num))
        assert read_corpus([folder], lines(), group=group).skipped == found[-1].skipped
    same(*found)
    first = found[0]
    names = sorted((p.relative_to(folder) for p in folder.rglob("*.lines")), key=lambda p: p.parts)
    numbers = [int(n.stem) for n in names if n.stem.isdigit()]
    assert first.examples.y[:, 0, 0].tolist() == [i for i in numbers for _ in range(i % 4)]
    assert first.examples.labels["first"].dtype == torch.float64
    assert first.examples.labels["even"].dtype == torch.int64
    assert [name for name, _ in first.skipped] == ["bad.lines", "odd.lines", "worse.lines"]
    assert "modality 'lines' of this process" in first.skipped[2].reason
    wanted = [f"group {i % 5}" for i in numbers for _ in range(i % 4)]
    if not grouped:
        wanted = [n.as_posix() for n in names if n.stem.isdigit() for _ in range(int(n.stem) % 4)]
    assert first.examples.groups == wanted
    assert not [*(tmp_path / "cache 3").rglob("*.parts")]


@pytest.mark.parametrize("num", [1, 30])
def test_a_crash_or_hang_skips_its_file(num: int, lines, site, tmp_path: Path, monkeypatch) -> None:
    """In whatever process, first and last file included; and it is remembered."""
    monkeypatch.setattr(ingest, "ITEM_SECONDS", 1)
    texts = {
        "!crash": "5 5 5\ncrash",
        "!hang": "6 6 6\nhang",
        "gone": "exit",
        "killed": "8 8 8\nkilled",
        "last": "crash",
    }
    folder = folder_of(tmp_path, texts, num=num)
    found = read_corpus([folder], lines())
    assert found.skipped == [
        ("!crash.lines", "the process that read it crashed (SIGSEGV)"),
        ("!hang.lines", "the process that read it hung for 1 seconds"),
        ("gone.lines", "the process that read it crashed (exit code 3)"),
        ("last.lines", "the process that read it crashed (SIGSEGV)"),
    ]
    assert len(found.examples) == 1 + sum(i % 4 for i in range(num))
    assert read_corpus([folder], lines()).skipped == found.skipped
    if num == 1:
        anew(monkeypatch, tmp_path / "a folder of crashes only")
        (folder / "killed.lines").unlink()
        with pytest.raises(Failure, match=r"none of 5 files could be read, the process that read"):
            read_corpus([folder], lines())


def test_other_systems_begin_processes_anew(lines, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ingest, "CONTEXT", get_context("spawn"))
    found = read_corpus([folder_of(tmp_path, {"crash": "crash"})], lines(), processes=1)
    assert found.skipped == [("crash.lines", "the process that read it crashed (SIGSEGV)")]
    assert len(found.examples) == sum(i % 4 for i in range(30))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_type_that_cannot_be_imported(
    start: str, lines, tmp_path: Path, monkeypatch
) -> None:
    """As it is written in a notebook: a copy of this process knows it, another one does not."""
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(ingest, "CONTEXT", get_context(start))

    class Here(lines):  # type: ignore[misc,valid-type]
        pass

    Here.__module__ = "__main__"
    found = read_corpus([folder_of(tmp_path, {})], Here(), processes=2)
    assert len(found.examples) == sum(i % 4 for i in range(30))


def test_processes_that_cannot_import_it_leave_it(lines, site, tmp_path: Path, monkeypatch) -> None:
    """The module was changed on the disk in a way that another process cannot import."""
    monkeypatch.setattr(ingest, "CONTEXT", get_context("spawn"))
    (site.folder / "lines_module.py").write_text("raise RuntimeError('not twice')")
    found = read_corpus([folder_of(tmp_path, {})], lines(), processes=1)
    assert len(found.examples) == sum(i % 4 for i in range(30))


@pytest.mark.slow
@pytest.mark.parametrize("num", [2])
def test_killed_reading_goes_on(num: int, lines, site, tmp_path: Path, monkeypatch, capfd) -> None:
    """kill -9 and Ctrl-C wherever it is; at last the corpus is what it is at once."""
    folder = folder_of(tmp_path, BAD, num=60)
    anew(monkeypatch, tmp_path / "cache")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from lines_module import Lines\n"
        "from ae_toolkit import parts; from ae_toolkit.data.folder import read_corpus\n"
        "from ae_toolkit.registry import modalities; modalities.register('lines')(Lines)\n"
        "parts.PART_FILES, shards.PART_BYTES = 4, 100\n"
        f"read_corpus([Path({str(folder)!r})], Lines(delay=0.05), processes={num})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}
    rounds = 0
    for rounds in range(9):
        process = subprocess.Popen(
            [sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True
        )
        left = time.monotonic() + 60
        seen = len([*tmp_path.glob("cache/*/*/*.parts/part_*")])
        while process.poll() is None and time.monotonic() < left:
            if len([*tmp_path.glob("cache/*/*/*.parts/part_*")]) > seen + 4 and rounds < 2:
                process.send_signal(signal.SIGKILL if rounds != 1 else signal.SIGINT)
                break
            time.sleep(0.01)
        said = process.communicate(timeout=60)[1]
        if rounds:
            assert "files were read before: going on from there" in said
        if process.returncode == 0:
            break
    assert rounds == 2
    mine = read_corpus([folder], lines(delay=0.05))
    assert mine.folder and mine.folder.is_relative_to(tmp_path / "cache")
    assert not [*mine.folder.parent.glob("*.parts")]
    anew(monkeypatch, tmp_path / "another")
    same(mine, read_corpus([folder], lines(delay=0.05), processes=1))


@pytest.mark.parametrize("harm", ["y.npy", "part.json", "y.bin"])
def test_broken_parts_are_read_anew(harm: str, lines, tmp_path: Path, monkeypatch) -> None:
    folder = folder_of(tmp_path, {})
    whole = read_corpus([folder], lines(), processes=1)
    anew(monkeypatch, tmp_path / "cache")
    with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
        join = harm == "y.npy"
        patch.setattr(
            shards.Joining, "finish", lambda self, _: (join and self.move(least=0)) or 1 / 0
        )
        read_corpus([folder], lines(), processes=1)
    path = sorted((tmp_path / "cache").rglob(harm))[-1]
    path.unlink() if harm == "y.bin" else path.write_bytes(b"")
    same(whole, read_corpus([folder], lines(), processes=1))


def test_a_part_that_was_cut_is_read_anew(lines, tmp_path: Path, monkeypatch, capfd) -> None:
    folder = folder_of(tmp_path, {})
    whole = read_corpus([folder], lines(), processes=1)
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(shards, "PART_BYTES", 1 << 20)
    with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.Joining, "finish", lambda self, _: 1 / 0)
        read_corpus([folder], lines(), processes=1)
    cut = sorted((tmp_path / "cache").rglob("y.bin"))[1]
    os.truncate(cut, cut.stat().st_size - 4)
    same(whole, read_corpus([folder], lines(), processes=1))
    assert "26 of 30 files were read before" in capfd.readouterr().err


def flip(path: Path, at: int) -> None:
    """Flips a bit of a byte, as a disk does that forgets."""
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["y", "mask", "label_0", "groups", "names", "ends", "rest"])
def test_a_cache_that_was_damaged_is_made_anew(
    name: str, lines, tmp_path: Path, monkeypatch
) -> None:
    anew(monkeypatch, tmp_path / "cache")
    folder = folder_of(tmp_path, BAD)
    whole = read_corpus([folder], lines(), processes=1)
    assert whole.folder
    path = next(whole.folder.glob(f"{name}.*"))
    content = path.read_bytes()
    flip(path, len(content) - 2 if path.suffix == ".json" else -1)
    damaged = path.read_bytes()
    same(whole, read_corpus([folder], lines(), processes=1))
    assert path.read_bytes() not in (damaged, b"")


def test_a_damaged_block_of_a_large_cache_is_noticed_when_it_is_used(
    lines, tmp_path: Path, monkeypatch
) -> None:
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(columns, "CHECKED", 64)
    monkeypatch.setattr(reading, "COPIED", 0)
    folder = folder_of(tmp_path, {})
    whole = read_corpus([folder], lines(), processes=1)
    assert whole.folder
    y = whole.examples.at(range(len(whole.examples))).y
    flip(whole.folder / "y.npy", -1)
    damaged = read_corpus([folder], lines(), processes=1).examples
    assert torch.equal(damaged.at(range(3)).y, y[:3])
    for _ in range(2):
        with pytest.raises(Failure, match=r"y.npy: is damaged; run it again, and it is made anew"):
            damaged.at(range(len(y) - 2, len(y)))
    again = read_corpus([folder], lines(), processes=1).examples
    assert torch.equal(again.at(range(len(y))).y, y)


@pytest.mark.parametrize("harm", ["y.bin", "y.npy", "part.json", "lengths.npy", "label_0.npy"])
def test_parts_that_are_damaged_are_read_again(
    harm: str, lines, tmp_path: Path, monkeypatch
) -> None:
    folder = folder_of(tmp_path, {})
    whole = read_corpus([folder], lines(), processes=1)
    anew(monkeypatch, tmp_path / "cache")
    finish = shards.Joining.finish

    def damaged(self: shards.Joining, place: Path) -> list[shards.Skipped]:
        if harm == "y.npy":
            self.move(least=0)
        path = sorted(self.reader.work.rglob(harm))[-1]
        flip(path, path.stat().st_size // 2 if path.suffix == ".json" else -1)
        return finish(self, place)

    monkeypatch.setattr(shards, "PART_BYTES", 1 << 20)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Failure, match="damaged while it was"),
    ):
        patch.setattr(shards.Joining, "finish", damaged)
        read_corpus([folder], lines(), processes=1)
    same(whole, read_corpus([folder], lines(), processes=1))


@pytest.mark.parametrize("harm", ["gone", "broken", "cut"])
def test_parts_that_are_removed_in_use(harm: str, lines, tmp_path: Path, monkeypatch) -> None:
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(shards, "PART_BYTES", 1 << 20)
    finish = shards.Joining.finish

    def harmed(self: shards.Joining, folder: Path) -> list[shards.Skipped]:
        if harm == "gone":
            (self.parts()[0].folder / "part.json").unlink()
        elif harm == "broken":
            self.move(least=0)
            (self.parts()[0].folder / "part.json").write_text("{")
        else:
            os.truncate(sorted(self.reader.work.rglob("y.bin"))[0], 4)
        return finish(self, folder)

    monkeypatch.setattr(shards.Joining, "finish", harmed)
    with pytest.raises(Failure, match=r"parts: was removed or damaged while it was in use"):
        read_corpus([folder_of(tmp_path, {})], lines(), processes=1)


def test_an_error_at_work_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), ingest.at_work(tmp_path / "work"):
        raise FileNotFoundError("mine")


def test_where_no_other_process_can_begin_this_one_goes_on(
    lines, tmp_path: Path, monkeypatch
) -> None:
    """But not with the file that ended the last one that could."""
    folder, begin, begun = folder_of(tmp_path, {"0/gone": "exit"}), ingest._Worker.__init__, []

    def once(self: ingest._Worker, reader: shards.Reader) -> None:
        if begun:
            raise OSError("no more processes")
        begun.append(self)
        begin(self, reader)

    monkeypatch.setattr(ingest._Worker, "__init__", once)
    found = read_corpus([folder], lines())
    assert found.skipped == [("0/gone.lines", "the process that read it crashed (exit code 3)")]
    assert len(found.examples) == sum(i % 4 for i in range(30))


def test_a_defect_in_reading_is_said(lines, tmp_path: Path, monkeypatch) -> None:
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(shards._Rows, "save", lambda self, folder: [][1])
    with pytest.raises(Failure, match="IndexError: list index out of range"):
        read_corpus([folder_of(tmp_path, {})], lines())


# What files hold is remembered.


@pytest.fixture
def old(tmp_path: Path, monkeypatch) -> list[shards.File]:
    """Files that changed long enough ago."""
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(digests, "SETTLED", 0)
    monkeypatch.setattr(digests, "HASHED", 2)
    for i in range(5):
        (tmp_path / str(i)).write_text(f"file {i}")
    time.sleep(0.02)
    return [shards.File(tmp_path / str(i), str(i)) for i in range(5)]


def test_a_second_start_reads_no_contents(old, tmp_path: Path, monkeypatch) -> None:
    found = [*digests.digests(old)]
    assert found == [blake2b(f"file {i}".encode()).digest() for i in range(5)]
    monkeypatch.setattr(digests, "file_digest", lambda *_: pytest.fail("this was read before"))
    assert [*digests.digests(old)] == found
    missing = shards.File(tmp_path / "missing", "missing")
    assert [*digests.digests([missing])] == [b"No such file or directory"]


def test_an_edit_is_noticed(old, tmp_path: Path) -> None:
    found = [*digests.digests(old)]
    before = old[1].path.stat()
    old[0].path.write_text("another size")
    old[1].path.write_text("FILE 1")
    os.utime(old[1].path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [a == b for a, b in zip(found, digests.digests(old), strict=True)] == [False] * 2 + [
        True
    ] * 3


def test_what_changed_just_now_is_not_remembered(old, monkeypatch) -> None:
    monkeypatch.setattr(digests, "SETTLED", 10**12)
    found = [*digests.digests(old)]
    read: list[object] = []
    digest = digests.file_digest
    monkeypatch.setattr(
        digests, "file_digest", lambda file, kind: read.append(file) or digest(file, kind)
    )
    assert [*digests.digests(old)] == found and len(read) == 5


@pytest.mark.parametrize("harm", ["no database", "cut", "a folder", "nowhere"])
def test_a_broken_memory_of_files_is_survived(harm: str, old, tmp_path: Path, monkeypatch) -> None:
    found = [*digests.digests(old)]
    memo = tmp_path / "cache" / "ae-toolkit" / "digests.sqlite"
    if harm == "no database":
        memo.write_text("something else" * 1000)
    elif harm == "cut":
        os.truncate(memo, 5000)
    elif harm == "a folder":
        memo.unlink()
        memo.mkdir()
    else:
        anew(monkeypatch, memo)  # a file
    assert [*digests.digests(old)] == found
    if harm in ("no database", "cut"):
        monkeypatch.setattr(digests, "file_digest", lambda *_: pytest.fail("it is made anew"))
    assert [*digests.digests(old)] == found


def test_one_process_waits_for_another(lines, tmp_path: Path, monkeypatch, capfd) -> None:
    from threading import Thread

    anew(monkeypatch, tmp_path / "cache")
    folder = folder_of(tmp_path, {}, num=10)
    found: list[Corpus] = []
    both = [
        Thread(target=lambda: found.append(read_corpus([folder], lines(delay=0.1), processes=1)))
        for _ in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join()
    same(*found)
    assert "another process is reading these files" in capfd.readouterr().err


def test_tensors_of_several_kinds_are_refused(lines, tmp_path: Path) -> None:
    import lines_module

    folder = folder_of(tmp_path, {})
    for num in (1, 2):
        with pytest.raises(Failure, match="must make tensors of one dtype, with the same labels"):
            read_corpus([folder], lines_module.Kinds(), processes=num)


def test_full_disk_is_one_sentence(lines, tmp_path: Path, monkeypatch) -> None:
    anew(monkeypatch, tmp_path / "cache")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.shutil, "copyfileobj", full)
    with pytest.raises(Failure, match="cannot be written, No space left on device"):
        read_corpus([folder_of(tmp_path, {})], lines(), processes=1)


def test_cache_that_cannot_be_written(lines, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "plain").write_text("")
    anew(monkeypatch, tmp_path / "plain")
    found = read_corpus([folder_of(tmp_path, {})], lines())
    assert found.folder is None and found.examples.y.sum() > 0
    monkeypatch.setattr(reading, "COPIED", 0)
    found = read_corpus([tmp_path / "files"], lines())
    assert isinstance(found.examples.columns.y, Stored) and found.examples.y.sum() > 0


def test_names_that_are_no_text(lines, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    odd = os.fsdecode(b"\xff\xfe.lines")
    try:
        (folder / odd).write_text("1 2 3")
    except OSError:
        pytest.skip("this file system has no such names")
    assert odd in [*read_corpus([folder], lines(), processes=2).examples.groups]


def test_large_split_is_compared_in_pieces(lines, tmp_path: Path, monkeypatch, capfd) -> None:
    folder = folder_of(tmp_path, {f"copy {i}": "29 30 0\n" for i in range(20)}, num=60)
    modality = lines()
    whole = read_corpus([folder], modality).examples
    copies = [part_of(whole, modality, split) for split in ("train", "test")]
    monkeypatch.setattr(reading, "COPIED", 0)
    monkeypatch.setattr(reading, "COMPARED", 50)
    monkeypatch.setattr(examples, "COPIED", 0)
    lazy = read_corpus([folder], modality).examples
    views = [part_of(lazy, modality, split) for split in ("train", "test")]
    for view, copy in zip(views, copies, strict=True):
        assert view.rows is not None and copy.rows is None
        assert torch.equal(view.y, copy.y) and view.groups == copy.groups
    train, test = ({*map(tuple, part.y.flatten(1).tolist())} for part in copies)
    assert not train & test and len(test) > 1
    assert {*copies[0].groups}.isdisjoint({*copies[1].groups})
    every = np.array([*whole.groups])
    assert len(copies[0]) < len(every)
