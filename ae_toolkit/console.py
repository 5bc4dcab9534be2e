"""What is said on the terminal while something goes on: sentences and bars on standard error.

On a terminal, bars move at the bottom of the screen and sentences appear above them. Elsewhere, as
in a log, a line is printed now and then, without colours or carriage returns. Only rank 0 speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from ae_toolkit.files import printable
from ae_toolkit.version import former_names

if TYPE_CHECKING:
    from rich.live import Live

T = TypeVar("T")

DELAY_SECONDS = 1.0  #: what is done sooner shows no bar
PLAIN_SECONDS = 30.0  #: between two lines about the same work where there is no terminal

_bars: list[Bar] = []  # of all work that goes on, the outermost first
_screen: Live | None = None  # what shows them, where there is a terminal
_held: list[Live] = []  # the screen, while this process is copied


def _hold_screen() -> None:
    """Waits until no thread draws, whose locks would stay held in a copy of this process."""
    if _screen is not None:
        _screen._lock.acquire()
        _screen.console._lock.acquire()
        _held.append(_screen)


def _release_screen() -> None:
    while _held:
        live = _held.pop()
        live.console._lock.release()
        live._lock.release()


def _leave_screen() -> None:
    """Lets a copy of this process say nothing on the screen but sentences."""
    global _screen
    _release_screen()
    _bars.clear()
    _screen = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_hold_screen, after_in_parent=_release_screen, after_in_child=_leave_screen
    )


def is_main_process() -> bool:
    """Returns whether this process is rank 0, as far as can be told before the others are met."""
    return int(os.environ.get("RANK", "0")) == 0


def log(line: str) -> None:
    """Says something on standard error, above the bars if there are any; rank 0 only."""
    if not is_main_process():
        return
    if _screen is None:
        print(printable(line), file=sys.stderr, flush=True)
    else:
        from rich.text import Text

        _screen.console.print(Text(printable(line)), soft_wrap=True)


def duration(seconds: float) -> str:
    """Returns a time for people, such as `26 s` or `3 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Bar:
    """How far some work is, within a `with` block; work whose end is not known gets a spinner.

    Bars may be nested. What goes on within work that is not shown is not shown either.

    Args:
        title: what is being done.
        total: how much there is to do; None: that is not known.
        done: how much of it had been done before.
        unit: what is counted, such as `files`; without one a bar shows a percentage.
        shown: whether anything is to be seen of it.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None = None,
        done: int = 0,
        unit: str = "",
        shown: bool = True,
    ):
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.shown: bool = shown and is_main_process() and all(bar.shown for bar in _bars)
        self.text, self.first, self.visible = "", done, False
        self.began = self.said = time.monotonic()
        self.spinner: Any = None

    def __enter__(self) -> Bar:
        _bars.append(self)
        if self.total is None:
            self.begin(self.title)
        return self

    def __exit__(self, *_: object) -> None:
        global _screen
        try:
            if _bars == [self] and _screen is not None:
                _screen.stop()  # erases what it shows, so the bar must still be there
                _screen = None
        finally:
            _bars.remove(self)

    def begin(self, title: str) -> None:
        """Says what is being done now, where it is not known how long it takes."""
        self.title, self.total, self.began = title, None, time.monotonic()
        if self.shown and _is_terminal():
            self._show()
        else:
            self.log(f"{title} …")

    def log(self, line: str) -> None:
        """Says a sentence that nobody needs who does not want to see a bar."""
        if self.shown:
            log(line)

    def advance(self, num: int = 1) -> None:
        """Counts what has been done."""
        self.update(self.done + num)

    def update(
        self, done: int, *, total: int | None = None, title: str | None = None, text: str = ""
    ) -> None:
        """Shows how far the work is, `done` in all, and `text` about it in a line of its own."""
        now = time.monotonic()
        if self.total is None:
            self.total, self.first, self.began = total, done, now
        self.done, self.text, self.title = done, text, self.title if title is None else title
        if not self.shown:
            return
        if _is_terminal():
            if self.visible or now - self.began > DELAY_SECONDS:
                self._show()
        elif now - self.said > PLAIN_SECONDS:
            self.said = now
            self.log(", ".join(filter(None, [self.title, self.amount, text, self.left])))

    @property
    def amount(self) -> str:
        """How much is done, in words."""
        if self.unit:
            return f"{self.done:,} of {self.total or 0:,} {self.unit}"
        return f"{self.done / (self.total or 1):.0%}"

    @property
    def left(self) -> str:
        """How much time is left, in words; nothing where nobody knows yet."""
        moved = self.done - self.first
        each = (time.monotonic() - self.began) / moved if moved else 0.0
        return f"{duration(each * ((self.total or 0) - self.done))} left" if moved else ""

    def _show(self) -> None:
        """Puts the bar on the screen, if it is not there."""
        global _screen
        self.visible = True
        if _screen is not None:
            return
        from rich.console import Console, Group
        from rich.live import Live

        # Whatever the environment says of colours in logs, this is a terminal.
        console = Console(stderr=True, force_terminal=True, force_jupyter=False)
        _screen = Live(
            console=console,
            get_renderable=lambda: Group(*(bar for bar in _bars if bar.visible)),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        _screen.start(refresh=True)
        console.show_cursor(True)  # whoever kills this process keeps a cursor

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        if self.total is None:
            self.spinner = self.spinner or Spinner("dots", style="cyan")
            spent = duration(time.monotonic() - self.began)
            row.add_row(self.spinner, printable(self.title), Text(spent, style="dim"))
            return row
        row.expand = True
        row.add_column()
        row.add_column(ratio=1)
        title, left = Text(printable(self.title), style="bold"), Text(self.left, style="cyan")
        bar = ProgressBar(total=self.total, completed=self.done)
        row.add_row(title, bar, self.amount, left)
        return Group(row, Text(printable(self.text))) if self.text else row


def track(
    items: Iterable[T], title: str, *, total: int | None = None, unit: str = "", shown: bool = True
) -> Iterator[T]:
    """Yields items, of which there are `total`, in a `Bar` that shows how many are done."""
    total = len(items) if isinstance(items, Sized) else total
    with Bar(title, total=total, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()


def _is_terminal() -> bool:
    if _screen is not None:
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


__getattr__ = former_names(__name__, {"tell": "log"})
