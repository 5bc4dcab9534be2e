"""What happens once in a while in a training, each a `contracts.Callback`.

ae train RECIPE --callback mine        # of the entry point group `ae_toolkit.callbacks`
fit(recipe, "runs/mine", callbacks=[Mine()])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ae_toolkit import registry
from ae_toolkit.contracts import Callback
from ae_toolkit.errors import wrap_plugin_errors


def make_callbacks(chosen: Iterable[Callback | str]) -> list[Callback]:
    """Makes the callbacks that are chosen by name.

    Raises:
        UsageError: there is no callback of a name.
        RunError: the class of one raises.
    """
    made: list[Callback] = []
    for callback in chosen:
        if isinstance(callback, str):
            factory = registry.callbacks.get(callback)
            with wrap_plugin_errors(f"{registry.callbacks.describe(factory)} raises"):
                callback = factory()
        made.append(callback)
    return made


class Callbacks(Callback):
    """Any number of callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = callbacks

    def on_start(self, training: Any) -> None:
        for callback in self.callbacks:
            callback.on_start(training)

    def on_step(self, training: Any) -> None:
        for callback in self.callbacks:
            callback.on_step(training)

    def on_losses(self, training: Any) -> None:
        for callback in self.callbacks:
            callback.on_losses(training)

    def on_validation(self, training: Any) -> None:
        for callback in self.callbacks:
            callback.on_validation(training)

    def on_end(self, training: Any) -> None:
        for callback in self.callbacks:
            callback.on_end(training)
