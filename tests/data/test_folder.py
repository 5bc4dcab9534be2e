"""Folders of files as data sets: which files there are, when they are read, and their split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ae_toolkit.data import examples, folder, store
from ae_toolkit.data.folder import find_files, read_folder, split_of
from ae_toolkit.testing.contracts import Tensors


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full((3, 2), value, np.int16))


def test_files_are_sorted_folder_by_folder(tmp_path: Path) -> None:
    names = ["a/b.npy", "a/c/d.NPY", "a.npy", "a-b/c.npy", "b.npy"]
    for name in [*names, "a/notes.txt"]:
        write(tmp_path / name, 0)
        (tmp_path / f"{name}.npy").rename(tmp_path / name) if not name.endswith(".npy") else None
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, Tensors())]
    assert found == sorted(names, key=lambda name: name.split("/"))
    assert find_files(tmp_path / "b.npy", Tensors()) == [tmp_path / "b.npy"]


@pytest.mark.parametrize("change", ["none", "size", "time", "content", "name", "gone", "settings"])
def test_what_changed_is_read_anew(change: str, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.npy", i)
    first = read_folder([tmp_path], Tensors(shape=(3, 2)))
    path, shape = tmp_path / "1.npy", (3, 2)
    before = path.stat()
    if change == "size":
        path.write_bytes(path.read_bytes() + b" ")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "content":  # as an archive unpacks another version, with the old time
        write(path, 7)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "name":
        path.rename(tmp_path / "4.npy")
    elif change == "gone":
        path.unlink()
    elif change == "settings":
        shape = (3, 2, 1)
        for i in range(3):
            np.save(tmp_path / f"{i}.npy", np.full(shape, i))
    again = read_folder([tmp_path], Tensors(shape=shape))
    assert first.is_new and again.is_new == (change != "none")
    if change == "content":
        assert 7 in again.examples.y


def test_names_of_skipped_files_do_not_steer_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "whole.npy", 0)
    (tmp_path / "\x1b[2J\nwhole.npy").write_text("no array")
    for i in range(12):
        (tmp_path / f"z{i}.npy").write_text("no array")
    assert len(read_folder([tmp_path], Tensors(shape=(3, 2))).skipped) == 13
    said = capfd.readouterr().err
    assert r"  \x1b[2J\nwhole.npy: is not a .npy file" in said and "\x1b" not in said
    assert "skipped 13 of 14 files" in said and "… and 3 more" in said
    read_folder([tmp_path], Tensors(shape=(3, 2)), report=False)
    assert not capfd.readouterr().err


def test_large_split_is_compared_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(80):
        same = i >= 60  # as others, and as each other
        np.save(tmp_path / f"{i}.npy", np.full((3, 2), 29 if same else i, np.int16))
    modality = Tensors(shape=(3, 2))
    whole = read_folder([tmp_path], modality).examples
    copies = [split_of(whole, modality, split) for split in ("train", "test")]
    monkeypatch.setattr(store, "MAX_COPY_BYTES", 0)
    monkeypatch.setattr(folder, "COMPARED_BYTES", 50)
    monkeypatch.setattr(examples, "MAX_COPY_BYTES", 0)
    lazy = read_folder([tmp_path], modality).examples
    views = [split_of(lazy, modality, split) for split in ("train", "test")]
    for view, copy in zip(views, copies, strict=True):
        assert view.rows is not None and copy.rows is None
        assert torch.equal(view.y, copy.y) and view.groups == copy.groups
    train, test = ({*map(tuple, part.y.flatten(1).tolist())} for part in copies)
    assert not train & test and len(test) > 1
    assert {*copies[0].groups}.isdisjoint({*copies[1].groups})
    every = np.array([*whole.groups])
    assert len(copies[0]) < len(every)
