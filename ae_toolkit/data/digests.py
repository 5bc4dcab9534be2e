"""What files hold, as digests that are remembered: a file that did not change is not read again.

    digests.sqlite      in the user's cache: path -> size, times and inode, with the digest

Whether a file changed is seen from its size, times and inode. Clocks of file systems are coarse, so
a file that was changed only just now is read again the next time. Where the memory is broken it is
made anew, and where there can be none every file is read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b, file_digest
from pathlib import Path
from threading import Lock
from typing import TypeVar

from ae_toolkit.console import Bar
from ae_toolkit.data.columns import as_bytes
from ae_toolkit.data.examples import cache_root
from ae_toolkit.data.shards import File

HASHED = 256  #: files that a thread hashes at a time
WRITTEN = 1 << 14  #: digests that are remembered at a time
SETTLED = 2_000_000_000  #: nanoseconds since its last change after which a file is trusted
WAIT = 30.0  #: seconds that other processes may take to write theirs

T = TypeVar("T")


def digests(files: Sequence[File]) -> Iterator[bytes]:
    """Of what each file holds; or why it cannot be read."""
    memo = _Memo(cache_root() / "digests.sqlite")

    def of(path: Path, key: bytes, known: Mapping[bytes, tuple[str, bytes]]) -> bytes:
        now = time.time_ns()
        try:
            stat = path.stat()
            state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            before, digest = known.get(key, ("", b""))
            if before == state:
                return digest
            with path.open("rb") as content:
                digest = file_digest(content, blake2b).digest()
        except OSError as error:
            return str(error.strerror).encode()
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED:
            memo.add(key, state, digest)
        return digest

    def of_some(start: int) -> list[bytes]:
        paths = [file.path for file in files[start : start + HASHED]]
        keys = [as_bytes(os.path.abspath(path)) for path in paths]
        known = memo.known(keys)
        return [of(path, key, known) for path, key in zip(paths, keys, strict=True)]

    try:
        with (
            Bar("comparing files", total=len(files), unit="files") as bar,
            ThreadPoolExecutor() as threads,
        ):
            for some in threads.map(of_some, range(0, len(files), HASHED)):
                bar.advance(len(some))
                yield from some
    finally:
        memo.close()


class _Memo:
    """Digests by path, of this and earlier processes; may be used by several threads.

    Args:
        path: of the file; where it cannot be used, nothing is known and nothing kept.
    """

    def __init__(self, path: Path):
        self.path, self.lock = path, Lock()
        self.new: list[tuple[bytes, str, bytes]] = []
        self.database: sqlite3.Connection | None = None
        with self.lock:
            self._try(lambda _: None, None, opening=True)

    def known(self, keys: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]:
        """The state and the digest of each file that is remembered."""
        marks = ",".join("?" * len(keys))
        question = f"SELECT path, state, digest FROM digests WHERE path IN ({marks})"

        def ask(database: sqlite3.Connection) -> dict[bytes, tuple[str, bytes]]:
            return {
                path: (state, digest) for path, state, digest in database.execute(question, keys)
            }

        with self.lock:
            return self._try(ask, {})

    def add(self, key: bytes, state: str, digest: bytes) -> None:
        """Remembers the digest of a file."""
        with self.lock:
            self.new.append((key, state, digest))
            if len(self.new) >= WRITTEN:
                self._write()

    def close(self) -> None:
        """Writes what is new."""
        with self.lock:
            if self.new:
                self._write()
            if self.database is not None:
                self.database.close()
                self.database = None

    def _write(self) -> None:
        rows, self.new = self.new, []

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)

        self._try(write, None)

    def _try(
        self, does: Callable[[sqlite3.Connection], T], otherwise: T, *, opening: bool = False
    ) -> T:
        """Does something with the database, or gives it up; one that is broken is made anew."""
        try:
            if opening:
                self._open()
            return otherwise if self.database is None else does(self.database)
        except (sqlite3.Error, OSError) as error:
            if self.database is not None:
                self.database.close()
                self.database = None
            # Its subclasses say that it is in use, that the disk is full, and the like.
            if type(error) is sqlite3.DatabaseError:
                with suppress(sqlite3.Error, OSError):
                    Path(f"{self.path}-journal").unlink(missing_ok=True)
                    self.path.unlink(missing_ok=True)
                    self._open()
            return otherwise

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(self.path, timeout=WAIT, check_same_thread=False)
        with self.database:
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS digests "
                "(path BLOB PRIMARY KEY, state TEXT, digest BLOB)"
            )
