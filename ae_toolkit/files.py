"""Files that users hand in and get back: what may be read, and how results appear.

Inputs are regular files of a bounded size. Results are written beside their place and renamed into
it: by `replacing` at once, as a training does; by `writing` when the command has succeeded, so that
all of its results appear or none does. No result is ever written onto an input, onto what is no
regular file, or onto a file that the user did not name and this program did not write.

What this program reads again carries checksums, CRC-32: they notice a disk that forgets, and are no
proof against somebody who wants to deceive.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import stat
import tempfile
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from ae_toolkit.errors import RunError, UsageError

RESULT_SIGNATURE = "ae-toolkit"  #: what a result may carry in its metadata, to be known again

CHECKSUM_KEY = "checksum"  #: the key of a JSON object's own checksum

MAX_JSON_BYTES = 8 << 20
MAX_JSON_DEPTH = 50  #: of objects and lists within each other

#: By which somebody asks a program to end.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_CHECKED_BYTES = 1 << 20  #: that are read at a time
_SIGNED_BYTES = 4096  #: from the start of a file, within which its metadata lie
_MAX_NAME_BYTES = 200  #: of a file name; systems allow 255, and an ending and a number follow
_FILE_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class _Staged(NamedTuple):
    """A result that waits.

    Attributes:
        written: what was written.
        former: where what was there before is kept until all results are in their places.
        path: where it belongs.
        named: whether the user named it.
    """

    written: Path
    former: Path
    path: Path
    named: bool


class Outputs:
    """What one command reads and writes.

    Attributes:
        overwrite: replace files too that the user did not name.
        defaults: results that have their name from us.
    """

    def __init__(self) -> None:
        self.overwrite = False
        self.defaults: set[Path] = set()
        self._inputs: dict[tuple[int, int], Path] = {}
        self._staged: list[_Staged] = []
        self._holders: dict[Path, Path] = {}  # a hidden folder in each folder of results
        self._made: list[Path] = []  # folders
        self._lines: list[str] = []  # that are to be said

    def stage(self, path: Path, *, named: bool) -> _Staged:
        """Makes room for a result beside its place."""
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)
        holder = self._holders.get(path.parent)
        if holder is None:
            holder = Path(tempfile.mkdtemp(prefix=f".{RESULT_SIGNATURE}-", dir=path.parent))
            self._holders[path.parent] = holder
            for kind in ("new", "former"):
                (holder / kind).mkdir()
        staged = _Staged(holder / "new" / path.name, holder / "former" / path.name, path, named)
        self._staged.append(staged)
        return staged

    def commit(self) -> None:
        """Lets all results appear; where one cannot, what was there before comes back.

        Raises:
            UsageError: a file has appeared meanwhile that nobody asked to replace.
            RunError: a result cannot be put in its place.
        """
        done: list[_Staged] = []
        with _uninterrupted():
            try:
                for staged in self._staged:
                    with _said(staged.path):
                        done.append(staged)
                        self._put(staged)
            except BaseException:
                for staged in reversed(done):
                    if not staged.written.exists():
                        staged.path.unlink(missing_ok=True)
                    with suppress(FileNotFoundError):
                        os.rename(staged.former, staged.path)
                raise
        self._made.clear()
        for line in self._lines:
            print(printable(line), flush=True)

    def _put(self, staged: _Staged) -> None:
        """Puts a result in its place."""
        if staged.path.exists():
            found = staged.path.stat()
            if not stat.S_ISREG(found.st_mode):  # it has become something else meanwhile
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.check_replaceable(staged.path, staged.path, named=staged.named)
            with suppress(OSError):
                staged.written.chmod(stat.S_IMODE(found.st_mode))
            os.rename(staged.path, staged.former)
        os.replace(staged.written, staged.path)

    def check_replaceable(self, place: Path, path: Path, *, named: bool) -> None:
        """Checks that a file may be replaced.

        Args:
            place: the file.
            path: the same, as the user knows it.
            named: whether the user named it.

        Raises:
            UsageError: nobody asked for it, and this program did not write it.
        """
        if not (named or self.overwrite or is_signed(place)):
            raise UsageError(
                f"{path}: exists already, and was not named to be replaced; choose another place, "
                f"or add --overwrite"
            )

    def close(self) -> None:
        """Removes what did not become a result."""
        for holder in self._holders.values():
            shutil.rmtree(holder, ignore_errors=True)
        for folder in reversed(self._made):
            with suppress(OSError):  # somebody has put something in it
                folder.rmdir()


_current: ContextVar[Outputs | None] = ContextVar("ae_toolkit_outputs", default=None)


@contextmanager
def outputs() -> Iterator[Outputs]:
    """Within the block, what `writing` writes waits until the block has succeeded.

    Raises:
        RunError: a result cannot be put in its place; then none is.
    """
    mine = Outputs()
    token = _current.set(mine)
    try:
        yield mine
        mine.commit()
    finally:
        _current.reset(token)
        mine.close()


def overwrite() -> None:
    """Allows the command that runs to replace files that its user did not name."""
    if current := _current.get():
        current.overwrite = True


def announce(line: str) -> None:
    """Says on standard output that a result is there, as soon as all results are."""
    if current := _current.get():
        current._lines.append(line)
    else:
        print(printable(line), flush=True)


def take_default(path: Path) -> None:
    """Remembers that a result of the command that runs was not named by its user."""
    if current := _current.get():
        current.defaults.add(path)


def check_input(path: Path, *, max_bytes: int | None = None) -> int:
    """Makes sure that a file may be read, remembers it as an input, and returns its bytes.

    Args:
        path: of a user's file.
        max_bytes: more than that is refused.

    Raises:
        UsageError: there is no such file.
        RunError: it is no regular file, cannot be read, or is too large.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # a name with a zero in it, a loop of links
        raise RunError(f"{path}: cannot be read, {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{path}: is {_kind(found.st_mode)}, not a file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise RunError(
            f"{path}: holds {found.st_size / 1e6:,.0f} MB, and more than {max_bytes / 1e6:,.3g} MB "
            f"is refused"
        )
    if current := _current.get():
        current._inputs[found.st_dev, found.st_ino] = path
    return found.st_size


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """All of a user's file.

    Raises:
        UsageError: there is no such file.
        RunError: as `check_input`.
    """
    check_input(path, max_bytes=max_bytes)
    try:
        # Should it have become a pipe since, then opening it does not wait.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise RunError(f"{path}: cannot be read, {error.strerror or error}") from None


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file holds.

    Raises:
        UsageError: there is no such file.
        RunError: as `check_input`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes).decode())


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds strings that are no text.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    values = [found]
    for _ in range(MAX_JSON_DEPTH):
        nested = [value for value in values if isinstance(value, (dict, list))]
        values = [v for n in nested for v in (n.values() if isinstance(n, dict) else n)]
        keys = [key for n in nested if isinstance(n, dict) for key in n]
        "".join([*keys, *(v for v in values if isinstance(v, str))]).encode()
        if not values:
            return found
    raise ValueError("it is nested too deeply")


