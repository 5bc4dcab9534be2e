"""The version of the toolkit and of its contracts, and what had other names in former versions."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

#: The version of the contracts in `contracts.py` and `modality.py`; it grows when one breaks.
CONTRACT_VERSION = 2
OLDEST_CONTRACT = 2  #: of which plugins still work

#: Former modules that plugins may import, and the packages or modules that hold them now.
MOVED_MODULES = {
    "backbones": "parts.backbones",
    "batches": "data.batches",
    "bottleneck": "parts.bottleneck",
    "checkpoint": "runs.checkpoint",
    "columns": "data.columns",
    "corpus": "data.folder",
    "corruption": "parts.corruption",
    "evaluate": "inference.evaluate",
    "latent": "inference.latent",
    "likelihood": "parts.likelihood",
    "model": "inference.model",
    "noise": "randomness",
    "objective": "parts.objective",
    "options": "cli.options",
    "pieces": "inference.tiling",
    "plugins": "testing.plugins",
    "prior": "parts.prior",
    "trackers": "training.callbacks.trackers",
    "trainer": "training.trainer",
    "zoo": "inference.zoo",
}


def former_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a `__getattr__` by which plugins may use a module's names of former versions.

    Args:
        module: its name.
        renamed: the names of today by the former ones.
    """

    def __getattr__(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        words = f"{module}.{name} is {renamed[name]} now"
        warnings.warn(words, DeprecationWarning, stacklevel=2)
        return getattr(import_module(module), renamed[name])

    return __getattr__


def former_attributes(renamed: Mapping[str, str]) -> Callable[[Any, str], Any]:
    """Returns a `__getattr__` of a class, by which plugins may use its former names.

    Args:
        renamed: the names of today by the former ones.
    """

    def __getattr__(self: Any, name: str) -> Any:
        owner = type(self).__name__
        if name not in renamed:
            raise AttributeError(f"{owner!r} object has no attribute {name!r}")
        words = f"{owner}.{name} is {renamed[name]} now"
        warnings.warn(words, DeprecationWarning, stacklevel=2)
        return getattr(self, renamed[name])

    return __getattr__


class MovedModules(MetaPathFinder, Loader):
    """Lets a plugin import a module by its former name, with a warning that says the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        former, _, rest = name.partition(".")
        if package != __package__ or former not in MOVED_MODULES:
            return None
        now = ".".join(filter(None, [package, MOVED_MODULES[former], rest]))
        return ModuleSpec(fullname, self, origin=now)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is {spec.origin} now", DeprecationWarning, stacklevel=2)
        module = import_module(str(spec.origin))
        self.kept = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.kept  # which the import under the former name has replaced


if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules())
