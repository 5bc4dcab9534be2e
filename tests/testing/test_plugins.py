"""A stranger's plugin, from `ae plugin new` to its removal, and all that one may do wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Site, small
from PIL import Image as Pictures

from ae_toolkit import CONTRACT_VERSION, RunError, fit, load, registry
from ae_toolkit.data.examples import cache_root
from ae_toolkit.recipe import named
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing.plugins import check_plugin, examine
from ae_toolkit.testing.scaffold import write_plugin

QUICK = ("--quiet", "--set", "train.epochs=1", "--set", "encoder.hidden=[16]",
         "--set", "decoder.hidden=[16]")  # fmt: skip


@pytest.fixture
def ecg(site: Site, tmp_path: Path) -> Site:
    """The plugin that `ae plugin new ecg` writes, installed."""
    write_plugin("ecg", tmp_path / "ecg")
    site.put_project(tmp_path / "ecg")
    return site


# What works.


def test_new_plugin_fits_on_a_screen_and_says_what_to_type(ae, tmp_path: Path) -> None:
    said = ae("plugin", "new", "my-sensor", "-o", "there").output
    assert "pip install ./there" in said and "ae train my-sensor-vae" in said
    module = tmp_path / "there/my_sensor/__init__.py"
    assert len(module.read_text().splitlines()) <= 60
    assert "import _" not in module.read_text() and "._" not in module.read_text()
    found = {p.relative_to(tmp_path / "there").as_posix() for p in tmp_path.rglob("there/**/*.*")}
    assert found == {"README.md", "a.csv", "b.csv", "my_sensor/__init__.py", "pyproject.toml",
                     "tests/test_my_sensor.py"}  # fmt: skip
    assert "$" not in module.read_text()
    again = ae("plugin", "new", "my-sensor", "-o", "there", code=2).output
    assert "is there already" in again


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ECG", "lower-case letters"),
        ("2ecg", "cannot be a package's name"),
        ("../ecg", "cannot be a package's name"),
        ("class", "a meaning of its own"),
        ("tests", "a meaning of its own"),
        ("example", "a meaning of its own"),
        ("json", "'json' is taken by a Python module"),
        ("torch", "taken by an installed package"),
        ("ae-toolkit", "taken by an installed package"),
        ("ae-image", "taken by a Python module"),
        ("melody", "taken by a modality of ae-toolkit"),
        ("mnist", "taken by a recipe of ae-toolkit"),
        ("file", "is there already"),
        ("full", "is there already"),
    ],
)
def test_bad_names_of_plugins(ae, tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert sentence in ae("plugin", "new", name, code=2).output
    assert sorted(tmp_path.rglob("*")) == before


def test_new_plugin_keeps_its_contract(ae, ecg: Site) -> None:
    rows = json.loads(ae("plugin", "check", "ECG", "--json").output)
    assert all(row["ok"] and not row["why"] for row in rows), rows
    assert "takes a training step" in ae("plugin", "check", "ecg").output


def test_every_verb_works_on_it(ae, ecg: Site, tmp_path: Path) -> None:
    ae("train", "ecg-vae", *QUICK)
    run = Path("runs/ecg-vae")
    (figure,) = run.glob("figures/*.png")
    with Pictures.open(figure) as picture:
        assert picture.width > 2 * picture.height > 400  # three rows of curves
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    ae("train", "ecg-vae", *QUICK, "--resume")
    assert "mse" in json.loads(ae("evaluate", run, "--json").output)["metrics"]
    ae("sample", run, "-n", 3, "-o", "new")
    assert np.loadtxt("new/0002.csv").shape == (128,)
    ae("reconstruct", run, "ecg/a.csv", "ecg/b.csv", "-o", "back")
    like, back = np.loadtxt("ecg/a.csv", skiprows=1), np.loadtxt("back/a.csv")
    assert back.shape == like.shape  # its own length
    assert abs(back.mean() - like.mean()) < like.std()  # and scale
    ae("interpolate", run, "ecg/a.csv", "ecg/b.csv", "-o", "walk.csv", "--steps", 5)
    assert Path("walk.csv").read_text().count("\n\n") == 4
    ae("encode", run, "walk.csv", "ecg/a.csv", "-o", "z.npz")
    with np.load("z.npz") as arrays:
        assert arrays["z"].shape == (6, 8)
        assert np.allclose(arrays["z"][0], arrays["z"][-1], atol=1.0)
    ae("decode", run, "z.npz", "-o", "decoded")
    assert len([*Path("decoded").iterdir()]) == 6
    ae("export", run, "-o", "shared")
    ae("sample", "shared", "-o", "more", "-n", 1)
    assert "ecg-vae" in ae("recipes").output


def test_it_trains_on_files_which_are_read_once(ae, ecg: Site, monkeypatch) -> None:
    data = Path("data")
    data.mkdir()
    for i in range(20):
        np.savetxt(data / f"{i}.csv", np.random.default_rng(i).normal(size=(50, 2)), delimiter=",")
    (data / "bad.csv").write_text("a,b\nc,d\n")
    (data / "empty.csv").write_text("")
    train = ["train", "ecg-vae", *QUICK, "--data", "data", "--set", "modality.columns=2"]
    said = ae(*train, "--out", "a").stderr
    assert "skipped 1 of" in said and "bad.csv: must hold rows of 2 numbers" in said
    Ecg = registry.modalities.get("ecg")
    monkeypatch.setattr(Ecg, "read", lambda *_: pytest.fail("the cache was not used"))
    ae(*train, "--out", "b")
    assert (Path("a/metrics.jsonl")).read_bytes() == Path("b/metrics.jsonl").read_bytes()


def test_script_trains_on_files_which_are_read_once(ae, tmp_path: Path) -> None:
    write_plugin("ecg", tmp_path / "ecg")
    script = (tmp_path / "ecg/ecg/__init__.py").read_text() + (
        "from ae_toolkit.registry import datasets, modalities, recipes\n"
        "modalities.register('ecg')(Ecg)\n"
        "datasets.register('ecg-example')(example)\n"
        "recipes.register('ecg-vae')(vae)\n"
    )
    corpora = cache_root() / "corpora"
    before = {*corpora.iterdir()} if corpora.exists() else set()
    for i, text in enumerate([script, script, script + "# changed\n"]):
        (tmp_path / "series.py").write_text(text)
        ae("--import", "series.py", "train", "ecg-vae", *QUICK, "--data", "ecg", "--out", f"r{i}")
        assert len({*corpora.iterdir()} - before) == (1, 1, 2)[i]
    ae("--import", "series.py", "sample", "r0", "-n", 1, "-o", "new")
    registry.modalities._local.clear()
    said = ae("sample", "r0", "-n", 1, "-o", "new", code=1).output
    assert "needs modality 'ecg' of this process" in said and "--import" in said
    (tmp_path / "bad.py").write_text("x = 1\n\nraise SystemExit(3)\n")
    assert (
        "--import bad.py: SystemExit: 3 (line 3)"
        in ae("--import", "bad.py", "recipes", code=1).output
    )


def test_one_off_in_a_notebook(tmp_path: Path) -> None:
    """No package at all: three decorators, then train, load and sample."""
    write_plugin("ecg", tmp_path / "ecg")
    known = {"__name__": "__main__"}
    exec((tmp_path / "ecg/ecg/__init__.py").read_text(), known)
    registry.modalities.register("ecg")(known["Ecg"])
    registry.datasets.register("ecg-example")(known["example"])
    registry.recipes.register("ecg-vae")(known["vae"])
    recipe = named("ecg-vae").with_({"train.epochs": 1, "encoder.hidden": [16]})
    model = load(fit(recipe, tmp_path / "run", progress=False))
    assert [item.shape for item in model.sample(2)] == [(128, 1)] * 2
    registry.modalities._local.clear()
    with pytest.raises(RunError, match="needs modality 'ecg' of this process, which is not inst"):
        load(tmp_path / "run")


def test_removed_plugin_is_missed_by_name(ae, ecg: Site) -> None:
    ae("train", "ecg-vae", *QUICK)
    ecg.remove("ecg")
    for verb in (["evaluate"], ["sample", "-o", "new"], ["export", "-o", "out"]):
        said = ae(verb[0], "runs/ecg-vae", *verb[1:], code=1).output
        assert "needs modality 'ecg' of ecg 0.1.0, which is not installed: pip install ecg" in said
    assert "there is no recipe 'ecg-vae'" in ae("train", "ecg-vae", code=2).output
    assert "mnist-2d" in ae("recipes").output


@pytest.mark.slow
def test_we_keep_our_own_contract() -> None:
    """Nothing of ours is privileged: what a stranger is asked, we are asked."""
    check_plugin("ae-toolkit")


# What a stranger may do wrong: one sentence that names the package, and the rest goes on.

EVERYTHING_ELSE = (["--help"], ["recipes"], ["models"], ["plugins"], ["recipes", "mnist-2d"])


def spoilt(site: Site, tmp_path: Path, old: str, new: str, name: str = "ecg") -> None:
    """Installs the new plugin with one thing changed."""
    write_plugin(name, tmp_path / "project")
    source = (tmp_path / "project" / name / "__init__.py").read_text()
    assert old in source
    site.put_project(tmp_path / "project", lambda text: text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "code", "sentence"),
    [
        ('"""Ecg', 'raise OSError(5, "bad disk")\n"""', 1,
         "recipe 'ecg-vae' of ecg 0.1.0 cannot be imported from 'ecg:vae': OSError"),
        ('"""Ecg', 'raise SystemExit(3)\n"""', 1, "'ecg:vae': SystemExit: 3"),
        ("def vae", "def other", 1, "AttributeError: module 'ecg' has no attribute 'vae'"),
        ("return Recipe.of(", "return dict(", 1,
         "recipe 'ecg-vae' of ecg 0.1.0 must return a Recipe, not dict"),
        ("return Recipe.of(", "return 1 / 0, (", 1,
         "recipe 'ecg-vae' of ecg 0.1.0 raises: ZeroDivisionError"),
        ('"train": {', '"trian": {', 1,
         "recipe 'ecg-vae' of ecg 0.1.0: recipe: there is no setting 'trian'"),
        ("length: int = 128, columns: int = 1", "length: int = 128, columns: int = 1, **rest", 1,
         "modality 'ecg' of ecg 0.1.0: its constructor takes any argument"),
        ("self, *, length", "self, length", 2, "'length' is not"),
        ("self.shape = (columns, length)", "self.shape = length", 1,
         "modality 'ecg' of ecg 0.1.0 must have a shape of positive numbers, not 128"),
        ('suffixes = (".csv",)', "suffixes = ()", 1,
         "modality 'ecg' of ecg 0.1.0 must have suffixes such as ('.csv',), not ()"),
        ('suffixes = (".csv",)', 'suffixes = (".csv",)\n    num_classes = "5"', 1,
         "modality 'ecg' of ecg 0.1.0 must have a whole number as num_classes, not '5'"),
        ("torch.tensor(y.T, dtype=torch.float32)", "torch.tensor(y.T), {'mood': 1.0}", 1,
         "modality 'ecg' of ecg 0.1.0 gives the label 'mood', which it does not declare"),
        ("self.shape = (columns, length)", "self.shape = {}['x']", 1,
         "modality 'ecg' of ecg 0.1.0 raises: KeyError: 'x'"),
        ("like=None, labels=None", "like=None", 1,
         "TypeError: Ecg.from_tensor(y, like=…, labels=…): got an unexpected keyword argument"),
        ("y.T, dtype", "y, dtype", 1, "modality 'ecg' of ecg 0.1.0 makes a tensor of shape"),
        ("return Example(torch.tensor(y.T, dtype=torch.float32))", "return Example(y.T)", 1,
         "modality 'ecg' of ecg 0.1.0 must make an Example of a tensor, not of ndarray"),
        ("return Example(torch.tensor(y.T, dtype=torch.float32))", "return None", 1,
         "modality 'ecg' of ecg 0.1.0 must make an Example of a tensor, not of NoneType"),
        ("    return of_items", "    return None\n    return of_items", 1,
         "dataset 'ecg-example' of ecg 0.1.0 must give Examples of a tensor, not NoneType"),
        ("noise = np", "noise = {}['x'] or np", 1,
         "dataset 'ecg-example' of ecg 0.1.0 raises: KeyError: 'x'"),
    ],
)  # fmt: skip
def test_bad_plugin_costs_itself_only(
    ae, site: Site, tmp_path: Path, old: str, new: str, code: int, sentence: str
) -> None:
    spoilt(site, tmp_path, old, new)
    assert sentence in ae("train", "ecg-vae", *QUICK, code=code).output.replace("\n", " ")
    for words in EVERYTHING_ELSE:
        ae(*words)
    rows = examine("ecg")
    assert any(not row.ok and row.why for row in rows)


def test_data_set_of_another_shape_or_of_no_examples(ae, site: Site, tmp_path: Path) -> None:
    for body, sentence in (
        ("Examples(torch.zeros(5, 7), None, {}, list('abcde'))", "has examples of shape (7,)"),
        (
            "Examples(torch.zeros(5, 1, 128), None, {}, [])",
            "must give a group for each of its 5 examples",
        ),
        ("Examples(torch.zeros(0, 1, 128), None, {}, [])", "gives no examples of the train split"),
        ("Examples(None, None, {}, [])", "must give Examples of a tensor, not NoneType"),
    ):
        source = f"import torch\nfrom ae_toolkit import Examples\ndef bad(*, modality, split):\n" \
                 f"    return {body}\n"  # fmt: skip
        write_plugin("ecg", tmp_path / "ecg")
        site.put_project(tmp_path / "ecg")
        site.put("bad", {"datasets": {"bad": "bad:bad"}}, source=source)
        said = ae("train", "ecg-vae", "--data", "bad", *QUICK, code=1 if "gives" in sentence
                  or "must" in sentence else 2).output  # fmt: skip
        assert sentence in said and "dataset 'bad'" in said
        site.remove("bad")
        site.remove("ecg")
        shutil.rmtree(tmp_path / "ecg")


def test_reader_that_raises_is_named_with_the_file(ae, site: Site, tmp_path: Path) -> None:
    spoilt(site, tmp_path, "def read(self, path):", "def read(self, path):\n        {}['x']")
    ae("train", "ecg-vae", *QUICK)
    project = tmp_path / "project"
    sentence = "a.csv: modality 'ecg' of ecg 0.1.0 cannot read it: KeyError: 'x'"
    for words in (
        ["reconstruct", "runs/ecg-vae", project / "a.csv", "-o", "out"],
        ["interpolate", "runs/ecg-vae", project / "a.csv", project / "b.csv", "-o", "w.csv"],
        ["encode", "runs/ecg-vae", project, "-o", "z.npz"],
    ):
        assert sentence in ae(*words, code=1).output
    said = ae("train", "ecg-vae", "--data", project, "--out", "x", *QUICK, code=1).output
    assert "none of 2 files could be read, modality 'ecg' of ecg 0.1.0 cannot read it" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "verb"),
    [
        ("rows = y.numpy().T", "rows = {}['x']", "sample"),
        ("blocks = [", "blocks = {}['x'], [", "sample"),
        ('suffixes = (".csv",)', 'suffixes = (".csv",)\n    def augment(self, y, step): {}["x"]',
         "train"),
    ],
)  # fmt: skip
def test_whatever_else_raises_is_blamed_on_the_package(
    ae, ecg: Site, tmp_path: Path, old: str, new: str, verb: str
) -> None:
    ae("train", "ecg-vae", *QUICK)
    ecg.remove("ecg")
    shutil.rmtree(tmp_path / "ecg", ignore_errors=True)
    spoilt(ecg, tmp_path, old, new)
    words = {"sample": ["sample", "runs/ecg-vae", "-o", "new"],
             "train": ["train", "ecg-vae", *QUICK, "--out", "other"]}[verb]  # fmt: skip
    said = ae(*words, code=1).output
    assert "ecg 0.1.0 raises KeyError: 'x'" in said and "ecg/__init__.py, line" in said
    assert not Path("new").exists() or not [*Path("new").iterdir()]


def test_exit_of_a_plugin_is_no_success(ae, ecg: Site, tmp_path: Path) -> None:
    ae("train", "ecg-vae", *QUICK)
    ecg.remove("ecg")
    shutil.rmtree(tmp_path / "ecg", ignore_errors=True)
    spoilt(ecg, tmp_path, "rows = y.numpy().T", "raise SystemExit(0)")
    assert "ecg 0.1.0 raises SystemExit" in ae("sample", "runs/ecg-vae", "-o", "n", code=1).output


def test_alignment_that_is_none_is_told(ae, ecg: Site, tmp_path: Path) -> None:
    ae("train", "ecg-vae", *QUICK)
    ecg.remove("ecg")
    shutil.rmtree(tmp_path / "ecg", ignore_errors=True)
    spoilt(
        ecg,
        tmp_path,
        "    def write(",
        "    def align(self, a, b):\n        return [a]\n\n    def write(",
    )
    files = [tmp_path / "project" / name for name in ("a.csv", "b.csv")]
    said = ae("interpolate", "runs/ecg-vae", *files, "-o", "w.csv", code=1).output
    assert "modality 'ecg' of ecg 0.1.0 cannot align two items" in said
    assert any("cannot align" in check.why for check in examine("ecg"))


def test_what_a_plugin_prints_does_not_spoil_json(ae, site: Site, tmp_path: Path) -> None:
    spoilt(site, tmp_path, '"""Ecg', 'print("hello")\n"""Ecg')
    json.loads(ae("plugins", "--json").stdout)
    json.loads(ae("plugin", "check", "ecg", "--json").stdout)


def test_taken_names_are_told_apart(ae, site: Site, tmp_path: Path, run: Path) -> None:
    source = "import click\nclass Image: pass\ndef vae(): pass\n@click.command()\ndef image():\n" \
             "    'Mine.'\n    click.echo('mine')\n"  # fmt: skip
    site.put(
        "rival",
        {
            "recipes": {"mnist-2d": "rival:vae"},
            "commands": {"image": "rival:image", "train": "rival:image"},
            "modalities": {"image": "rival:Image"},
        },
        source=source,
    )
    # Ours go on working for everybody, and whose the conflict is can be seen.
    ae("train", "mnist-2d", *QUICK, "--data", "mnist-sample")
    assert Path("runs/mnist-2d").is_dir()
    ae("sample", run, "-n", 1, "-o", "new")
    listed = ae("plugins").output
    assert listed.count("so write 'rival:mnist-2d'") == 1
    assert "has recipe 'mnist-2d' too" in listed.partition("rival 0.1.0")[2]
    assert "ae itself has command 'train' too, so write 'rival:train'" in listed
    names = [row["name"] for row in json.loads(ae("recipes", "--json").output)]
    assert {"mnist-2d", "rival:mnist-2d"} <= {*names} and len({*names}) == len(names)
    assert ae("rival:image").output == "mine\n"
    assert "grid" in ae("image", "--help").output
    assert ae("rival:train").output == "mine\n"
    assert "rival:image" in ae("--help").output and "rival:train" in ae("--help").output
    wrong = [row.why for row in examine("rival", verbs=("train",)) if not row.ok]
    assert any("write 'rival:mnist-2d'" in why for why in wrong)
    assert any("ae itself has command 'train' too" in why for why in wrong)


def test_names_of_two_strangers_must_be_told_apart(ae, site: Site) -> None:
    for name in ("one", "two"):
        site.put(name, {"recipes": {"ours": f"{name}:vae"}}, source="def vae(): pass\n")
    said = ae("recipes", "ours", code=2).output.replace("\n", " ")
    assert "write 'one:ours' or 'two:ours'" in said
    assert ae("plugins").output.count("has recipe 'ours' too") == 2


WRONG = """
import torch
from ae_toolkit.contracts import Code
from ae_toolkit.parts.bottleneck import Deterministic
from ae_toolkit.parts.likelihood import SquaredError
from ae_toolkit.parts.objective import ELBO
from ae_toolkit.parts.prior import StandardNormal
from ae_toolkit.recipe import named
from ae_toolkit.parts.backbones.mlp import MLPEncoder

