"""What commands read and write: all results or none, and nothing of the user's is ever lost."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from conftest import ROOT, SAMPLES

from ae_toolkit import RunError, UsageError, files, registry
from ae_toolkit.cli import models
from ae_toolkit.files import outputs, writing

THREE, EIGHT = SAMPLES / "digit-3.png", SAMPLES / "digit-8.png"
TUNES = [
    ROOT / f"plugins/ae_music/samples/{name}.mid" for name in ("garryowen", "smash-the-windows")
]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_results_of_a_command_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("before")
    before = content_of(tmp_path)

    def command(fail: bool) -> None:
        with outputs():
            for path in (tmp_path / "old.txt", tmp_path / "new/deep/b.txt"):
                with writing(path) as temporary:
                    temporary.write_text("after")
            assert content_of(tmp_path)["old.txt"] == b"before"
            if fail:
                raise RunError("the disk is full")

    with pytest.raises(RunError):
        command(fail=True)
    assert content_of(tmp_path) == before and os.listdir(tmp_path) == ["old.txt"]
    command(fail=False)
    assert content_of(tmp_path) == {"old.txt": b"after", "new/deep/b.txt": b"after"}
    assert sorted(os.listdir(tmp_path)) == ["new", "old.txt"]


def test_what_cannot_be_put_in_its_place_brings_everything_back(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("before")
    with pytest.raises(RunError, match="b: cannot be written"), outputs():
        for name in "ab":
            with writing(tmp_path / name) as temporary:
                temporary.write_text("after")
        (tmp_path / "b").unlink()
        (tmp_path / "b").mkdir()  # meanwhile, by somebody else
        (tmp_path / "b/thesis.txt").write_text("mine")
    assert (tmp_path / "a").read_text() == "before"
    assert (tmp_path / "b/thesis.txt").read_text() == "mine"


def test_no_result_goes_onto_an_input_a_device_or_another_result(tmp_path: Path) -> None:
    mine, link, pipe = tmp_path / "mine.txt", tmp_path / "link.txt", tmp_path / "pipe"
    mine.write_text("mine")
    link.symlink_to(mine)
    os.mkfifo(pipe)
    with outputs():
        files.check_input(mine)
        for path in (mine, link):
            with pytest.raises(UsageError, match="is an input, which is never replaced"):
                files.check_output(path)
        for path, kind in (
            (pipe, "a pipe"),
            (Path(os.devnull), "a device"),
            (tmp_path, "a folder"),
        ):
            with pytest.raises(RunError, match=f"is {kind}, not a file"):
                files.check_output(path)
        with writing(tmp_path / "new.txt") as temporary:
            temporary.write_text("new")
        with pytest.raises(UsageError, match="is named for two results"):
            files.check_output(tmp_path / "new.txt")
    for path, kind in ((pipe, "a pipe"), (Path(os.devnull), "a device")):
        with pytest.raises(RunError, match=f"is {kind}, not a file"):
            files.read_bytes(path, max_bytes=100)
    with pytest.raises(RunError, match="is refused"):
        files.read_bytes(mine, max_bytes=3)
    assert files.read_bytes(mine, max_bytes=4) == b"mine"


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to(tmp_path / "target.txt")
    with outputs(), writing(tmp_path / "link.txt") as temporary:
        temporary.write_text("after")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "after"


def test_what_was_not_named_is_replaced_only_where_it_is_ours_or_allowed(tmp_path: Path) -> None:
    beside = tmp_path / "walk.gif"
    beside.write_bytes(b"holiday")
    for allowed in (False, True):
        with outputs() as now:
            now.overwrite = allowed
            if allowed:
                files.check_output(beside, named=False)
                continue
            with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
                files.check_output(beside, named=False)
    beside.write_bytes(b"GIF89a" + files.RESULT_SIGNATURE.encode())
    files.check_output(beside, named=False)


@pytest.mark.parametrize(
    "name, safe",
    [
        ("../victim", "victim"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\victim", "victim"),
        ("a\0b\n\x1b[31m", "a_b__[31m"),
        ("..", "unnamed"),
        ("", "unnamed"),
        (".bashrc", "bashrc"),
        ("Überfahrt 3", "Überfahrt 3"),
        ("ä" * 300, "ä" * 100),
    ],
)
def test_names_stay_in_their_folder(name: str, safe: str) -> None:
    assert files.safe_name(name) == safe


def test_terminals_are_not_steered_by_names() -> None:
    assert files.printable("a\x1b[2Jb\nc\u202e\udcff é") == "a\\x1b[2Jb\nc\\u202e\\udcff é"


def save_codes(path: str, num: int, **arrays: object) -> None:
    np.savez(path, z=np.zeros((num, 2), np.float32), **arrays)


@pytest.mark.parametrize("kind", ["pipe", "device", "packed", "promised"])
def test_codes_that_hang_or_grow_are_refused(kind: str, ae, run: Path, monkeypatch) -> None:
    path = Path("z.npz")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "packed":
        monkeypatch.setattr(models, "MAX_CODES_BYTES", 10_000)
        np.savez_compressed(path, z=np.zeros((10_000, 2)))
    else:
        with path.open("wb") as file:
            head = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 2)}
            np.lib.format.write_array_header_1_0(file, head)
    said = ae("decode", run, path, "-o", "out", code=1).output
    wanted = {"pipe": "is a pipe", "device": "is a device", "packed": "holds no codes (would take"}
    assert f"{path}: {wanted.get(kind, 'holds no codes')}" in said


def test_decoding_writes_below_its_folder_only(ae, run: Path) -> None:
    Path("victim.png").write_bytes(b"mine")
    save_codes("z.npz", 3, names=np.array(["../victim", "a\x1bb", "/tmp/x"]))
    ae("decode", run, "z.npz", "-o", "out/in")
    assert sorted(os.listdir("out/in")) == ["a_b.png", "victim.png", "x.png"]
    assert Path("victim.png").read_bytes() == b"mine"
    save_codes("same.npz", 2, names=np.array(["a/b", "c/B"]))
    ae("decode", run, "same.npz", "-o", "same")
    assert sorted(os.listdir("same")) == ["000-b.png", "001-B.png"]
    save_codes("none.npz", 0)
    assert "at least one" in ae("decode", run, "none.npz", "-o", "none", code=1).output
    np.savez("nan.npz", z=np.full((1, 2), np.nan))
    assert "all finite" in ae("decode", run, "nan.npz", "-o", "none", code=1).output
    save_codes("odd.npz", 2, item=np.array([1, 0]))
    assert "in order" in ae("decode", run, "odd.npz", "-o", "none", code=1).output
    assert not Path("none").exists()


def test_folders_keep_what_the_user_has_in_them(ae, run: Path) -> None:
    os.makedirs("back")
    Path("back/digit-3.png").write_bytes(b"holiday")
    refused = ae("reconstruct", run, THREE, EIGHT, "-o", "back", code=2).output
    assert "back/digit-3.png: exists already" in refused
    assert content_of(Path("back")) == {"digit-3.png": b"holiday"}
    ae("reconstruct", run, THREE, EIGHT, "-o", "back", "--overwrite")
    assert sorted(os.listdir("back")) == ["digit-3.png", "digit-8.png"]
    assert Path("back/digit-3.png").read_bytes() != b"holiday"


def test_no_verb_writes_onto_what_it_reads(ae, run: Path) -> None:
    shutil.copy(THREE, "3.png")
    before = Path("3.png").read_bytes()
    for arguments in (
        ("interpolate", run, "3.png", EIGHT, "-o", "3.png"),
        ("encode", run, "3.png", "-o", "3.png"),
        ("reconstruct", run, "3.png", "-o", "."),
        ("image", "interpolate", "3.png", EIGHT, "-o", "3.png"),
        ("image", "reconstruct", "3.png", "-o", "3.png"),
        ("image", "denoise", "3.png", "-o", "3.png"),
        ("image", "denoise", ".", "-o", ".", "--overwrite"),
    ):
        assert "is an input" in ae(*arguments, code=2).output, arguments
    os.mkfifo("pipe.png")
    assert "is a pipe" in ae("image", "grid", "--model", run, "-o", "pipe.png", code=1).output
    assert "is a pipe" in ae("reconstruct", run, "pipe.png", "-o", "out", code=1).output
    assert Path("3.png").read_bytes() == before and sorted(os.listdir()) == ["3.png", "pipe.png"]


def test_a_default_name_replaces_only_what_is_ours(ae, run: Path) -> None:
    Path("walk.gif").write_bytes(b"holiday")
    walk = ("image", "interpolate", THREE, EIGHT, "--model", run, "--steps", 2)
    assert "walk.gif: exists already" in ae(*walk, code=2).output
    assert os.listdir() == ["walk.gif"] and Path("walk.gif").read_bytes() == b"holiday"
    Path("walk.gif").rename("walk.png")
    assert "walk.png: exists already" in ae(*walk, code=2).output
    ae(*walk, "--overwrite")
    ae(*walk)  # both are ours now
    Path("walk.png").write_bytes(b"holiday")
    ae(*walk, "-o", "walk.png")  # which was named


def test_bad_files_of_many_are_skipped_and_listed(ae, run: Path) -> None:
    os.makedirs("in")
    for name in ("a.png", "b.png"):
        shutil.copy(THREE, f"in/{name}")
    Path("in/empty.png").write_bytes(b"")
    Path("in/text.png").write_text("not a picture")
    listed = ae("reconstruct", run, "in", "-o", "back", code=1, failed=False).output
    assert "skipped 2 of 4 files" in listed and "in/text.png: is not a picture" in listed
    assert sorted(os.listdir("back")) == ["a.png", "b.png"]
    listed = ae("encode", run, "in", "-o", "z.npz", code=1, failed=False).output
    assert "skipped 2 of 4 files" in listed
    with np.load("z.npz") as arrays:
        assert arrays["names"].tolist() == ["a", "b"] and arrays["item"].tolist() == [0, 1]
    none = ae("reconstruct", run, "in/empty.png", "in/text.png", "-o", "none", code=1).output
    assert "none of 2 files could be read" in none


@pytest.mark.parametrize(
    ("verb", "one"),
    [
        (["image", "denoise"], THREE),
        (["audio", "denoise"], ROOT / "plugins/ae_audio/samples/flute.flac"),
        (["music", "vary", "-n", 1], TUNES[0]),
    ],
)
def test_a_file_that_may_not_be_read_is_skipped(
    verb: list[object], one: Path, ae, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, may = Path(f"closed{one.suffix}"), os.access
    shutil.copy(one, closed)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and may(path, mode))

    def refusing(opened):
        def refuse(path, *arguments, **options):
            if path in (closed, str(closed)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, *arguments, **options)

        return refuse

    for module in (builtins, io, os):  # root may read anything
        monkeypatch.setattr(module, "open", refusing(module.open))
    said = ae(*verb, one, closed, "-o", "out", code=1, failed=False).output
    assert f"skipped 1 of 2 files:\n  {closed}: cannot be read, Permission denied" in said
    assert [path.stem for path in Path("out").iterdir()] == [one.stem]


def test_exporting_keeps_what_else_is_in_the_folder(ae, run: Path) -> None:
    ae("export", run, "-o", "shared")
    Path("shared/notes.txt").write_text("mine")
    ae("export", run, "-o", "shared", "--dtype", "bf16")
    assert Path("shared/notes.txt").read_text() == "mine"
    assert "the model itself" in ae("export", "shared", "-o", "shared", code=2).output
    os.makedirs("other")
    Path("other/model.safetensors").write_bytes(b"somebody else's")
    assert "something else in it" in ae("export", run, "-o", "other", code=2).output
    assert content_of(Path("other")) == {"model.safetensors": b"somebody else's"}


def test_a_long_tune_comes_back_whole_from_its_codes(ae) -> None:
    from ae_music.cli.inputs import find_tune
    from ae_music.modality import Melodies

    tune = find_tune(Path("drowsy-maggie"))
    ae("encode", "melody-2bar", tune, "-o", "z.npz")
    ae("decode", "melody-2bar", "z.npz", "-o", "back")
    assert os.listdir("back") == ["drowsy-maggie.mid"]
    (one,) = Melodies().read(Path("back/drowsy-maggie.mid"))
    (original,) = Melodies().read(tune)
    assert abs(one.num_bars - original.num_bars) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mid", ".png", ".npz"])
def test_a_disk_that_is_full_is_said(ending: str, ae, run: Path, tmp_path: Path) -> None:
    out, room = tmp_path / f"out{ending}", 100
    command: list[object] = ["music", "interpolate", *TUNES]
    if ending in (".wav", ".flac", ".ogg"):
        room = 20_000  # for the MIDI file
        command += ["-o", tmp_path / "out.mid", "--wav", out]
    elif ending == ".mid":
        command += ["-o", out]
    else:
        command = ["image", "grid"] if ending == ".png" else ["encode", run, THREE]
        command += ["-o", out]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        said = ae(*command, code=1).output
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"Error: {out}: cannot be written, " in said
    assert not list(tmp_path.iterdir())


# Whatever ends a command.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_all_results_are_in_their_places(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("before")
    original, moved = os.rename, []

    def rename(*places: Path) -> None:
        original(*places)
        moved.append(places)
        os.kill(os.getpid(), number)  # when the only copy of the former file is out of its place

    monkeypatch.setattr(os, "rename", rename)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), outputs():
            for name in "ab":
                with writing(tmp_path / name) as temporary:
                    temporary.write_text("after")
    finally:
        signal.signal(number, before)
    assert moved and content_of(tmp_path) == {"a": b"after", "b": b"after"}


@pytest.mark.parametrize("ended", ["raise SystemExit", "sys.exit(0)", "ctx.exit(3)", "sys.exit(2)"])
def test_an_exit_code_loses_no_results_where_all_is_well(ended: str, ae) -> None:
    @registry.commands.register("mine")
    @click.command()
    @click.pass_context
    def mine(ctx: click.Context) -> None:
        with writing(Path("mine.txt")) as temporary:
            temporary.write_text("all")
        files.announce("mine.txt: written")
        exec(ended, {"sys": sys, "ctx": ctx})

    code = {"ctx.exit(3)": 3, "sys.exit(2)": 2}.get(ended, 0)
    said = ae("mine", code=code, failed=False).stdout
    assert Path("mine.txt").exists() == (code != 2) == ("mine.txt: written" in said)


def test_terminated_commands_leave_nothing_half_done(tmp_path: Path) -> None:
    """And one whose output nobody reads has written its results."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import click, time\nfrom pathlib import Path\nfrom ae_toolkit import registry\n"
        "from ae_toolkit.files import announce, writing\n"
        "@registry.commands.register('slow')\n@click.command()\n"
        "@click.argument('wait', type=float)\n"
        "def slow(wait):\n"
        "    with writing(Path('out/a.txt')) as temporary:\n"
        "        temporary.write_text('a')\n"
        "    announce('out/a.txt: written')\n"
        "    Path('begun').touch()\n"
        "    time.sleep(wait)\n"
        "from ae_toolkit.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, str(script), "slow"]
    process = subprocess.Popen([*command, "60"], cwd=tmp_path, stderr=subprocess.PIPE)
    while process.poll() is None and not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.terminate()
    assert process.communicate(timeout=60)[1].strip() == b"Stopped"
    assert process.returncode == 143 and sorted(os.listdir(tmp_path)) == ["begun", "slow.py"]
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, "0"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE
            )
        assert done.returncode == 1 and b"Error: standard output: No space left" in done.stderr
        assert (tmp_path / "out/a.txt").read_text() == "a"


