"""The `ae` command: every verb on a real model, and one sentence for every kind of bad input."""

from __future__ import annotations

import dis
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from itertools import count
from pathlib import Path
from types import CodeType
from typing import Any

import click
import numpy as np
import pretty_midi
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, SAMPLES, small, untrained
from PIL import Image as Pictures

from ae_toolkit import Autoencoder, registry
from ae_toolkit.cli.app import main
from ae_toolkit.inference import zoo
from ae_toolkit.recipe import named
from ae_toolkit.runs import checkpoint

THREE, EIGHT = SAMPLES / "digit-3.png", SAMPLES / "digit-8.png"

#: What `ae --help` may import beyond the standard library: nothing that is heavy.
ALLOWED = {"ae_toolkit", "click", "colorama"}


def size_of(path: str) -> tuple[int, int]:
    with Pictures.open(path) as picture:
        return picture.size


def test_help_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['ae', '--help']\n"
        "from ae_toolkit.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "new = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "print('IMPORTED', *sorted(new - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = set(result.stdout.rpartition("IMPORTED")[2].split())
    assert imported <= ALLOWED, imported - ALLOWED


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "ae_toolkit", "--help"], capture_output=True, check=True
        )
        times.append(time.perf_counter() - began)
    assert min(times) < 1.0  # 0.3 s on an idle machine; see scripts/measure.py


@pytest.mark.parametrize(
    "verb",
    [
        "train",
        "runs",
        "evaluate",
        "reconstruct",
        "sample",
        "interpolate",
        "encode",
        "decode",
        "export",
        "plugin new",
        "plugin check",
        "image grid",
        "image scatter",
        "image sample",
        "music interpolate",
        "music sample",
        "music vary",
        "music shift",
        "music render",
        "music info",
        "music evaluate",
    ],
)
def test_every_verb_shows_an_example(ae, verb: str) -> None:
    assert f"ae {verb}" in ae(*verb.split(), "--help").output.partition("Example")[2]


def test_listings(ae) -> None:
    assert "mnist-2d" in ae("recipes").output
    assert "encoder.dropout            0.0" in ae("recipes", "mnist-2d").output
    assert json.loads(ae("recipes", "mnist-2d", "--json").output)["train.seed"] == 0
    rows = json.loads(ae("plugins", "--json").output)
    (own,) = (row for row in rows if row["distribution"] == "ae-toolkit")
    assert "mlp" in own["parts"]["encoder"] and own["contract"] == "2" and not own["broken"]
    assert isinstance(json.loads(ae("models", "--json").output), list)


def test_generic_verbs(ae, run: Path, tmp_path: Path) -> None:
    ae("reconstruct", run, THREE, EIGHT, "-o", "back")
    assert sorted(p.name for p in Path("back").iterdir()) == ["digit-3.png", "digit-8.png"]
    assert "seed 4" in ae("sample", run, "-n", 3, "-o", "new", "--seed", 4).output
    assert len(list(Path("new").iterdir())) == 3
    ae("interpolate", run, THREE, EIGHT, "-o", "walk.png", "--steps", 5)
    assert size_of("walk.png") == (5 * 28 + 4 * 2, 28)
    ae("encode", run, THREE, EIGHT, "-o", "z.npz")
    with np.load("z.npz") as arrays:
        assert arrays["z"].shape == (2, 2)
    ae("decode", run, "z.npz", "-o", "decoded")
    assert (Path("decoded") / "digit-3.png").read_bytes() == Path("back/digit-3.png").read_bytes()
    ae("export", run, "-o", "shared")
    assert {p.name for p in Path("shared").iterdir()} == {
        checkpoint.CONFIG_FILE,
        checkpoint.WEIGHTS_FILE,
    }


def test_verbs_take_a_condition_that_files_do_not_say(ae) -> None:
    for label in (3, 5):
        given = ("--label", f"digit={label}")
        ae("reconstruct", "mnist-cvae", THREE, "-o", f"back-{label}", *given)
        ae("encode", "mnist-cvae", THREE, "-o", f"z-{label}.npz", *given)
        ae("interpolate", "mnist-cvae", THREE, EIGHT, "-o", f"walk-{label}.png", *given)
        with np.load(f"z-{label}.npz") as arrays:
            assert arrays["label.digit"] == [label]
    assert Path("back-3/digit-3.png").read_bytes() != Path("back-5/digit-3.png").read_bytes()
    assert Path("walk-3.png").read_bytes() != Path("walk-5.png").read_bytes()
    said = ae("encode", "mnist-cvae", THREE, "-o", "z.npz", code=2).output
    assert "conditioned on 'digit'" in said


