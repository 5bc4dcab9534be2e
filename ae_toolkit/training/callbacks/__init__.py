"""What happens once in a while in a training, each a `contracts.Callback`.

ae train RECIPE --callback mine        # of the entry point group `ae_toolkit.callbacks`
fit(recipe, "runs/mine", callbacks=[Mine()])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
        for name in ("on_start", "on_step", "on_losses", "on_validation", "on_end"):
            methods = [getattr(callback, name) for callback in callbacks]
            setattr(self, name, partial(_call_each, methods))


def _call_each(methods: Sequence[Callable[[Any], None]], training: Any) -> None:
    for method in methods:
        method(training)
