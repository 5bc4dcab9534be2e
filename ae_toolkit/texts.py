"""What others may have written: JSON that is sound, checksums, names and lines that harm nobody.

What this program reads again carries checksums, CRC-32: they notice a disk that forgets, and are no
proof against somebody who wants to deceive.
"""

from __future__ import annotations

import json
import unicodedata
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKSUM_KEY = "checksum"  #: the key of a JSON object's own checksum

MAX_JSON_DEPTH = 50  #: of objects and lists within each other

_CHECKED_BYTES = 1 << 20  #: that are read at a time
_MAX_NAME_BYTES = 200  #: of a file name; systems allow 255, and an ending and a number follow


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

    A former checksum is replaced; the keys in `but` are those that anybody may change.
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


def checksum(what: Path | bytes) -> str:
    """The checksum of a file, or of what one will hold.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(what, bytes):
        return f"{zlib.crc32(what):08x}"
    found = 0
    with what.open("rb") as file:
        while some := file.read(_CHECKED_BYTES):
            found = zlib.crc32(some, found)
    return f"{found:08x}"


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