def test_elements_are_drawn_at_a_temperature_of_their_own(ae) -> None:
    sample = ["sample", "mnist-vae", "-n", 1, "--temperature", 0, "-o"]
    ae(*sample, "guess")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        ae(*sample, out, "--likelihood-temperature", 1, "--seed", seed)
    guess, a, b, c = (Path(name, "0000.png").read_bytes() for name in ("guess", *"abc"))
    assert guess != a == b != c
    with Pictures.open("a/0000.png") as drawn, Pictures.open("guess/0000.png") as grey:
        assert {*drawn.tobytes()} == {0, 255} != {*grey.tobytes()}


def test_evaluate_reports_distortions_as_such(ae, run: Path) -> None:
    report = json.loads(ae("evaluate", run, "--json").output)
    assert report["is_density"] is False and "nll" not in report
    total = report["distortion"] + report["rate"]
    assert report["distortion_plus_rate"] == pytest.approx(total)
    assert report["num_examples"] == 200 and report["split"] == "test"
    assert 0 < report["probes"]["digit"] <= 1
    assert "negative_elbo" not in report
    assert "no NLL" in ae("evaluate", run, "--nll", 10, code=2).output


def test_codes_without_a_rate_have_no_elbo_and_an_untrained_prior(ae, run: Path) -> None:
    recipe = small(
        bottleneck="deterministic",
        corruption="binarise",
        likelihood="bernoulli",
        condition=["digit"],
    )
    untrained(recipe, Path("plain"))
    report = json.loads(ae("evaluate", "plain", "--json").output)
    assert report["is_density"] and report["distortion"] > 0
    assert not {"rate", "negative_elbo", "distortion_plus_rate", "nll"} & {*report}
    shown = ae("evaluate", "plain").output
    assert "distortion" in shown and "elbo" not in shown and "nll" not in shown
    refused = ae("evaluate", "plain", "--nll", 10, code=2).output
    assert "'deterministic' has no rate, so there is neither an ELBO nor an NLL" in refused
    said = ae("sample", "plain", "-n", 1, "-o", "new", "--label", "digit=1").stderr
    assert "they need not follow the prior" in said and said.count("\n") == 1
    assert "prior" not in ae("sample", run, "-n", 1, "-o", "others").stderr
    for name, folder in zoo.bundled().items():
        shipped = checkpoint.load_config(folder)
        rate = shipped.recipe.bottleneck.name not in ("deterministic", "adversarial")
        assert ("rate" in shipped.card["metrics"]) == rate, name