class Wrong(Deterministic):
    def __init__(self, *, in_shapes, cond_dim, prior, z_dim: int = 2, wrong: str = "rate"):
        super().__init__(in_shapes=in_shapes, cond_dim=cond_dim, prior=prior, z_dim=z_dim)
        self.wrong = wrong

    def forward(self, h, c, *, num_samples, step):
        code = super().forward(h, c, num_samples=num_samples, step=step)
        return {
            "rate": code._replace(rate=torch.zeros(len(c))),
            "summed": code._replace(rate=torch.zeros(num_samples, len(c))),
            "z": code._replace(z=tuple(z[:, :1] for z in code.z)),
            "levels": code._replace(z=2 * code.z),
            "penalty": code._replace(penalty=code.penalty[:, None]),
            "raise": None,
        }[self.wrong] or self.missing

class Lies(MLPEncoder):
    def __init__(self, *, in_shape, num_classes, cond_dim):
        super().__init__(in_shape=in_shape, num_classes=num_classes, cond_dim=cond_dim, hidden=[8])
        self.out_shapes = ((9,),)

class Scatters(MLPEncoder):
    def __init__(self, *, in_shape, num_classes, cond_dim, dtype: str = "float32"):
        super().__init__(in_shape=in_shape, num_classes=num_classes, cond_dim=cond_dim, hidden=[8])
        self.dtype = getattr(torch, dtype)

    def forward(self, x, c, mask):
        (h,) = super().forward(x, c, mask)
        out = torch.zeros(h.shape)
        out[torch.arange(len(h))] = h
        return (out.to(self.dtype),)

