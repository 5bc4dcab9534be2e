"""Files that users hand in and get back: what may be read, and how results appear.

Inputs are regular files of a bounded size. Results are written beside their place and renamed into
it: by `replacing` at once, as a training does; by `writing` when the command has succeeded, so that
all of its results appear or none does. No result is ever written onto an input, onto what is no
regular file, or onto a file that the user did not name and this program did not write.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from ae_toolkit.errors import RunError, UsageError, uninterrupted
from ae_toolkit.texts import CHECKSUM_KEY as CHECKSUM_KEY
from ae_toolkit.texts import checksum as checksum
from ae_toolkit.texts import is_sealed as is_sealed
from ae_toolkit.texts import parse_json as parse_json
from ae_toolkit.texts import printable as printable
from ae_toolkit.texts import safe_name as safe_name
from ae_toolkit.texts import safe_names as safe_names
from ae_toolkit.texts import seal as seal

RESULT_SIGNATURE = "ae-toolkit"  #: what a result may carry in its metadata, to be known again

MAX_JSON_BYTES = 8 << 20

_SIGNED_BYTES = 4096  #: from the start of a file, within which its metadata lie
_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class _Staged(NamedTuple):
    """A result that waits to be put in its place."""

    written: Path
    former: Path  #: where what was there before is kept until all results are in their places
    path: Path
    named: bool  #: whether the user named it


class Outputs:
    """What one command reads and writes.

    Attributes:
        overwrite: replace files too that the user did not name.
        defaults: results that have their name from us.
    """

    def __init__(self) -> None:
        self.overwrite = False
        self.defaults: set[Path] = set()
        self._inputs: set[tuple[int, int]] = set()
        self._staged: list[_Staged] = []
        self._made: list[Path] = []  # folders
        self._lines: list[str] = []  # that are to be said

    def stage(self, path: Path, *, named: bool) -> Path:
        """Makes room for a result beside its place, and returns where to write it."""
        self._made += reversed([folder for folder in path.parents if not folder.exists()])
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{RESULT_SIGNATURE}-", dir=path.parent))
        written, former = holder / path.name, holder / f"{path.name}.former"
        self._staged.append(_Staged(written, former, path, named))
        return written

    def commit(self) -> None:
        """Lets all results appear; where one cannot, what was there before comes back."""
        done: list[_Staged] = []
        with uninterrupted():
            try:
                for staged in self._staged:
                    done.append(staged)
                    with _wrap_os_errors(staged.path):
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
        if staged.path.exists():
            mode = staged.path.stat().st_mode
            if not stat.S_ISREG(mode):  # it has become something else meanwhile
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.need_replaceable(staged.path, staged.path, named=staged.named)
            with suppress(OSError):
                staged.written.chmod(stat.S_IMODE(mode))
            os.rename(staged.path, staged.former)
        os.replace(staged.written, staged.path)

    def need_replaceable(self, place: Path, path: Path, *, named: bool) -> None:
        """Refuses to replace what nobody asked for and this program did not write."""
        if not (named or self.overwrite or is_signed(place)):
            raise UsageError(
                f"{path}: exists already, and was not named to be replaced; choose another place, "
                f"or add --overwrite"
            )

    def close(self) -> None:
        """Removes what did not become a result."""
        for staged in self._staged:
            shutil.rmtree(staged.written.parent, ignore_errors=True)
        for folder in reversed(self._made):
            with suppress(OSError):  # somebody has put something in it
                folder.rmdir()


_current: ContextVar[Outputs | None] = ContextVar("ae_toolkit_outputs", default=None)


@contextmanager
def outputs() -> Iterator[Outputs]:
    """Within the block, what `writing` writes waits until the block has succeeded.

    Raises:
        UsageError: a file has appeared meanwhile that nobody asked to replace.
        RunError: a result cannot be put in its place; then none is.
    """
    mine = Outputs()
    try:
        with _writing_to(mine):
            yield mine
            mine.commit()
    finally:
        mine.close()


@contextmanager
def _writing_to(current: Outputs | None) -> Iterator[None]:
    """Where results wait within the block; None: they wait for nothing."""
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)


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


def _kind_of(found: os.stat_result) -> str:
    return _FILE_KINDS.get(stat.S_IFMT(found.st_mode), "something else")


def check_input(path: Path, *, max_bytes: int | None = None) -> int:
    """Makes sure that a user's file may be read, remembers it as an input, returns its bytes.

    Raises:
        UsageError: there is no such file.
        RunError: it is no regular file, cannot be read, or holds more than `max_bytes`.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # a name with a zero in it, a loop of links
        raise RunError(f"{path}: cannot be read, {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{path}: is {_kind_of(found)}, not a file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise RunError(
            f"{path}: holds {found.st_size / 1e6:,.0f} MB, and more than {max_bytes / 1e6:,.3g} MB "
            f"is refused"
        )
    if current := _current.get():
        current._inputs.add((found.st_dev, found.st_ino))
    return found.st_size


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """All of a user's file; it raises what `check_input` does."""
    check_input(path, max_bytes=max_bytes)
    try:
        # Should it have become a pipe since, then opening it does not wait.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise RunError(f"{path}: cannot be read, {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; it raises what `check_input` and `parse_json` do."""
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES).decode())


def check_output(path: Path, *, named: bool = True) -> Path:
    """Makes sure that a result may be written to a place, and returns it with links resolved.

    Whoever `named` this very file agrees that it is replaced.

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
        raise RunError(f"{path}: is {_kind_of(found)}, not a file that could be replaced")
    if current and (found.st_dev, found.st_ino) in current._inputs:
        raise UsageError(f"{path}: is an input, which is never replaced; choose another name")
    current = current or Outputs()
    current.need_replaceable(place, path, named=named and path not in current.defaults)
    return place


@contextmanager
def writing(path: Path, *, named: bool = True) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `path` when the command succeeds, else never.

    Where no command runs, as in a script, it becomes `path` at the end of the block. The user may
    not have `named` this very file, but only its folder or its neighbour.

    Raises:
        UsageError: as `check_output`.
        RunError: the place cannot be written.
    """
    place, current = check_output(path, named=named), _current.get()
    if current is None:
        with replacing(place) as temporary:
            yield temporary
        return
    with _wrap_os_errors(path):
        written = current.stage(place, named=named and path not in current.defaults)
        with _writing_to(None):  # what belongs to this result does not wait
            yield written
        if not written.exists():
            raise RunError(f"{path}: nothing was written")


@contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `path` at once if, and only if, the block succeeds.

    Raises:
        RunError: the place cannot be written.
    """
    with _wrap_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        # Written inside a fresh folder, under its own name: writers go by the ending.
        inner, former = temporary / path.name, temporary / f"{path.name}.former"
        try:
            if folder:
                inner.mkdir()
            with _writing_to(None):
                yield inner
            if folder and path.exists():
                os.replace(path, former)
            try:
                os.replace(inner, path)
            except OSError:
                if former.exists():
                    os.replace(former, path)
                raise
        finally:
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
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return RESULT_SIGNATURE.encode() in file.read(_SIGNED_BYTES)
    return False


@contextmanager
def _wrap_os_errors(path: Path) -> Iterator[None]:
    """Turns what the system says while a place is written into one sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written, {error.strerror or error}") from error
