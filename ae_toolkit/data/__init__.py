"""Examples: in memory, in batches, or read from folders of files and kept in the user's cache."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """What `ae_toolkit.data` held when it was one module is in `examples`."""
    return getattr(import_module("ae_toolkit.data.examples"), name)