def test_replaced_files_keep_their_permissions(tmp_path: Path) -> None:
    secret = tmp_path / "z.npz"
    secret.touch(mode=0o600)
    with outputs(), writing(secret) as temporary:
        temporary.write_text("new")
    assert secret.read_text() == "new" and secret.stat().st_mode & 0o777 == 0o600


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="c: exists already, and was not named"), outputs():
        with writing(tmp_path / "c", named=False) as temporary:
            temporary.write_text("ours")
        (tmp_path / "c").write_text("somebody else's")
    assert content_of(tmp_path) == {"c": b"somebody else's"}


def test_exporting_spares_runs_and_hangs_on_nothing(ae, run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    before = content_of(mine)
    for place in (mine, next((mine / "checkpoints").iterdir())):
        assert "is a run or a checkpoint" in ae("export", run, "-o", place, code=2).output
    assert content_of(mine) == before
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped/config.json")
    assert "something else in it" in ae("export", run, "-o", tmp_path / "piped", code=2).output


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"names": np.array("x")}, ""),
        ({"names": np.array([["a", "b"], ["c", "d"], ["e", "f"]])}, ""),
        ({"label.digit": np.arange(3).astype(">i8")}, ""),
        ({"label.digit": np.arange(3).astype(np.uint64)}, ""),
        ({"label.digit": np.arange(3).astype(np.longdouble)}, ""),
        ({"label.digit": np.array([1, 2.5, 3])}, "a class from 0 to 9, not"),
        ({"item": np.array([0, 0, 1])}, "has one code, not 2"),
        ({"item": np.array([1, 0, 1], np.uint64)}, "in order, item by item"),
        ({"z": np.zeros((3, 2), complex)}, "is no array of real numbers"),
        ({"z": np.array(["a"])}, "is no array of real numbers"),
    ],
)
def test_odd_arrays_of_codes(arrays: dict[str, Any], sentence: str, ae, run: Path) -> None:
    np.savez("odd.npz", **{"z": np.zeros((3, 2), np.float32), **arrays})
    result = ae("decode", run, "odd.npz", "-o", "out", code=None)
    assert result.exit_code in ((1, 2) if sentence else (0,)) and sentence in result.output
    assert sentence or sorted(os.listdir("out")) == ["0000.png", "0001.png", "0002.png"]
