"""ae-toolkit: every autoencoder is a short recipe of composed parts, every data type a plugin.

    import ae_toolkit
    model = ae_toolkit.load("mnist-2d")     # a bundled name, a run directory or a hub id
    items = model.sample(16, seed=0)        # items in, items out

Names are imported when first used, so that `import ae_toolkit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ae_toolkit.version import CONTRACT_VERSION, OLDEST_CONTRACT, __version__, former_names

if TYPE_CHECKING:
    from ae_toolkit.autoencoder import Autoencoder as Autoencoder
    from ae_toolkit.contracts import Example as Example
    from ae_toolkit.data.examples import Examples as Examples
    from ae_toolkit.data.folder import of_items as of_items
    from ae_toolkit.errors import RunError as RunError
    from ae_toolkit.errors import UsageError as UsageError
    from ae_toolkit.inference.loading import load as load
    from ae_toolkit.inference.model import Model as Model
    from ae_toolkit.modality import Modality as Modality
    from ae_toolkit.recipe import Recipe as Recipe
    from ae_toolkit.recipe import named as named
    from ae_toolkit.training.trainer import fit as fit

_MODULE_OF = {
    "Autoencoder": "autoencoder",
    "Example": "contracts",
    "Examples": "data.examples",
    "RunError": "errors",
    "UsageError": "errors",
    "Modality": "modality",
    "Model": "inference.model",
    "Recipe": "recipe",
    "fit": "training.trainer",
    "load": "inference.loading",
    "named": "recipe",
    "of_items": "data.folder",
}

__all__ = ["CONTRACT_VERSION", "OLDEST_CONTRACT", "__version__", *sorted(_MODULE_OF)]


_former = former_names(
    __name__, {"CONTRACT": "CONTRACT_VERSION", "Failure": "RunError", "Misuse": "UsageError"}
)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        return _former(name)
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
