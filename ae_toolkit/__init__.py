"""ae-toolkit: every autoencoder is a short recipe of composed parts, every data type a plugin.

    import ae_toolkit
    model = ae_toolkit.load("mnist-2d")     # a bundled name, a run directory or a hub id
    items = model.sample(16, seed=0)        # items in, items out

Names are imported when first used, so that `import ae_toolkit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: The version of the contracts in `contracts.py` and `modality.py`; it grows when one breaks.
CONTRACT = 2
OLDEST_CONTRACT = 2  #: of which plugins still work

if TYPE_CHECKING:
    from ae_toolkit.autoencoder import Autoencoder as Autoencoder
    from ae_toolkit.contracts import Example as Example
    from ae_toolkit.data import Examples as Examples
    from ae_toolkit.errors import Failure as Failure
    from ae_toolkit.errors import Misuse as Misuse
    from ae_toolkit.modality import Modality as Modality
    from ae_toolkit.model import Model as Model
    from ae_toolkit.model import load as load
    from ae_toolkit.recipe import Recipe as Recipe
    from ae_toolkit.recipe import named as named
    from ae_toolkit.trainer import fit as fit

_HOME = {
    "Autoencoder": "autoencoder",
    "Example": "contracts",
    "Examples": "data",
    "Failure": "errors",
    "Misuse": "errors",
    "Modality": "modality",
    "Model": "model",
    "Recipe": "recipe",
    "fit": "trainer",
    "load": "model",
    "named": "recipe",
}

__all__ = ["CONTRACT", "OLDEST_CONTRACT", "__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