def test_train_on_a_folder_of_pictures_then_look(ae, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        size = (40, 30, 3) if i % 2 else (28, 28)
        Pictures.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(
            folder / f"{i}.{'jpg' if i % 3 else 'webp'}"
        )
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    result = ae(
        "train", "mnist-2d", "--data", "pictures", "--out", "r", "--set", "train.epochs=1",
        "--set", "encoder.hidden=[8]", "--set", "decoder.hidden=[8]", "--quiet", "--json",
    )  # fmt: skip
    assert "skipped 1 of" in result.stderr and "broken.png" in result.stderr
    assert json.loads(result.stdout)["run"] == "r"
    ae("image", "grid", "--model", "r", "-o", "g.png", "-n", 4)
    assert size_of("g.png")[0] > 100
    report = json.loads(ae("evaluate", "r", "--json").stdout)
    assert report["data"] == "files"


def test_own_part_from_a_file(ae, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from ae_toolkit.registry import encoders\n"
        "@encoders.register('mine')\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, *, in_shape, num_classes, cond_dim, width: int = 4):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(784, width)\n"
        "        self.out_shapes = ((width,),)\n"
        "    def forward(self, x, c, mask):\n"
        "        return (self.layer(x.flatten(1)),)\n"
    )
    train = ["train", "mnist-2d", "--data", "mnist-sample", "--out", "r", "--quiet"]
    more = ["--set", "encoder.name=mine", "--set", "encoder.width=3", "--set", "train.epochs=1"]
    ae("--import", "mine.py", *train, *more)
    ae("--import", "mine.py", "evaluate", "r")
    registry.encoders._local.clear()
    said = ae("evaluate", "r", code=1).output
    assert "needs encoder 'mine'" in said and "--import" in said
    (tmp_path / "bad.py").write_text("1 / 0")
    assert "ZeroDivisionError" in ae("--import", "bad.py", "recipes", code=1).output
    assert "no such file" in ae("--import", "gone.py", "recipes", code=2).output


def test_image_commands(ae, run: Path) -> None:
    output = ae("image", "scatter", "--model", run, "--json", "-o", "s.png").output
    assert 0 < json.loads(output)["accuracy"]["pca"] < 1
    ae("image", "sample", "--model", run, "-n", 5, "-o", "sheet.pdf")
    assert Path("sheet.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("train mnist-2x", 2, "there is no recipe 'mnist-2x': did you mean 'mnist-2d'"),
        ("train mnist-2d --set train.lrr=1", 2, "no setting 'train.lrr'"),
        ("train mnist-2d --data nowhere", 2, "'nowhere' is neither a file or folder nor one of"),
        ("train mnist-2d --device cuda:77", 2, "PyTorch sees"),
        ("train mnist-2d --device tpu", 2, "choose auto, cpu, cuda"),
        ("train mnist-2d --data empty", 2, "no files that end in .png"),
        ("train mnist-2d --resume --out nothing", 2, "holds no run to resume"),
        ("evaluate nowhere", 2, "there is no model 'nowhere'"),
        ("evaluate empty", 2, "is neither a run directory nor a model folder"),
        ("reconstruct RUN gone.png -o out", 2, "gone.png: there is no such file"),
        ("reconstruct RUN empty.png -o out", 1, "empty.png: is empty"),
        ("reconstruct RUN text.png -o out", 1, "text.png: is not a picture"),
        ("reconstruct RUN cut.png -o out", 1, "cut.png: is cut short or broken"),
        ("reconstruct RUN bomb.png -o out", 1, "bomb.png: is 40000x1 pixels large"),
        ("interpolate RUN THREE text.png -o out.png", 1, "text.png: is not a picture"),
        ("interpolate RUN THREE THREE -o out.mid", 2, "choose a name that ends in .png"),
        ("interpolate RUN THREE THREE -o text.png/out.png", 1, "out.png: cannot be written"),
        ("decode RUN text.png -o out", 1, "text.png: holds no codes"),
        ("decode RUN five.npy -o out", 2, "do not fit this model; it takes (N, 2)"),
        ("sample RUN -o out --label digit", 2, "--label takes name=number"),
        ("sample RUN -o out --label colour=3", 2, "there is no label 'colour'"),
        ("image grid --model RUN --axes 0 7", 2, "choose two different ones of 0 to 1"),
        ("image grid --model RUN -o text.png/g.png", 1, "g.png: cannot be written"),
        ("image grid --model TENSORS", 2, "'ae image' needs one of pictures"),
        ("export RUN -o empty-not", 2, "is a folder with something else in it"),
        ("grdi", 2, "there is no command 'grdi'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(
    ae, run: Path, tmp_path: Path, arguments: str, code: int, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty-not").mkdir()
    (tmp_path / "empty-not/thesis.tex").write_text("")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(THREE.read_bytes()[:150])
    Pictures.new("L", (40_000, 1)).save(tmp_path / "bomb.png")
    np.save(tmp_path / "five.npy", np.zeros((1, 5)))
    if "TENSORS" in arguments:
        _tensor_model(tmp_path / "tensors")
    before = sorted(tmp_path.rglob("*"))
    words = {"RUN": run, "THREE": THREE, "TENSORS": tmp_path / "tensors"}
    result = ae(*(words.get(word, word) for word in arguments.split()), code=code)
    assert sentence in result.output.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"


def _tensor_model(folder: Path) -> None:
    """A model of another data type."""
    from ae_toolkit.testing.contracts import Tensors, tiny_recipe

    registry.modalities.register("tensors")(Tensors)
    registry.datasets.register("tensors")(lambda *, modality, split: None)
    untrained(tiny_recipe(), folder)


# Every option does something.


def commands(group: click.Group = main) -> Iterator[tuple[str, click.Command]]:
    """All of them, `ae` left out of their names."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", c) for inner, c in commands(command))
        else:
            yield name, command


def names_read(code: CodeType) -> set[str]:
    """The variables that a function, or one inside it, reads."""
    inner = [names_read(const) for const in code.co_consts if isinstance(const, CodeType)]
    reads = [i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD")]
    flat = [name for read in reads for name in (read if isinstance(read, tuple) else (read,))]
    return {name for name in flat if isinstance(name, str)}.union(*inner)


@pytest.mark.parametrize(("name", "command"), [pytest.param(*c, id=c[0]) for c in commands()])
def test_a_command_reads_all_of_its_options(name: str, command: click.Command) -> None:
    function = inspect.unwrap(command.callback)
    taken = {*inspect.signature(function).parameters}
    assert taken <= names_read(function.__code__), f"'ae {name}' ignores an option"


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models with weights drawn at random: nothing that they make is like anything else."""
    folder = tmp_path_factory.mktemp("untrained")
    small = {"encoder": {"name": "mlp", "hidden": [8]}, "decoder": {"name": "mlp", "hidden": [8]}}
    digits = {**small, "data.name": "mnist-sample", "condition": ["digit"], "bottleneck.z_dim": 4}
    digits |= {"corruption.name": "binarise", "likelihood.name": "bernoulli"}
    melodies = {"data.name": "tunes-sample", "encoder.width": 16, "decoder.width": 16}
    notes = {"data.name": "notes-sample", "encoder.width": 16, "decoder.width": 16}
    recipes = {
        "DIGITS": named("mnist-2d").with_(digits),
        "NOISY": named("mnist-2d").with_({**small, "corruption.name": "noise"}),
        "TUNES": named("melody-2bar").with_({**melodies, "prior.name": "standard-normal"}),
        "NOTES": named("note-timbre").with_({**notes, "prior": {"name": "standard-normal"}}),
    }
    for name, recipe in recipes.items():
        torch.manual_seed(recipe.train.seed)
        net = Autoencoder(recipe, modality=recipe.make("modality"))
        weights = {key: 3 * value for key, value in net.state_dict().items()}
        checkpoint.save(folder / name, weights, checkpoint.config_json(recipe))
    return {name: folder / name for name in recipes}


MUSIC = ROOT / "plugins/ae_music/samples"
TUNE, CHORALE = MUSIC / "drowsy-maggie.mid", MUSIC / "chorale-bwv66.6.mid"

#: A command that works, then what else may be said, by which something else must come of it.
SAID = [
    (
        "evaluate DIGITS --limit 40 --json --nll 2",
        ["--limit 41", "--nll 3", "--seed 1", "--data THREE", "--device tpu"],
    ),
    ("evaluate DIGITS --limit 40 --nll 2", ["--json", "--curve curve.png"]),
    ("evaluate DIGITS --limit 120 --nll 2 --json", ["--full", "--full --samples 110"]),
    (
        "score DIGITS THREE EIGHT --label digit=3",
        ["--label digit=4", "--nll 5", "--seed 1", "-o scores.csv", "--json"],
    ),
    (
        "score DIGITS --against mnist-sample --limit 40 --json",
        ["--limit 41", "--data THREE", "--against THREE"],
    ),
    ("score DIGITS --against mnist-sample --limit 40", ["--figure roc.png"]),
    (
        "reconstruct DIGITS THREE -o out --label digit=3",
        ["-o other", "--label digit=4", "--device tpu"],
    ),
    (
        "sample DIGITS -n 3 -o out --label digit=3",
        [
            "-n 4",
            "-o other",
            "--temperature 0.5",
            "--likelihood-temperature 1",
            "--label digit=4",
            "--seed 1",
            "--device tpu",
        ],
    ),
    (
        "interpolate DIGITS THREE EIGHT -o out.png --steps 3 --label digit=3",
        ["-o other.png", "--steps 4", "--path lerp", "--label digit=4", "--device tpu"],
    ),
    (
        "encode DIGITS THREE -o z.npz --label digit=3",
        ["-o other.npz", "--label digit=4", "--device tpu"],
    ),
    ("decode DIGITS CODES -o out", ["-o other", "--label digit=4", "--device tpu"]),
    ("export DIGITS -o out", ["-o other", "--dtype bf16"]),
    (
        "image grid --model DIGITS -n 3 --label 3",
        [
            "--model NOTES",
            "-n 4",
            "--axes 0 2",
            "--through THREE EIGHT THREE",
            "--spread 2",
            "--label 4",
            "-o other.png",
        ],
    ),
    (
        "image scatter --model DIGITS --num 40 --json",
        ["--model NOTES", "--num 50", "--data nowhere", "-o other.png"],
    ),
    (
        "image sample --model DIGITS -n 2 --label 3",
        [
            "--model NOTES",
            "-n 3",
            "--temperature 0.5",
            "--label 4",
            "--seed 1",
            "-o other.png",
        ],
    ),
    ("image sample --model DIGITS -n 1", ["--temperature 0.5", "--seed 1"]),
    (
        "image interpolate THREE EIGHT --model DIGITS --steps 3 --label 3",
        [
            "--model NOTES",
            "--steps 4",
            "--path lerp",
            "--no-gif",
            "--photo yes",
            "--label 4",
            "-o other.png",
        ],
    ),
    (
        "image traverse THREE --model DIGITS --steps 2 -n 1 --label 3",
        [
            "--model NOTES",
            "--steps 3",
            "-n 2",
            "--axes 0,1",
            "--spread 1",
            "--photo yes",
            "--label 4",
            "-o other.png",
        ],
    ),
    (
        "image perturb THREE --model DIGITS --label 3 -n 2",
        ["--model NOTES", "--sigma 3", "-n 3", "--photo yes", "--label 4", "--seed 1", "-o p.png"],
    ),
    ("image maps THREE", ["--model mnist-vqvae", "--photo yes", "--label 4", "-o other.png"]),
    (
        "image reconstruct THREE --model DIGITS --label 3",
        ["--model NOTES", "--photo yes", "--label 4", "-o other.png"],
    ),
    (
        "image denoise THREE --model NOISY",
        ["--model DIGITS", "--invert yes", "--figure f.png", "-o other.png"],
    ),
    ("image denoise --model NOISY", ["--seed 1"]),
    (
        "image upscale THREE",
        [
            "--model mnist-superres-4x",
            "--factor 4",
            "--invert yes",
            "--figure f.png",
            "-o other.png",
        ],
    ),
    (
        "music interpolate CHORALE CHORALE --model TUNES --steps 3",
        [
            "--steps 4",
            "--track Tenor",
            "--bars 1:2",
            "--keep-accompaniment",
            "--each each",
            "--png p.png",
            "--wav w.xyz",
            "--json",
            "-o other.mid",
            "--model DIGITS",
        ],
    ),
    ("music interpolate TUNE CHORALE --model TUNES --steps 3", ["--path lerp"]),
    (
        "music sample --model TUNES -n 1",
        [
            "-n 2",
            "--bars 4",
            "--meter 3/4",
            "--temperature 0.5",
            "--seed 1",
            "--like TUNE",
            "--each each",
            "--png p.png",
            "--wav w.xyz",
            "-o other.mid",
            "--model DIGITS",
        ],
    ),
    ("music sample --model TUNES --like TUNE -n 1", ["--spread 0.9"]),
    (
        "music vary CHORALE --model TUNES -n 1",
        [
            "-n 2",
            "--spread 0.9",
            "--seed 1",
            "--track Tenor",
            "--bars 1:2",
            "--each each",
            "--png p.png",
            "--wav w.xyz",
            "-o other.mid",
            "--model DIGITS",
        ],
    ),
    (
        "music shift CHORALE --density 1",
        [
            "--diatonic -1",
            "--interval 2",
            "--pitch-range 1",
            "--syncopation 1",
            "--syncopation-8th 1",
            "--syncopation-16th 1",
            "--density 2",
            "--track Tenor",
            "--bars 1:2",
            "--png p.png",
            "--wav w.xyz",
            "--json",
            "-o other.mid",
            "--model DIGITS",
        ],
    ),
    ("music info CHORALE", ["--track Tenor", "--json"]),
    (
        "audio reconstruct flute --model NOTES",
        ["--png p.png", "--json", "-o other.wav", "--model DIGITS"],
    ),
    (
        "audio interpolate flute guitar --model NOTES --steps 3",
        [
            "--steps 4",
            "--path slerp",
            "--each each",
            "--png p.png",
            "--json",
            "-o other.wav",
            "--model DIGITS",
        ],
    ),
    (
        "audio sample --model NOTES -n 1",
        [
            "-n 2",
            "--pitch C4",
            "--pitch A4 --pitch C4",
            "--temperature 0.5",
            "--seed 1",
            "--png p.png",
            "-o other.wav",
            "--model DIGITS",
        ],
    ),
    (
        "audio play-with NOTES SHORT",
        ["--from cello", "--to cello", "--mix 0.2", "-o other.wav"],
    ),
    (
        "audio denoise flute",
        ["--png p.png", "-o other.wav", "--model DIGITS"],
    ),
    ("audio figure flute", ["-o other.png"]),
]


@pytest.fixture
def outcome(tmp_path: Path, random_models: dict[str, Path]) -> Callable[[str], dict[str, Any]]:
    """Runs a command in a folder of its own: what it writes, or its exit code and what it says."""
    folders = count()
    np.savez(tmp_path / "codes.npz", **{"z": np.ones((2, 4)), "label.digit": np.array([1, 2])})
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(pretty_midi.Instrument(0))
    midi.instruments[0].notes.append(pretty_midi.Note(90, 69, 0.0, 0.5))
    midi.write(str(tmp_path / "short.mid"))
    words = {"CODES": tmp_path / "codes.npz", "SHORT": tmp_path / "short.mid", **random_models}
    words |= {"THREE": THREE, "EIGHT": EIGHT, "TUNE": TUNE, "CHORALE": CHORALE}

    def run(line: str) -> dict[str, Any]:
        folder = tmp_path / f"{next(folders)}"
        folder.mkdir()
        with chdir(folder):
            arguments = [str(words.get(word, word)) for word in line.split()]
            result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}
        if files and "--json" not in line:  # what is only repeated is no effect
            return files
        return {"code": result.exit_code, "said": re.sub(r'seed"?:? \d+', "", result.output)}

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("line", "more"), SAID, ids=[line for line, _ in SAID])
def test_every_option_changes_something(outcome, line: str, more: list[str]) -> None:
    before = outcome(line)
    assert before.get("code", 0) == 0, before["said"]
    if "--seed 1" in more:
        assert outcome(line) == before, "it must do the same, where nothing else is asked for"
    for words in more:
        assert outcome(f"{line} {words}") != before, f"{words} changes nothing"


#: Commands that take long, or have nothing to be compared: other tests see what their options do.
UNSAID = {"models", "plugin check", "plugin new", "plugins", "recipes", "runs", "train"}
UNSAID |= {"audio evaluate", "image lesson", "music evaluate", "music render"}


@pytest.mark.parametrize(("name", "command"), [pytest.param(*c, id=c[0]) for c in commands()])
def test_every_option_is_tried(name: str, command: click.Command) -> None:
    lines = [[*line.split(), *(w for m in more for w in m.split())] for line, more in SAID]
    mine = {word for words in lines if " ".join(words).startswith(f"{name} ") for word in words}
    for option in command.params:
        if isinstance(option, click.Option) and not {"--overwrite", "--device"} & {*option.opts}:
            known = mine & {*option.opts, *option.secondary_opts}
            assert known or name in UNSAID, f"add {option.opts[-1]} to what is said of 'ae {name}'"


def test_train_does_what_its_options_say(ae) -> None:
    words = ["train", "mnist-2d", "--data", "mnist-sample", "--out", "r", "--seed", 3, "--keep", 5]
    small = ["encoder.hidden=[4]", "decoder.hidden=[4]", "train.epochs=1", "train.lr=1",
             "train.lr=0.01", "train.batch_size=60", "train.evaluate_every=0.25"]  # fmt: skip
    said = ae(*words, "--quiet", *(word for pair in small for word in ("--set", pair))).output
    train = checkpoint.load_config(Path("r")).recipe.train
    assert (train.seed, train.lr) == (3, 0.01) and "seed 3" in said
    assert len(checkpoint.checkpoints(Path("r"))) == 4


def test_a_mix_of_0_is_the_one_timbre_and_pitches_are_their_own(outcome) -> None:
    songs = [outcome(f"audio play-with NOTES SHORT --mix 0 --to {to}") for to in ("cello", "oboe")]
    assert songs[0]["song.wav"] == songs[1]["song.wav"]
    single, both = (
        outcome(f"audio sample --model NOTES -n 1 --pitch A4 {more} -o out.wav")["out.wav"]
        for more in ("--pitch A4", "--pitch C4")
    )
    assert single != both


@pytest.mark.slow
def test_module_is_the_command_and_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "ae_toolkit", "train", "mnist-2d", "--data", "mnist-sample",
         "--set", "train.epochs=100000", "--set", "train.compile=off", "--out", "r"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as stderr:
        while not stderr.readline().startswith("epoch "):  # the first validation
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = stderr.read()
    assert process.wait(60) == 130
    assert (
        "Traceback" not in said
        and "Error" not in said
        and "ae train mnist-2d --out r --resume" in said
    )
    assert checkpoint.checkpoints(tmp_path / "r")
