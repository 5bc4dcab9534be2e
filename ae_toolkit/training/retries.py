"""What is written in a training is tried again, where the disk refuses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ae_toolkit.console import log
from ae_toolkit.errors import RunError


class Retries:
    """Says once what the disk refuses, and once more when it is over."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Lets a block fail that writes something, since that must not end a training.

        Args:
            what: it writes.
        """
        try:
            yield
        except (RunError, OSError) as error:
            if what not in self.met:
                self.met.add(what)
                why = str(error)
                if isinstance(error, OSError) and error.filename:
                    why = f"{error.filename}: cannot be written, {error.strerror}"
                log(f"{why}; the training goes on and will try again")
        else:
            if what in self.met:
                self.met.remove(what)
                log(f"{what} can be written again")
