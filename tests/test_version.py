"""Modules by their former names: the same objects, and a warning that says the new name."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from ae_toolkit import Model
from ae_toolkit.version import MOVED_MODULES

MOVES = {
    "ae_toolkit.corpus": "ae_toolkit.data.folder",
    "ae_toolkit.backbones": "ae_toolkit.parts.backbones",
    "ae_toolkit.backbones.layers": "ae_toolkit.parts.backbones.layers",
}


@pytest.fixture
def not_yet_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MOVES:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("not_yet_imported")
def test_former_names_give_the_same_objects() -> None:
    from ae_toolkit.data import folder
    from ae_toolkit.parts.backbones import layers

    with pytest.warns(DeprecationWarning) as found:
        from ae_toolkit.backbones.layers import one_hot
        from ae_toolkit.corpus import of_items
    assert of_items is folder.of_items and one_hot is layers.one_hot
    assert {str(warning.message) for warning in found} == {
        f"{former} is {now} now" for former, now in MOVES.items()
    }
    assert {warning.filename for warning in found} == {__file__}  # the lines that import


@pytest.mark.usefixtures("not_yet_imported")
@pytest.mark.parametrize("former", MOVES)
def test_a_moved_module_remains_what_it_is(former: str) -> None:
    now = import_module(MOVES[former])
    spec = now.__spec__
    with pytest.warns(DeprecationWarning):
        assert import_module(former) is now
    assert now.__spec__ is spec and spec.name == now.__name__ == MOVES[former]


@pytest.mark.parametrize("former", MOVED_MODULES)
def test_what_has_moved_is_where_it_is_said_to_be(former: str) -> None:
    assert find_spec(f"ae_toolkit.{MOVED_MODULES[former]}")


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"ae_toolkit\.nowhere"):
        import_module("ae_toolkit.nowhere")


@pytest.mark.parametrize(
    ("module", "former", "now"),
    [
        ("ae_toolkit", "Misuse", "UsageError"),
        ("ae_toolkit.errors", "Fault", "PluginError"),
        ("ae_toolkit.console", "tell", "log"),
        ("ae_toolkit.contracts", "Step", "StepContext"),
        ("ae_toolkit.data.folder", "part_of", "split_of"),
    ],
)
def test_former_names_in_a_module_give_the_same_objects(module: str, former: str, now: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{module}.{former} is {now} now"):
        found = getattr(import_module(module), former)
    assert found is getattr(import_module(module), now)
    with pytest.raises(AttributeError, match="nowhere"):
        _ = import_module(module).nowhere


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("push", "prior_transform"),
        ("walk", "interpolate_codes"),
        ("restore", "reconstruct_any_size"),
        ("levels", "unflatten"),
        ("noise", "noise_source"),
    ],
)
def test_verbs_of_a_model_have_former_names(former: str, now: str) -> None:
    model = Model.__new__(Model)
    with pytest.warns(DeprecationWarning, match=f"Model.{former} is {now} now"):
        assert getattr(model, former) == getattr(model, now)
    with pytest.raises(AttributeError, match="nowhere"):
        _ = model.nowhere
