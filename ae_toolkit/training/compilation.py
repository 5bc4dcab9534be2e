"""Compiling a step: how the compiler is called, where its cache is, what a killed one leaves there.

PyTorch's compiler keeps libraries, which whoever compiles the same loads and runs. By itself it
keeps them where temporary files are, under a name that anybody could take in advance; here it is a
folder that nobody but its user may write.

Libraries are written under their final names. A compiler that was killed meanwhile, with its
training, by a scheduler or a power cut, leaves one cut short, which would end every later training
that comes to the same code.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ae_toolkit.console import tell
from ae_toolkit.data.examples import cache_root
from ae_toolkit.errors import Failure, said
from ae_toolkit.runs.lock import take

CACHE = "TORCHINDUCTOR_CACHE_DIR"  #: the variable by which a user chooses another place

HEADER = struct.Struct(
    "<40xQ10xHH2x"
)  #: of ELF64: where its sections are listed, their size, number


def use_own_cache() -> None:
    """Keeps what is compiled in the user's own cache, unless the user has chosen another place.

    Where others may write there, it is kept in a folder that goes with this process.
    """
    if chosen := os.environ.get(CACHE):
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        if chosen != default_cache_dir():  # PyTorch sets it too
            return
    cache = cache_root() / "compiled"
    if not _is_private(cache):
        tell(f"{cache}: is not yours alone, so what is compiled now is not kept: chmod 700 it")
        cache = Path(tempfile.mkdtemp(prefix="ae-compiled-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ[CACHE] = str(cache)


def _is_private(folder: Path) -> bool:
    """Whether a folder, made where it is missing, is this user's, and nobody else may enter it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    if not hasattr(os, "geteuid"):  # Windows keeps a user's folders to the user
        return stat.S_ISDIR(found.st_mode)
    mine = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return mine and stat.S_ISDIR(found.st_mode)


def remove_cut_libraries(cache: Path | None = None) -> None:
    """Removes libraries from the compiler's cache that are cut short and that nobody writes now.

    Args:
        cache: of the compiler; None: where PyTorch has it.
    """
    if cache is None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cache = Path(cache_dir())
    for library in cache.glob("*/*.so"):
        if _is_cut(library) and not _in_use(cache / "locks" / f"{library.name.split('.')[0]}.lock"):
            library.unlink(missing_ok=True)


def _is_cut(path: Path) -> bool:
    """Whether a library lacks its end, where linkers list its sections; False if it is no ELF."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(HEADER.size)
            if size >= HEADER.size and start[:5] != b"\x7fELF\x02":
                return not start.strip(b"\0")  # nothing but zeros, as a power cut leaves it
            if size < HEADER.size:
                return True
            first, each, num = HEADER.unpack(start)
            if not first or size < first + each * num:
                return True
            file.seek(first)
            return not file.read(each * num).strip(b"\0")
    except OSError:
        return False


def _in_use(lock: Path) -> bool:
    """Whether a compiler holds the lock under which it writes a library."""
    try:
        with lock.open("rb") as file:
            return not take(file.fileno())
    except OSError:
        return False


class Uncompilable(Failure):
    """A part does something that the compiler does not understand."""


@contextmanager
def compiling() -> Iterator[None]:
    """Lets the compiler see the whole step, and keeps its chatter off the terminal.

    Raises:
        Uncompilable: so it is; the sentence says what the compiler says.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    use_own_cache()
    remove_cut_libraries()
    chatter = logging.getLogger("torch.utils.cpp_extension")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with config.patch(trace_autograd_ops=True):
            yield
    except (TorchDynamoException, InductorError) as error:
        raise Uncompilable(
            f"this recipe cannot be compiled whole ({said(error)}): set train.compile=off"
        ) from error
    finally:
        chatter.setLevel(level)
