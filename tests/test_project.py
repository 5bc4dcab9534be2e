"""The project as a stranger finds it: layout, README, bundled models and their numbers."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import house
import pytest
from conftest import ROOT, SAMPLES, Site

from ae_toolkit import load
from ae_toolkit.contracts import SUPPLIED_ARGUMENTS
from ae_toolkit.inference import zoo
from ae_toolkit.inference.evaluate import evaluate
from ae_toolkit.modality import FORMER_METHODS, Modality
from ae_toolkit.runs import checkpoint

CORE = sorted((ROOT / "ae_toolkit").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
MODELS = tuple(sorted(zoo.bundled()))
MELODIES = tuple(name for name in MODELS if name.startswith("melody"))
NOTES = tuple(name for name in MODELS if name.startswith("note"))
NAMES = ("ae_image", "ae_music", "ae_audio")
RESTORING = ("mnist-ae", "mnist-denoise", "mnist-superres", "mnist-superres-4x")

#: Words of data types, which the core does not know.
FOREIGN = re.compile(
    r"image|picture|pixel|digit|mnist|music|melod|\bnotes?\b|midi|audio|\btunes?\b|pitch|chord",
    re.I,
)

#: A module that is named in a text.
MODULE = re.compile(r"`([\w./]+\.py)`")

#: What a user types, in the examples of `--help`; bundled names; and what other libraries named.
TYPED = re.compile(
    r"^ +ae .*$|mnist-2d|PixelShuffle|add_image|\.Image\b|torchmetrics\.image", re.MULTILINE
)


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_core_has_no_word_of_a_data_type(path: Path) -> None:
    found = FOREIGN.findall(TYPED.sub("", path.read_text()))
    assert not found, f"{path.name}: {found}"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.name)
def test_plugins_use_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ae_toolkit"):
            assert not any(alias.name.startswith("_") for alias in node.names), path.name


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: p.name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_documentation_names_what_is_there() -> None:
    """Modules anywhere, and in the map of CONTRIBUTING.md folders too, by the end of their path."""
    tops = [ROOT / name for name in ("ae_toolkit", "plugins", "scripts", "tests")]
    below = [path for top in tops for path in (top, *top.rglob("*"))]
    known = [f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in below]
    pages = [ROOT / name for name in ("README.md", "docs/training.md", "docs/benchmarks.md")]
    names = {
        *re.findall(r"`([\w./]+(?:\.py|/))`", (ROOT / "CONTRIBUTING.md").read_text()),
        *(n for path in [*pages, *CORE, *PLUGINS] for n in MODULE.findall(path.read_text())),
    }
    assert len(names) > 40
    missing = {name for name in names if not any(path.endswith(f"/{name}") for path in known)}
    assert missing <= {"test_package.py"}  # which a new plugin has


#: Rows of `scripts/house.py` that are within their limits and stay there.
REACHED = ("modules directly in ae_toolkit/", "import circles", "constants of one word")


def test_the_house_keeps_what_it_has_reached() -> None:
    rows = [row for row in house.numbers() if row.title in REACHED]
    assert len(rows) == len(REACHED) and not [row for row in rows if row.value > row.limit]


def test_the_house_counts_constants_of_one_word_and_long_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house, "ROOT", tmp_path)
    module = tmp_path / "module.py"
    lines = (
        "MANY, MAX_FEW = 3, 2\n_KEPT: int = 5\nT = 1\nsome = MANY\ndef f():\n" + "    f()\n" * 60
    )
    module.write_text(lines)
    assert house.one_word_constants(module) == ["module.py:MANY", "module.py:_KEPT"]
    assert house.long_functions(module) == [(61, "module.py:f")]


@pytest.mark.parametrize("package", ["ae_toolkit", *(f"plugins/{name}" for name in NAMES)])
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model(name: str) -> None:
    folder = zoo.bundled()[name]
    most = 8_000_000 if name in (*MELODIES, *NOTES) else 3_000_000
    assert (folder / checkpoint.WEIGHTS_FILE).stat().st_size <= most
    config = checkpoint.load_config(folder)
    assert config.card["seed"] == config.recipe.train.seed
    assert config.card["minutes"] <= 60
    assert config.card["command"] == f"python scripts/reproduce.py {name}"
    assert (folder / "README.md").is_file()
    assert load(name).sample(2, dict.fromkeys(config.recipe.condition, 1), seed=1)


@pytest.mark.parametrize("name", MODELS)
def test_recipe_is_the_one_that_the_weights_were_made_by(name: str) -> None:
    from ae_toolkit.recipe import named

    made_by = checkpoint.load_config(zoo.bundled()[name]).recipe
    # Whether steps were compiled is a matter of the machine.
    assert made_by.with_({"train.compile": "auto"}) == named(name)


def test_every_model_of_the_documentation_ships() -> None:
    assert {"mnist-2d", "mnist-2d-bernoulli", "fashion-2d", "mnist-vae", "mnist-cvae"} <= {*MODELS}
    assert {*RESTORING, "melody-2bar", "melody-16bar", "note-timbre", "note-denoise"} <= {*MODELS}


@pytest.mark.parametrize("name", RESTORING)
def test_shipped_restorers_are_the_measured_ones(real_mnist: Path, name: str) -> None:
    model = load(name)
    shipped = model.config.card["metrics"]
    measured = evaluate(model, limit=1000)
    assert shipped["num_examples"] == 10_000
    assert measured["metrics"]["pixel_bce"] == pytest.approx(
        shipped["metrics"]["pixel_bce"], rel=0.1
    )
    for simple, metrics in shipped.get("baselines", {}).items():
        assert metrics["psnr"] < shipped["metrics"]["psnr"], simple


@pytest.mark.parametrize("name", ["mnist-2d", "mnist-2d-bernoulli", "fashion-2d", "mnist-cvae"])
def test_shipped_numbers_are_the_measured_ones(real_mnist: Path, name: str) -> None:
    model = load(name)
    shipped = model.config.card["metrics"]
    measured = evaluate(model)
    for key in ("distortion", "rate", "distortion_plus_rate"):
        assert measured[key] == pytest.approx(shipped[key], rel=1e-3)


def test_shipped_nll_is_the_measured_one(real_mnist: Path) -> None:
    """On a few digits, with fewer samples: looser than the card's number, never far above it."""
    model = load("mnist-vae")
    shipped = model.config.card["metrics"]
    measured = evaluate(model, num_samples=50, limit=200)
    assert shipped["nll_num_samples"] >= 500 and shipped["num_examples"] == 10_000
    assert measured["nll"] == pytest.approx(shipped["nll"], abs=5)