class Summed(StandardNormal):
    def kl(self, posterior, c):
        return super().kl(posterior, c).sum(-1)

class Noisy(ELBO):
    def __call__(self, terms, step):
        return super().__call__(terms, step) + step.randn(tuple(terms.penalty.shape))

class Scalar(SquaredError):
    def __init__(self, *, num_classes):
        super().__init__(num_classes=num_classes)

    def nll(self, params, y, mask):
        return super().nll(params, y, mask).sum()

def vae(**changes):
    small = {"data": "mnist-sample", "decoder.hidden": [8]}
    return named("mnist-2d").with_({**small, **changes})

def paid():
    "Pays in the wrong shape."
    return vae(name="paid", bottleneck={"name": "wrong", "wrong": "penalty"})

def half():
    "Scatters."
    return vae(name="half", encoder={"name": "scatters"})
"""

ODD = {
    "bottlenecks": {"wrong": "odd:Wrong"},
    "priors": {"summed": "odd:Summed"},
    "encoders": {"lies": "odd:Lies", "scatters": "odd:Scatters"},
    "likelihoods": {"scalar": "odd:Scalar"},
    "objectives": {"noisy": "odd:Noisy"},
}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"bottleneck": {"name": "wrong", "z_dim": 2}},
         "bottleneck 'wrong' of odd 0.1.0 gives the rate of shape (2,), and must give (K, B, D)"),
        ({"bottleneck": {"name": "wrong", "z_dim": 2, "wrong": "z"}},
         "gives z on level 0 of shape (2, 1), and must give (N, *z_shapes[i]), here (2, 2)"),
        ({"bottleneck": {"name": "wrong", "z_dim": 2, "wrong": "levels"}},
         "gives z on 2 levels, and must give 1"),
        ({"bottleneck": {"name": "wrong", "z_dim": 2, "wrong": "penalty"}},
         "gives the penalty of shape (2, 1), and must give (B,), here (2,)"),
        ({"bottleneck": {"name": "wrong", "z_dim": 2, "wrong": "raise"}},
         "bottleneck 'wrong' of odd 0.1.0 fails: AttributeError"),
        ({"encoder": {"name": "lies"}},
         "encoder 'lies' of odd 0.1.0 gives features on level 0 of shape (2, 8), and must give "
         "(B, *out_shapes[i]), here (2, 9)"),
        ({"likelihood": {"name": "scalar"}},
         "likelihood 'scalar' of odd 0.1.0 gives the nll of shape (), and must give (N,), here "
         "(2,)"),
        ({"bottleneck": {"name": "wrong", "z_dim": 2, "wrong": "summed"}},
         "gives the rate of shape (1, 2), and must give (K, B, D)"),
        ({"prior": "summed"},
         "prior 'summed' of odd 0.1.0 gives the KL of shape (2,), and must give (B, D), here "
         "(2, 2)"),
        ({"encoder": {"name": "scatters", "dtype": "float64"}},
         "encoder 'scatters' of odd 0.1.0 gives features on level 0 in float64, not float32"),
        ({"encoder": "scatters", "train.precision": "bf16"},
         "encoder 'scatters' of odd 0.1.0 fails under bf16 autocast: RuntimeError: Index put"),
        ({"encoder": {"name": "scatters", "dtype": "complex64"}},
         "bottleneck 'gaussian' of ae-toolkit 0.1.0 fails beside parts of odd 0.1.0: RuntimeError"),
    ],
)  # fmt: skip
def test_a_part_that_breaks_its_contract_is_named(
    changes: dict, sentence: str, site: Site, tmp_path: Path
) -> None:
    site.put("odd", ODD, source=WRONG)
    with pytest.raises(RunError) as raised:
        fit(small().with_(changes), tmp_path / "run", progress=False)
    assert sentence in str(raised.value)


def test_check_says_which_recipe_keeps_a_part_from_being_tried(site: Site, tmp_path: Path) -> None:
    spoilt(site, tmp_path, '"train": {', '"trian": {')
    untried = {check.what: check.why for check in examine("ecg") if not check.tried}
    assert {*untried} == {"modality 'ecg'", "dataset 'ecg-example'"}
    assert all(why.endswith("first mend 'ecg-vae'") for why in untried.values()), untried


def test_check_looks_at_what_a_command_would_write_at_its_end(
    ae, site: Site, tmp_path: Path
) -> None:
    figure = "    def figure(self, rows, path):\n        from ae_toolkit.files import writing\n" \
             "        with writing(path) as file:\n            file.write_bytes(b'drawn')\n\n" \
             "    def write("  # fmt: skip
    spoilt(site, tmp_path, "    def write(", figure)
    assert "all well" in ae("plugin", "check", "ecg").output


def test_check_tries_parts_as_a_recipe_sets_them(site: Site) -> None:
    points = {"bottlenecks": {"wrong": "odd:Wrong"}, "encoders": {"scatters": "odd:Scatters"}}
    recipes = {"recipes": {"paid": "odd:paid", "half": "odd:half"}}
    site.put("odd", {**points, **recipes}, source=WRONG)
    wrong = {check.what: check.why for check in examine("odd") if not check.ok}
    assert (
        "bottleneck 'wrong' of odd 0.1.0 gives the penalty of shape (4, 1), and must give (B,)"
        in wrong.pop("recipe 'paid' takes a training step")
    )
    assert (
        "encoder 'scatters' of odd 0.1.0 fails under bf16 autocast: RuntimeError: Index put"
        in wrong.pop("recipe 'half' takes a training step")
    )
    assert (
        "bottleneck 'wrong' of odd 0.1.0 gives the rate of shape (4,), and must give (K, B, D)"
        in wrong.pop("bottleneck 'wrong' keeps its contract")
    )
    assert "under bf16 autocast" in wrong.pop("encoder 'scatters' keeps its contract")
    assert not wrong


def test_objective_may_ask_for_noise(site: Site, tmp_path: Path) -> None:
    site.put("odd", ODD, source=WRONG)
    recipe = small(objective="noisy", train__epochs=1)
    assert checkpoint.checkpoints(fit(recipe, tmp_path / "run", progress=False))


def test_command_that_is_none(ae, site: Site) -> None:
    site.put("odd", {"commands": {"odd": "odd:odd"}}, source="odd = 3\n")
    sentence = "command 'odd' of odd 0.1.0 is no click command, but int"
    assert sentence in ae("odd", code=1).output
    assert sentence in ae("plugins").output
    assert any(row.why == sentence for row in examine("odd"))
    assert "odd" in ae("--help").output


def test_command_of_a_stranger_may_fail(ae, site: Site) -> None:
    source = (
        "import click\n@click.group()\ndef odd(): 'Odd things.'\n"
        "@odd.command()\ndef usage(): raise click.UsageError('not so')\n"
        "@odd.command()\ndef bug(): raise KeyError('x')\n"
        "@odd.command()\ndef gone(): open('gone.txt')\n"
    )
    site.put("odd", {"commands": {"odd": "odd:odd"}}, source=source)
    assert "not so" in ae("odd", "usage", code=2).output
    assert "odd 0.1.0 raises KeyError: 'x'" in ae("odd", "bug", code=1).output
    assert "gone.txt: No such file" in ae("odd", "gone", code=1).output
    assert all(row.ok for row in examine("odd"))


def test_contract_is_known_before_anything_is_imported(ae, site: Site) -> None:
    source = "raise AssertionError('imported')\n"
    site.put("later", {"recipes": {"later": "later:x"}}, source=source, contract=99)
    site.put("early", {"recipes": {"early": "early:x"}}, source=source, contract=1)
    said = ae("train", "later", code=1).output.replace("\n", " ")
    assert (
        f"later 0.1.0 was written for contract 99 and this is ae-toolkit 0.1.0 with contract "
        f"{CONTRACT_VERSION}: pip install --upgrade ae-toolkit"
    ) in said
    assert "pip install --upgrade early" in ae("train", "early", code=1).output
    assert "broken: later 0.1.0 was written for contract 99" in ae("recipes").output
    (row,) = (r for r in json.loads(ae("plugins", "--json").output) if r["distribution"] == "later")
    assert row["contract"] == "99" and "upgrade" in row["broken"][0]
    assert [row.ok for row in examine("later")] == [False]


def test_contract_may_be_silent_or_nonsense(site: Site) -> None:
    site.put("quiet", {"recipes": {"quiet": "quiet:x"}}, source="x = dict\n", contract=None)
    assert registry.recipes.get("quiet") is dict
    first = examine("quiet")[0]
    assert first.ok and 'ae_toolkit.contract"] 2 = "quiet"' in first.why
    site.put("odd", {"recipes": {"odd": "odd:x"}}, source="x = dict\n", contract="two")
    assert registry.recipes.get("odd") is dict
    assert "not 'two'" in examine("odd")[0].why


def test_broken_metadata_is_told_and_harms_nobody(ae, site: Site) -> None:
    for name, points in {
        "nameless": b"[ae_toolkit.encoders]\nx = nameless:x\n",
        "garbled": b"[ae_toolkit.encoders]\nno equals sign\n",
        "binary": b"\xff\xfe\x00",
    }.items():
        info = site.folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_bytes(points)
        if name != "nameless":
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (site.folder / "leftover-1.0.dist-info").mkdir()
    site.put("late", {"encoders": {"late": "late:x"}}, source="raise KeyError('k')\n")
    site.put("typo", {"encoder": {"wave": "typo:x"}}, source="x = dict\n")
    said = ae("plugins").output
    for name in ("nameless", "garbled", "binary"):
        assert f"{name}-1.0.dist-info: broken metadata" in said
    assert "leftover" not in said
    assert "encoder 'late' of late 0.1.0 cannot be imported from 'late:x': KeyError: 'k'" in said
    assert "no group 'ae_toolkit.encoder': did you mean 'ae_toolkit.encoders'" in said
    for words in EVERYTHING_ELSE:
        ae(*words)


def test_interrupt_is_let_through(site: Site) -> None:
    site.put("slow", {"encoders": {"slow": "slow:x"}}, source="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        registry.encoders.get("slow")


def test_unknown_plugin_suggests_the_nearest(ae, ecg: Site) -> None:
    assert "no plugin 'ecgg' is installed: did you mean 'ecg'" in ae(
        "plugin", "check", "ecgg", code=2
    ).output  # fmt: skip
    assert "provides nothing" in ae("plugin", "check", "click", code=2).output


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("default_rng(0)", "default_rng()", "gives other examples each time: seed it"),
        ("    return of_items", "    waves[9, 3] = np.nan\n    return of_items",
         "split, of group '9', has a NaN or an infinite number as 'y'"),
        ('"""Small VAE of series."""', "pass", "no docstring"),
        ('"name": "ecg-vae"', '"name": "ecg"', "registered as 'ecg-vae', but says 'ecg'"),
        ("self.shape = (columns, length)", "self.shape = (columns, length)\n"
         "        self.labels = {'kind': 3}", "data type declares ['kind']"),
        ('write_text("\\n\\n".join(blocks)', 'write_text("".join("x")', "must hold rows of 1"),
        ("return rows if", "return None if", "NoneType"),
        ("    return of_items", "    import torch\n    from ae_toolkit import Examples\n"
         "    return Examples(torch.zeros(5, 1, 128), None, {}, list('abcde'))\n"
         "    return of_items", "the groups of its splits must differ, and both have 'a'"),
        ("*, modality, split", "*, modality, split, **rest", "takes any argument, by '*rest'"),
        ("*, modality, split", "modality, split", "not keyword-only"),
        ("*, modality, split", "*, modality", "must take 'split'"),
    ],
)  # fmt: skip
def test_check_finds(site: Site, tmp_path: Path, old: str, new: str, sentence: str) -> None:
    spoilt(site, tmp_path, old, new)
    wrong = [row.why for row in examine("ecg") if not row.ok]
    assert any(sentence in why for why in wrong), wrong


PARTS = """
import torch
class Good(torch.nn.Module):
    '''An encoder of its own.'''
    def __init__(self, *, in_shape, num_classes, cond_dim, width: int = 8):
        super().__init__()
        self.layer = torch.nn.Linear(torch.Size(in_shape).numel() + cond_dim, width)
        self.out_shapes = ((width,),)
    def forward(self, x, c, mask):
        return (self.layer(torch.cat([x.flatten(1), c], 1)),)
