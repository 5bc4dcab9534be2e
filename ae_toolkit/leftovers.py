"""What a killed compiler leaves: libraries cut short, which would crash whoever loads them.

PyTorch's compiler keeps what it has made in a cache of the user's and writes libraries there under
their final names. One that was killed meanwhile, with its training, by a scheduler or a power cut,
would end every later training that comes to the same code.
"""

from __future__ import annotations

import struct
from pathlib import Path

from ae_toolkit.lock import take

HEADER = struct.Struct(
    "<40xQ10xHH2x"
)  #: of ELF64: where its sections are listed, their size, number


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