@pytest.mark.parametrize("name", MELODIES)
def test_shipped_melody_numbers_are_the_measured_ones(real_tunes: Path, name: str) -> None:
    from ae_music.latent.evaluate import reconstruction

    from ae_toolkit.data.examples import load_data

    model = load(name)
    shipped = model.config.card["metrics"]["melodies"]
    some = load_data(model.recipe, model.modality, "test")
    some = some.select(range(0, len(some), max(len(some) // 400, 1)))
    measured = reconstruction(model, some, seed=1)
    assert shipped["rate"] == pytest.approx(measured["rate"], rel=0.1)
    for key in ("accuracy_sampled", "accuracy_mean", "exact"):
        assert measured[key] == pytest.approx(shipped[key], abs=0.06), key


def test_shipped_melodies_reach_what_they_are_meant_to() -> None:
    two, sixteen = (
        checkpoint.load_config(zoo.bundled()[f"melody-{bars}bar"]).card["metrics"]["melodies"]
        for bars in (2, 16)
    )
    assert two["rate"] <= 60 and two["accuracy_sampled"] >= 0.965
    assert two["accuracy_mean"] >= 0.995 and two["exact"] >= 0.9
    assert sixteen["accuracy_sampled"] >= 0.85
    for report in (two, sixteen):
        assert report["interpolation"]["num_pairs"] >= 1000
        assert report["interpolation"]["monotone_steps"] >= 0.95
        assert report["samples"]["copies"] <= 0.02


def test_shipped_notes_reach_what_they_are_meant_to() -> None:
    card = checkpoint.load_config(zoo.bundled()["note-timbre"]).card
    notes = card["metrics"]["notes"]
    assert notes["num_examples"] > 1500 and notes["num_pairs"] >= 500
    assert notes["pitch_kept"] >= 0.95
    assert notes["lsd"] <= 0.8 * notes["lsd_pca"]
    assert notes["centroid_monotone"] >= 0.9
    assert notes["decoding"] >= 50


def test_readme_carries_the_measured_numbers() -> None:
    text = (ROOT / "README.md").read_text()
    for name in MODELS:
        metrics = checkpoint.load_config(zoo.bundled()[name]).card["metrics"]
        if name in MELODIES:
            value = f"{metrics['melodies']['accuracy_sampled']:.3f}"
        elif name in NOTES:
            distance = metrics["metrics"]["level_distance"]
            value = f"{metrics['notes']['lsd'] if 'notes' in metrics else distance:.2f} dB"
        elif "rate" in metrics:
            value = f"{metrics.get('nll') or metrics['distortion_plus_rate']:.2f}"
        else:
            value = f"{metrics['metrics']['pixel_bce']:.4f}"
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert value in line, name


COMMAND = re.compile(r"ae |pip install \./")


def readme_commands() -> list[str]:
    """The `ae …` and `pip install ./…` lines of the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if COMMAND.match(line)]


@pytest.mark.slow
def test_readme_commands_run(
    ae, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pasted, in order, in one folder, without data; trainings on what ships for one epoch."""
    monkeypatch.setenv("AE_DATA", str(tmp_path / "nowhere"))
    tunes, notes = (ROOT / f"plugins/{name}/samples" for name in ("ae_music", "ae_audio"))
    for path in (*SAMPLES.glob("digit-*.png"), *tunes.glob("*.mid"), *notes.glob("*.flac")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shutil.copytree(tunes, tmp_path / "plugins/ae_music/samples")
    commands = readme_commands()
    assert len(commands) > 8
    for command in commands:
        words = command.split()
        if words[0] == "pip":
            site.put_project(Path(words[2]))
            continue
        if words[1] == "train":
            words += ["--set", "train.epochs=1", "--quiet"]
            words += (
                ["--data", "mnist-sample"] if "--data" not in words and "mnist" in command else []
            )
        if "evaluate" in words:
            words += ["--limit", "20"]
        ae(*words[1:])


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ae_music", "ae_audio"):
        shutil.copytree(ROOT / f"plugins/{name}/samples", tmp_path / f"plugins/{name}/samples")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    known: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), known)


def test_readme_shows_pictures_that_are_there() -> None:
    for name in re.findall(r'src="([^"]+)"', (ROOT / "README.md").read_text()):
        assert (ROOT / name).is_file(), name


def test_changelog_and_citation_name_the_version() -> None:
    import ae_toolkit

    assert f"## {ae_toolkit.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {ae_toolkit.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_cards_are_json() -> None:
    for folder in zoo.bundled().values():
        json.loads((folder / checkpoint.CONFIG_FILE).read_text())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its limits are Linux's")
def test_broken_in_any_way_a_file_is_read_or_refused(tmp_path: Path) -> None:
    kinds = [word for kind in ("image", "sound", "midi", "song") for word in ("--kind", kind)]
    command = [sys.executable, ROOT / "scripts/fuzz.py", "found", *kinds, "--num", "40"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 40 broken in") == 4 and not list(tmp_path.iterdir())


FUZZED_BADLY = """
import os, random, signal, sys
from pathlib import Path
import fuzz

def read(path):
    first = path.read_bytes()[:1]
    if first == b"e":
        raise ZeroDivisionError
    if first == b"c":
        os.kill(os.getpid(), signal.SIGSEGV)
    while first == b"h":
        pass
    if first == b"m":
        bytearray(60 << 20)

def seeds(folder):
    (folder / "a.txt").write_bytes(b"a")
    return [folder / "a.txt"]

def broken(chance, seeds, place):
    place.write_bytes(chance.choice([b"e", b"c", b"h", b"m", b"a"]))
    return place

fuzz.KINDS["own"] = fuzz.Kind(seeds, broken, read)
fuzz.SECONDS, fuzz.GROWTH_BYTES = 0.1, 50 << 20
sys.exit(fuzz.fuzz("own", 15, 0, Path("found"), Path("work")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its limits are Linux's")
def test_fuzzing_notices_what_must_not_be(tmp_path: Path) -> None:
    """An exception, a crash, a hang and much memory; and the broken file is kept."""
    # In a process of its own: what other tests left in memory would count.
    command = [sys.executable, "-c", FUZZED_BADLY]
    away = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(command, cwd=tmp_path, env=away, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for path in (tmp_path / "found").glob("*.txt"):
        found[path.with_suffix("").read_bytes()] = path.read_text().partition(":")[0]
    assert found == {b"e": "other exception", b"c": "crash", b"h": "hang", b"m": "much memory"}


def test_the_page_of_the_contract_names_all_that_there_is() -> None:
    page = (ROOT / "docs" / "contract.md").read_text()
    data_type, parts = page.split("## A data set")[0], page.split("## Parts")[1]
    cells = re.findall(r"^\| (`.*?) \|", data_type, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)\(", cell)}
    methods = {name for name, made in vars(Modality).items() if inspect.isfunction(made)}
    assert named == {name for name in methods if name[0] != "_"} - set(FORMER_METHODS)
    rows = dict(re.findall(r"^\| (\w+) \| (.*?) \|", parts, re.MULTILINE))
    for kind, supplied in SUPPLIED_ARGUMENTS.items():
        if kind not in ("modality", "dataset"):
            assert tuple(re.findall(r"\w+", rows[kind])) == supplied, kind