def seal(content: Mapping[str, Any], *, but: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object with the checksum of what it holds, however it is laid out.

    Args:
        content: what it holds; a former checksum is replaced.
        but: keys that anybody may change.
    """
    known = json.loads(json.dumps(content))
    known.pop(CHECKSUM_KEY, None)
    checked = {key: value for key, value in known.items() if key not in but}
    return {**known, CHECKSUM_KEY: checksum(json.dumps(checked, sort_keys=True).encode())}


def is_sealed(content: Mapping[str, Any], *, but: Collection[str] = ()) -> bool:
    """Whether a JSON object holds what it held when it was sealed, or never was."""
    return (
        CHECKSUM_KEY not in content or content[CHECKSUM_KEY] == seal(content, but=but)[CHECKSUM_KEY]
    )


def checksum(what: Path | bytes, *, start: int = 0, size: int | None = None) -> str:
    """The checksum of a file, or of what one will hold.

    Args:
        what: the file, or bytes.
        start: where it begins.
        size: of what counts; None: up to the end.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(what, bytes):
        return f"{zlib.crc32(what):08x}"
    found, left = 0, math.inf if size is None else size
    some = memoryview(bytearray(_CHECKED_BYTES))
    with what.open("rb", buffering=0) as file:
        file.seek(start)
        while num := file.readinto(some[: int(min(left, len(some)))]):
            found, left = zlib.crc32(some[:num], found), left - num
    return f"{found:08x}"


def check_output(path: Path, *, named: bool = True) -> Path:
    """Makes sure that a result may be written to a place, and returns it with links resolved.

    Args:
        path: where to.
        named: whether the user named this very file, and so agrees that it is replaced.

    Raises:
        UsageError: it is an input, is named twice, or is a file that nobody asked to replace.
        RunError: it is no regular file.
    """
    current = _current.get()
    try:
        place = path.resolve()
        found = place.stat()
    except FileNotFoundError:
        found = None
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: cannot be written, {getattr(error, 'strerror', error)}") from None
    if current and any(staged.path == place for staged in current._staged):
        raise UsageError(f"{path}: is named for two results; choose another name for one of them")
    if found is None:
        return place
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{path}: is {_kind(found.st_mode)}, not a file that could be replaced")
    if current and (found.st_dev, found.st_ino) in current._inputs:
        raise UsageError(f"{path}: is an input, which is never replaced; choose another name")
    named = named and not (current and path in current.defaults)
    (current or Outputs()).check_replaceable(place, path, named=named)
    return place


@contextmanager
def writing(path: Path, *, named: bool = True) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `path` when the command succeeds, else never.

    Where no command runs, as in a script, it becomes `path` at the end of the block.

    Args:
        path: where to.
        named: whether the user named this very file, not only its folder or its neighbour.

    Raises:
        UsageError: as `check_output`.
        RunError: the place cannot be written.
    """
    place, current = check_output(path, named=named), _current.get()
    if current is None:
        with replacing(place) as temporary:
            yield temporary
        return
    with _said(path):
        staged = current.stage(place, named=named and path not in current.defaults)
        with _at_once():
            yield staged.written
        if not staged.written.exists():
            raise RunError(f"{path}: nothing was written")


@contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `path` at once if, and only if, the block succeeds.

    Raises:
        RunError: the place cannot be written.
    """
    temporary: Path | None = None
    try:
        with _said(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            # Written inside a fresh folder, under its own name: writers go by the ending.
            inner = temporary / path.name
            if folder:
                inner.mkdir()
            with _at_once():
                yield inner
            if folder and path.exists():
                os.replace(path, former := temporary / "former")
                try:
                    os.replace(inner, path)
                except OSError:
                    os.replace(former, path)
                    raise
            else:
                os.replace(inner, path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text at once, in UTF-8, so that it survives a power cut."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    sync(path.parent)


def sync(*paths: Path) -> None:
    """Waits until files, and the names in folders, are on the disk and survive a power cut."""
    for path in paths:
        try:
            opened = os.open(path, os.O_RDONLY)
        except PermissionError:  # folders cannot be opened on every system
            continue
        try:
            os.fsync(opened)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # cannot be synced
                raise OSError(error.errno, error.strerror, str(path)) from None
        finally:
            os.close(opened)


def is_signed(path: Path) -> bool:
    """Whether a file says in its metadata that this program wrote it."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return RESULT_SIGNATURE.encode() in file.read(_SIGNED_BYTES)
    except OSError:
        return False


def safe_name(name: str) -> str:
    """A file name that stays in its folder: the last part of `name`, without odd characters."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    kept = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in last)
    kept = unicodedata.normalize("NFC", kept).strip(" .")
    return kept.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") or "unnamed"


def safe_names(names: Sequence[str]) -> list[str]:
    """Safe names for files of one folder; they are numbered where two would be the same."""
    safe = [safe_name(name) for name in names]
    if len({name.casefold() for name in safe}) == len(safe):
        return safe
    return [f"{i:03}-{name}" for i, name in enumerate(safe)]


def printable(text: str) -> str:
    """A text for a terminal: what would steer it, or cannot be encoded, is escaped; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets signals wait that would end the block in the middle."""
    caught: list[int] = []
    before: dict[int, Any] = {}
    try:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not None:  # else another library has taken it
                before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    except ValueError:  # not the main thread, which is the one that signals interrupt
        pass
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        for number in caught:
            signal.raise_signal(number)


@contextmanager
def _at_once() -> Iterator[None]:
    """Within it nothing waits: it belongs to a result that is being written."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _FILE_KINDS.items() if is_kind(mode)), "something else")


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turns what the system says while a place is written into one sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written, {error.strerror or error}") from error
