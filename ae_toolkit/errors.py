"""The errors that a user may meet, each one clear sentence: what is wrong, where, what to do.

The command line turns `UsageError` into exit code 2 and `RunError` into exit code 1, without a
traceback. Anything else that escapes is a defect of ours and keeps its traceback. Signals end a
command, too: here is how they are caught.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ae_toolkit.version import former_names

#: By which somebody asks a program to end.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

MAX_CHARS = 2000  #: of a sentence; a broken file may bring a name of a million


class _Sentence(Exception):
    """What is said, without the middle of what is far too long."""

    def __str__(self) -> str:
        text = super().__str__()
        half = MAX_CHARS // 2
        return text if len(text) <= MAX_CHARS else f"{text[:half]} … {text[-half:]}"


class UsageError(_Sentence, ValueError):
    """The request cannot be meant: an unknown name, a wrong setting, a file that is not there."""

    exit_code = 2


class RunError(_Sentence, RuntimeError):
    """The request was sound and could not be carried out: a broken file, a full disk, a NaN."""

    exit_code = 1


class PluginError(RunError):
    """A part does not do what its contract says, so its authors are to be asked."""


class Interrupted(RunError):
    """Somebody stopped a training; what was saved stays.

    Args:
        sentence: what became of it.
        number: of the signal, 2 for Ctrl-C; shells know it by an exit code that is 128 more.
    """

    def __init__(self, sentence: str, *, number: int = 2):
        super().__init__(sentence)
        self.exit_code = 128 + number


@contextmanager
def wrap_plugin_errors(who: str) -> Iterator[None]:
    """Turns whatever a stranger's code raises into one sentence that begins with `who`.

    Our own errors pass as they are, and so do those of the system that name their file.
    """
    try:
        yield
    except (UsageError, RunError):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise PluginError(f"{who}: {describe_error(error)}") from error


@contextmanager
def handling_signals(
    handler: Callable[[int, Any], None], *, replaces: Callable[[Any], bool]
) -> Iterator[None]:
    """Gives a handler the signals that ask for an end, where it replaces what handles them now."""
    before: dict[int, Any] = {}
    try:
        for number in STOP_SIGNALS:
            if replaces(signal.getsignal(number)):
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets signals wait that would end the block in the middle."""
    caught: list[int] = []
    try:
        # A handler that Python does not know of is another library's.
        with handling_signals(
            lambda number, _: caught.append(number), replaces=lambda former: former is not None
        ):
            yield
    finally:
        for number in caught:
            signal.raise_signal(number)


def describe_error(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns the half-sentence that helps after an unknown `word`: the nearest name, or all."""
    names = sorted(known)
    if near := difflib.get_close_matches(word, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"choose from: {', '.join(names)}" if names else "none is installed"


__getattr__ = former_names(
    __name__,
    {
        "Misuse": "UsageError",
        "Failure": "RunError",
        "Fault": "PluginError",
        "blaming": "wrap_plugin_errors",
        "said": "describe_error",
        "choose": "did_you_mean",
    },
)
