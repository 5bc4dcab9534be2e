"""Names -> parts: who provides what, and what is said when it goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ae_toolkit import RunError, UsageError, registry
from ae_toolkit.registry import Registry, encoders


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="no encoder 'resnett': did you mean 'resnet'"):
        encoders.get("resnett")


def test_distribution_can_be_named() -> None:
    assert encoders.get("ae-toolkit:mlp") is encoders.get("mlp")
    with pytest.raises(UsageError, match="no encoder 'elsewhere:mlp'"):
        encoders.get("elsewhere:mlp")


def test_registering_twice_replaces_and_installed_names_are_refused() -> None:
    encoders.register("mine")(int)
    encoders.register("mine")(float)
    assert encoders.get("mine") is float
    with pytest.raises(UsageError, match="already provided by ae-toolkit"):
        encoders.register("mlp")


def test_temporarily_cleans_up_after_itself() -> None:
    with pytest.raises(ZeroDivisionError), encoders.temporarily(passing=int):
        assert "passing" in encoders.names()
        _ = 1 / 0
    assert "passing" not in encoders.names()


def install(folder: Path, name: str, *, version: str = "1.0", **points: str) -> None:
    """A distribution as pip leaves it: metadata and entry points."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[ae_toolkit.encoders]\n{key} = {value}\n" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    install(tmp_path, "alpha", wave="alpha_plugin:Wave", mlp="alpha_plugin:Wave")
    install(tmp_path, "beta", wave="beta_plugin:Wave", broken="beta_broken:Thing")
    for name in ("alpha", "beta"):
        (tmp_path / f"{name}_plugin.py").write_text(f"class Wave:\n    owner = '{name}'\n")
    (tmp_path / "beta_broken.py").write_text("raise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    yield encoders
    registry._installed.cache_clear()


def test_clash_is_an_error_only_when_it_matters(strangers: Registry) -> None:
    assert "wave" in strangers.names()
    assert strangers.get("mlp")
    with pytest.raises(
        UsageError, match="several packages provide encoder 'wave': write 'alpha:wave'"
    ):
        strangers.get("wave")
    assert strangers.get("wave", prefer="beta").owner == "beta"
    assert strangers.get("alpha:wave").owner == "alpha"


def test_our_own_name_goes_on_meaning_ours(strangers: Registry) -> None:
    assert strangers.get("mlp") is strangers.get("ae-toolkit:mlp") is not strangers.get("alpha:mlp")
    assert strangers.get("mlp", prefer="alpha").owner == "alpha"  # in a recipe of its own
    assert strangers.origin("mlp").distribution == "ae-toolkit"
    names = [strangers.full_name(name, origin) for name, origin, _ in strangers.origins()]
    assert {"mlp", "alpha:mlp", "alpha:wave", "beta:wave", "broken"} <= {*names}


def test_broken_plugin_is_named_and_harms_nobody_else(strangers: Registry) -> None:
    with pytest.raises(
        RunError, match=r"encoder 'broken' of beta 1.0 .*RuntimeError: half installed"
    ):
        strangers.get("broken")
    assert strangers.get("mlp")


def test_names_import_nothing() -> None:
    code = (
        "import sys; from ae_toolkit import registry\n"
        "[r.names() for r in registry.ALL_REGISTRIES.values()]\n"
        "assert not {'torch', 'ae_image', 'numpy'} & set(sys.modules), 'imported too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
