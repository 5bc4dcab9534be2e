"""Reading many files: into shards, by many processes, and going on where it was ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Site

from ae_toolkit import RunError, console
from ae_toolkit.data import shards, store
from ae_toolkit.data.columns import ArrayFile
from ae_toolkit.data.folder import FolderDataset, read_folder
from ae_toolkit.modality import Modality
from ae_toolkit.registry import modalities

MODULE = '''
import os
import signal
import time
from pathlib import Path

import torch

from ae_toolkit import Example, RunError, Modality


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
                raise RunError(f"{path}: is broken")
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
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_FILES", 4)
    monkeypatch.setattr(shards, "SHARD_BYTES", 300)


def same(a: FolderDataset, b: FolderDataset) -> None:
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


@pytest.mark.slow
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
        found.append(read_folder([folder], lines(), group=group, processes=num))
        assert read_folder([folder], lines(), group=group).skipped == found[-1].skipped
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
    left = {path.name for path in (tmp_path / "cache 3").glob("*/*/*/*")}
    assert all(re.fullmatch(r"lock|\d{9}-\d{9}", name) for name in left)


@pytest.mark.parametrize("num", [1, 30])
def test_a_crash_or_hang_skips_its_file(num: int, lines, site, tmp_path: Path, monkeypatch) -> None:
    """In whatever process, first and last file included; and it is remembered."""
    monkeypatch.setattr(store, "ITEM_SECONDS", 1)
    texts = {
        "!crash": "5 5 5\ncrash",
        "!hang": "6 6 6\nhang",
        "gone": "exit",
        "killed": "8 8 8\nkilled",
        "last": "crash",
    }
    folder = folder_of(tmp_path, texts, num=num)
    found = read_folder([folder], lines())
    assert found.skipped == [
        ("!crash.lines", "the process that read it crashed (SIGSEGV)"),
        ("!hang.lines", "the process that read it hung for 1 seconds"),
        ("gone.lines", "the process that read it crashed (exit code 3)"),
        ("last.lines", "the process that read it crashed (SIGSEGV)"),
    ]
    assert len(found.examples) == 1 + sum(i % 4 for i in range(num))
    assert read_folder([folder], lines()).skipped == found.skipped
    if num == 1:
        anew(monkeypatch, tmp_path / "a folder of crashes only")
        (folder / "killed.lines").unlink()
        with pytest.raises(RunError, match=r"none of 5 files could be read, the process that read"):
            read_folder([folder], lines())


@pytest.mark.slow
def test_other_systems_begin_processes_anew(lines, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "PROCESS_CONTEXT", get_context("spawn"))
    monkeypatch.setattr(shards, "SHARD_FILES", 30)
    found = read_folder([folder_of(tmp_path, {"0/!": "crash"})], lines(), processes=1)
    assert found.skipped == [("0/!.lines", "the process that read it crashed (SIGSEGV)")]
    assert len(found.examples) == sum(i % 4 for i in range(30))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_type_that_cannot_be_imported(
    start: str, lines, tmp_path: Path, monkeypatch
) -> None:
    """As it is written in a notebook: a copy of this process knows it, another one does not."""
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(store, "PROCESS_CONTEXT", get_context(start))

    class Here(lines):  # type: ignore[misc,valid-type]
        pass

    Here.__module__ = "__main__"
    found = read_folder([folder_of(tmp_path, {})], Here(), processes=2)
    assert len(found.examples) == sum(i % 4 for i in range(30))


@pytest.mark.slow
def test_processes_that_cannot_import_it_leave_it(lines, site, tmp_path: Path, monkeypatch) -> None:
    """The module was changed on the disk in a way that another process cannot import."""
    monkeypatch.setattr(store, "PROCESS_CONTEXT", get_context("spawn"))
    (site.folder / "lines_module.py").write_text("raise RuntimeError('not twice')")
    found = read_folder([folder_of(tmp_path, {})], lines(), processes=1)
    assert len(found.examples) == sum(i % 4 for i in range(30))


@pytest.mark.slow
def test_killed_reading_goes_on(lines, site, tmp_path: Path, monkeypatch) -> None:
    """kill -9 and Ctrl-C wherever it is; at last the examples are what they are at once."""
    folder = folder_of(tmp_path, BAD, num=60)
    anew(monkeypatch, tmp_path / "cache")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from lines_module import Lines\n"
        "from ae_toolkit.data import shards; from ae_toolkit.data.folder import read_folder\n"
        "from ae_toolkit.registry import modalities; modalities.register('lines')(Lines)\n"
        "shards.SHARD_FILES, shards.SHARD_BYTES = 4, 100\n"
        f"read_folder([Path({str(folder)!r})], Lines(delay=0.05), processes=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}

    def num_shards() -> int:
        return len([*tmp_path.glob("cache/*/*/*/0*-0*")])

    for ended_by in (signal.SIGKILL, signal.SIGINT, None):
        process = subprocess.Popen(
            [sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True
        )
        ends, seen = time.monotonic() + 60, num_shards()
        while ended_by and num_shards() < seen + 4 and time.monotonic() < ends:
            assert process.poll() is None
            time.sleep(0.01)
        if ended_by:
            process.send_signal(ended_by)
        said = process.communicate(timeout=60)[1]
        assert ("files were read before: going on from there" in said) == (seen > 0)
    assert process.returncode == 0, said
    mine = read_folder([folder], lines(delay=0.05))
    assert mine.folder and mine.folder.is_relative_to(tmp_path / "cache") and not mine.is_new
    assert not [*mine.folder.glob(".*")], "what was half-written was left"
    anew(monkeypatch, tmp_path / "another")
    same(mine, read_folder([folder], lines(delay=0.05), processes=1))


@pytest.mark.slow
def test_nobody_reads_on_for_a_process_that_was_killed(lines, site, tmp_path: Path) -> None:
    (site.folder / "slow.py").write_text(
        "import os, sys, time; from pathlib import Path; from lines_module import Lines\n"
        "from ae_toolkit.data.folder import read_folder\n"
        "class Slow(Lines):\n"
        "    def read(self, path):\n"
        f"        Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "        time.sleep(0.2); yield [1, 2, 3]\n"
        f"read_folder([Path({str(folder_of(tmp_path, {}, num=90))!r})], Slow(), processes=1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, site.folder / "slow.py"], env={**os.environ, "XDG_CACHE_HOME": "/nowhere"}
    )
    ends = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(0.05)
    reader = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{reader}/stat").exists() and time.monotonic() < ends:
        if Path(f"/proc/{reader}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.01)
    assert time.monotonic() < ends


def flip(path: Path, at: int) -> None:
    """Flips a bit of a byte, as a disk does that forgets."""
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["y", "mask", "label_0", "shard"])
def test_a_cache_that_was_damaged_is_made_anew(
    name: str, lines, tmp_path: Path, monkeypatch
) -> None:
    anew(monkeypatch, tmp_path / "cache")
    folder = folder_of(tmp_path, BAD)
    whole = read_folder([folder], lines(), processes=1)
    assert whole.folder
    path = max(whole.folder.glob(f"*/{name}.*"), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    flip(path, len(content) - 2 if path.suffix == ".json" else -1)
    damaged = path.read_bytes()
    same(whole, read_folder([folder], lines(), processes=1))
    assert path.read_bytes() not in (damaged, b"")


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "emptied", "removed", "an array", "overlap"])
def test_a_shard_that_is_not_whole_is_read_anew(
    harm: str, lines, tmp_path: Path, monkeypatch, capfd
) -> None:
    """And only that one."""
    anew(monkeypatch, tmp_path / "cache")
    folder = folder_of(tmp_path, BAD)
    whole = read_folder([folder], lines(), processes=1)
    assert whole.folder
    shard = sorted(whole.folder.glob("0*"))[2]
    about = shard / "shard.json"
    if harm == "cut":
        os.truncate(shard / "y.npy", (shard / "y.npy").stat().st_size - 4)
    elif harm == "emptied":
        (shard / "label_1.npy").write_bytes(b"")
    elif harm == "removed":
        (shard / "y.npy").unlink()
    elif harm == "an array":
        about.write_text("[1]")
    else:
        first, stop = map(int, shard.name.split("-"))
        shard.rename(shard.with_name(f"{first - 1:09d}-{stop - 1:09d}"))
    capfd.readouterr()
    same(whole, read_folder([folder], lines(), processes=1))
    num = len([*folder.rglob("*.lines")])
    said = re.search(rf"(\d+) of {num} files were read before", capfd.readouterr().err)
    assert said and int(said[1]) >= num - 4


def test_a_damaged_shard_of_a_large_cache_is_noticed_when_it_is_used(
    lines, tmp_path: Path, monkeypatch
) -> None:
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(store, "MAX_COPY_BYTES", 0)
    folder = folder_of(tmp_path, {})
    whole = read_folder([folder], lines(), processes=1)
    assert whole.folder
    y = whole.examples.at(range(len(whole.examples))).y
    flip(sorted(whole.folder.glob("*/y.npy"))[-1], -1)
    damaged = read_folder([folder], lines(), processes=1).examples
    assert torch.equal(damaged.at(range(3)).y, y[:3])
    for _ in range(2):
        with pytest.raises(RunError, match=r"y.npy: is damaged or was cut .* is made anew"):
            damaged.at(range(len(y) - 2, len(y)))
    again = read_folder([folder], lines(), processes=1).examples
    assert torch.equal(again.at(range(len(y))).y, y)


def test_a_cache_that_goes_away_in_use_is_one_sentence(lines, tmp_path: Path, monkeypatch) -> None:
    fill = store._fill

    def harmed(files: list[shards.File], reader: shards.Reader, num: int) -> None:
        fill(files, reader, num)
        shutil.rmtree(sorted(reader.store.glob("0*"))[0])

    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(store, "_fill", harmed)
    with pytest.raises(RunError, match="was removed or damaged while it was in use: run it again"):
        read_folder([folder_of(tmp_path, {})], lines(), processes=1)


def test_where_no_other_process_can_begin_this_one_goes_on(
    lines, tmp_path: Path, monkeypatch
) -> None:
    """But not with the file that ended the last one that could."""
    folder, begin, begun = folder_of(tmp_path, {"0/000": "exit"}), store._Process.__init__, []

    def once(self: store._Process, *arguments: Any) -> None:
        if begun:
            raise OSError("no more processes")
        begun.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(store._Process, "__init__", once)
    found = read_folder([folder], lines())
    assert found.skipped == [("0/000.lines", "the process that read it crashed (exit code 3)")]
    assert len(found.examples) == sum(i % 4 for i in range(30))


def test_a_defect_in_reading_is_said(lines, tmp_path: Path, monkeypatch) -> None:
    anew(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(shards._Rows, "save", lambda self, folder: [][1])
    with pytest.raises(RunError, match="IndexError: list index out of range"):
        read_folder([folder_of(tmp_path, {})], lines())


def test_one_process_waits_for_another(lines, tmp_path: Path, monkeypatch, capfd) -> None:
    anew(monkeypatch, tmp_path / "cache")
    folder = folder_of(tmp_path, {}, num=10)
    found: list[FolderDataset] = []
    both = [
        threading.Thread(
            target=lambda: found.append(read_folder([folder], lines(delay=0.1), processes=1))
        )
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
        with pytest.raises(RunError, match="must make tensors of one dtype, with the same labels"):
            read_folder([folder], lines_module.Kinds(), processes=num)


def test_full_disk_is_one_sentence(lines, tmp_path: Path, monkeypatch) -> None:
    anew(monkeypatch, tmp_path / "cache")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.np, "save", full)
    with pytest.raises(RunError, match="cannot be written, No space left on device"):
        read_folder([folder_of(tmp_path, {})], lines(), processes=1)


def test_cache_that_cannot_be_written(lines, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "plain").write_text("")
    anew(monkeypatch, tmp_path / "plain")
    found = read_folder([folder_of(tmp_path, {})], lines())
    assert found.folder is None and found.examples.y.sum() > 0
    monkeypatch.setattr(store, "MAX_COPY_BYTES", 0)
    found = read_folder([tmp_path / "files"], lines())
    assert isinstance(found.examples.columns.y, ArrayFile) and found.examples.y.sum() > 0


def test_names_that_are_no_text(lines, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    odd = os.fsdecode(b"\xff\xfe.lines")
    try:
        (folder / odd).write_text("1 2 3")
    except OSError:
        pytest.skip("this file system has no such names")
    assert odd in [*read_folder([folder], lines(), processes=2).examples.groups]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies no processes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that copies with threads are risky
def test_no_copy_of_this_process_waits_for_a_screen_that_nobody_draws(monkeypatch) -> None:
    """A thread draws a bar while a process begins to read."""
    monkeypatch.setattr(console, "_is_terminal", lambda: True)
    monkeypatch.setattr(console, "DELAY_SECONDS", 0)

    def talk() -> None:
        signal.alarm(10)
        with screen._lock, screen.console._lock:
            console.log("a sentence")

    def draw() -> None:
        with screen._lock:
            drawing.set()
            time.sleep(0.3)

    drawing = threading.Event()
    with console.Bar("work", total=2) as bar:
        bar.advance()
        screen: Any = console._screen
        assert screen is not None
        thread = threading.Thread(target=draw)
        thread.start()
        drawing.wait()
        process: Any = get_context("fork").Process(target=talk)
        process.start()
        thread.join()
        process.join()
    assert process.exitcode == 0
