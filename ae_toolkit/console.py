"""What is said on the terminal while something goes on: sentences on standard error, by rank 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ae_toolkit.errors import Failure
from ae_toolkit.files import printable
from ae_toolkit.ranks import leads


def tell(line: str, *, bar: tqdm[Any] | None = None) -> None:
    """Says something on standard error, above the progress bar if there is one; rank 0 only."""
    if not leads():
        return
    line = printable(line)
    if bar is not None and not bar.disable:
        bar.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


class Trouble:
    """What the disk refuses again and again: said once, and once more when it is over."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    @contextmanager
    def survived(self, what: str, *, bar: tqdm[Any] | None = None) -> Iterator[None]:
        """Lets a block fail that writes something, since that must not end a training.

        Args:
            what: it writes.
            bar: of the progress.
        """
        try:
            yield
        except (Failure, OSError) as error:
            if what not in self.met:
                self.met.add(what)
                why = str(error)
                if isinstance(error, OSError) and error.filename:
                    why = f"{error.filename}: cannot be written, {error.strerror}"
                tell(f"{why}; the training goes on and will try again", bar=bar)
        else:
            if what in self.met:
                self.met.remove(what)
                tell(f"{what} can be written again", bar=bar)
