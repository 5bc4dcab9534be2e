"""What tests share. Full data sets are found through `AE_DATA`, else their tests skip."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ae_toolkit import CONTRACT_VERSION, Recipe, fit, load, registry
from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.inference.model import Model
from ae_toolkit.recipe import named
from ae_toolkit.runs import checkpoint
from ae_toolkit.training.compilation import use_own_cache

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "plugins/ae_image/samples"


def pytest_configure() -> None:
    shared = ROOT.parent / "shared/data"
    if "AE_DATA" not in os.environ and shared.is_dir():
        os.environ["AE_DATA"] = str(shared)
    use_own_cache()  # of the compiler, from test to test
    # Corpora that tests make are no business of the user's cache.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ae-toolkit-tests-")
    torch.set_num_threads(2)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """The folder that holds all of MNIST."""
    root = Path(os.environ.get("AE_DATA", "/nowhere"))
    if not (root / "MNIST/raw").is_dir():
        pytest.skip("needs all of MNIST: set AE_DATA to the folder that holds MNIST/raw")
    return root


@pytest.fixture(scope="session")
def real_tunes() -> Path:
    """The folder that holds the collections of tunes."""
    root = Path(os.environ.get("AE_DATA", "/nowhere"))
    if not (root / "midi/oneills-1850").is_dir():
        pytest.skip("needs all of the tunes: set AE_DATA to the folder that holds midi/")
    return root


@pytest.fixture(autouse=True)
def clean_registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = {kind: dict(parts._local) for kind, parts in registry.ALL_REGISTRIES.items()}
    yield
    for kind, parts in registry.ALL_REGISTRIES.items():
        parts._local = before[kind]


def small(**changes: object) -> Recipe:
    """`mnist-2d`, small, on the bundled digits, in two seconds."""
    return named("mnist-2d").with_(
        {
            "data.name": "mnist-sample",
            "encoder": {"name": "mlp", "hidden": [32]},
            "decoder": {"name": "mlp", "hidden": [32]},
            "objective": {"name": "elbo"},
            "train": {"epochs": 4, "batch_size": 64, "lr": 5e-3, "precision": "fp32"},
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


def untrained(recipe: Recipe, folder: Path) -> Path:
    """A model folder with the weights that a training begins with."""
    model = Autoencoder(recipe, modality=recipe.make("modality"))
    checkpoint.save(folder, model.state_dict(), checkpoint.config_json(recipe))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `small()`."""
    return fit(small(), tmp_path_factory.mktemp("runs") / "small", progress=False)


@pytest.fixture(scope="session")
def model(run: Path) -> Model:
    return load(run)


@pytest.fixture
def ae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the `ae` command in an empty folder; `failed`: an exit code comes with an error."""
    from ae_toolkit.cli.app import main

    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, code: int | None = 0, failed: bool = True) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code in (None, result.exit_code), result.output
        if code and failed:
            assert len(re.findall("^Error: ", result.output, re.MULTILINE)) == 1, result.output
            assert "Traceback" not in result.output
        return result

    return invoke


class Site:
    """A folder of installed distributions, as pip leaves them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def put(
        self,
        name: str,
        points: dict[str, dict[str, str]],
        *,
        source: str = "",
        version: str = "0.1.0",
        contract: int | str | None = CONTRACT_VERSION,
    ) -> None:
        """Installs a distribution; its entry points are `{group: {name: value}}`."""
        if contract is not None:
            points = points | {"contract": {str(contract): name}}
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [
            "\n".join(
                [f"[ae_toolkit.{group}]", *(f"{key} = {value}" for key, value in some.items())]
            )
            for group, some in points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        if source:
            (self.folder / f"{name}.py").write_text(source)
        self.refresh()

    def put_project(self, project: Path, change: Callable[[str], str] = str) -> None:
        """Installs a project as `ae plugin new` writes it, its module changed by `change`."""
        settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        points = {
            group.removeprefix("ae_toolkit."): some
            for group, some in settings["entry-points"].items()
        }
        name = settings["name"]
        shutil.copytree(project / name, self.folder / name)
        module = self.folder / name / "__init__.py"
        module.write_text(change(module.read_text()))
        self.put(name, points, version=settings["version"], contract=None)

    def remove(self, name: str) -> None:
        """What pip uninstall does, and a new process sees."""
        for path in self.folder.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.refresh()

    def refresh(self) -> None:
        for name, module in [*sys.modules.items()]:
            if str(getattr(module, "__file__", "")).startswith(str(self.folder)):
                del sys.modules[name]
        importlib.invalidate_caches()
        registry._installed.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Site(folder)
    Site(folder).remove("")
    registry._installed.cache_clear()
