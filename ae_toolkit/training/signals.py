"""Requests to stop, which wait until a step is finished and saved, where there is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Signals:
    """Requests to stop, by Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self.caught: list[int] = []  #: their numbers
        self.patient = False  #: whether the first is only noted: a step is finished and saved


@contextmanager
def stop_signals() -> Iterator[Signals]:
    """Collects SIGINT and SIGTERM; a `KeyboardInterrupt` follows, unless the first may wait."""
    signals, owner = Signals(), os.getpid()
    before: dict[int, Any] = {}

    def catch(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a child of ours, which was born with our handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.caught.append(number)
        if signals.patient and len(signals.caught) == 1:
            return
        for each, former in before.items():  # whoever asks once more is not kept at all
            signal.signal(each, former)
        raise KeyboardInterrupt

    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, catch)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield signals
    finally:
        for number, former in before.items():
            signal.signal(number, former)