class Idle(Good):
    '''An encoder with a weight that does nothing.'''
    def __init__(self, *, in_shape, num_classes, cond_dim):
        super().__init__(in_shape=in_shape, num_classes=num_classes, cond_dim=cond_dim)
        self.idle = torch.nn.Parameter(torch.ones(3))
class Blind(Good):
    '''An encoder that knows of no mask.'''
    def forward(self, x, c):
        return super().forward(x, c, None)
class Exits(Good):
    '''An encoder that leaves.'''
    def forward(self, x, c, mask):
        raise SystemExit
"""


def test_check_tries_parts_that_no_recipe_uses(site: Site) -> None:
    names = {"good": "kit:Good", "idle": "kit:Idle", "exits": "kit:Exits"}
    site.put("kit", {"encoders": names}, source=PARTS)
    wrong = {row.what: row.why for row in examine("kit") if not row.ok}
    assert set(wrong) == {"encoder 'idle' keeps its contract", "encoder 'exits' keeps its contract"}
    assert "idle gets no gradient" in wrong["encoder 'idle' keeps its contract"]
    assert "SystemExit" in wrong["encoder 'exits' keeps its contract"]


def test_part_that_does_not_fit_is_told_by_its_package(ae, site: Site) -> None:
    site.put("kit", {"encoders": {"blind": "kit:Blind"}}, source=PARTS)
    settings = ["--set", "encoder.name=blind", "--set", "train.epochs=1", "--quiet"]
    said = ae("train", "mnist-2d", "--data", "mnist-sample", *settings, code=1).output
    assert "encoder 'blind' of kit 0.1.0 fails: TypeError: Blind.forward() takes 3" in said


# As a user does it.


@pytest.mark.slow
def test_from_pip_install_to_pip_uninstall(tmp_path: Path) -> None:
    target = tmp_path / "target"
    environment = {
        **os.environ,
        "PYTHONPATH": str(target),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }

    def run(*words: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code and "Traceback" not in said, said
        return said

    run("-m", "ae_toolkit", "plugin", "new", "ecg")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    done = subprocess.run([*pip, "./ecg"], cwd=tmp_path, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot build a package here: {done.stderr.strip().splitlines()[-1]}")
    assert "all well" in run("-m", "ae_toolkit", "plugin", "check", "ecg")
    assert "1 passed" in run("-m", "pytest", "-q", "ecg")
    run("-m", "ae_toolkit", "train", "ecg-vae", "--set", "train.epochs=1", "--quiet")
    run("-m", "ae_toolkit", "sample", "runs/ecg-vae", "-o", "new")
    walk = ["interpolate", "runs/ecg-vae", "ecg/a.csv", "ecg/b.csv", "-o", "walk.csv"]
    run("-m", "ae_toolkit", *walk)
    assert (tmp_path / "walk.csv").read_text().count("\n\n") == 8
    shutil.rmtree(target)
    said = run("-m", "ae_toolkit", "evaluate", "runs/ecg-vae", code=1)
    assert "needs modality 'ecg' of ecg 0.1.0, which is not installed: pip install ecg" in said
    assert checkpoint.checkpoints(tmp_path / "runs/ecg-vae")
