"""What lies on disk: whole or not at all, never code, and every broken file gets one sentence."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small

from ae_toolkit import RunError, UsageError, files, load
from ae_toolkit.inference import zoo
from ae_toolkit.runs import checkpoint
from ae_toolkit.testing.contracts import Tensors, check_modality


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    zoo.export(str(run), tmp_path / "model")
    return tmp_path / "model"


def test_export_loads_anywhere_and_bf16_halves_it(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    codes = [load(m).encode_examples(_digits(run)) for m in (run, exported)]
    assert torch.equal(*codes)
    half = zoo.export(str(run), tmp_path / "half", dtype="bf16")
    assert half < 0.55 * (exported / checkpoint.WEIGHTS_FILE).stat().st_size
    assert load(tmp_path / "half").autoencoder.encoder.layers[0].weight.dtype == torch.float32


def _digits(run: Path):
    from ae_toolkit.data.examples import load_data

    return load_data(small(), small().make("modality"), "test").select(range(5))


def test_writing_leaves_nothing_half_done(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError), checkpoint.writing(target) as temporary:
        temporary.write_text("after")
        _ = 1 / 0
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    (tmp_path / "plain").write_text("")
    with (
        pytest.raises(RunError, match="cannot be written"),
        checkpoint.writing(tmp_path / "plain/inside"),
    ):
        pass


def broken(exported: Path, kind: str) -> None:
    weights, config = exported / checkpoint.WEIGHTS_FILE, exported / checkpoint.CONFIG_FILE
    settings = json.loads(config.read_text())
    del settings["checksum"], settings["files"]  # as former versions wrote it
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "pickle":
        weights.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "gone":
        weights.unlink()
    elif kind == "no json":
        config.write_text("{")
    elif kind == "format":
        config.write_text(json.dumps({**settings, "format": 99, "written_by": "ae-toolkit 9"}))
    elif kind == "plugin":
        settings["recipe"]["encoder"] = {"name": "wavelet"}
        settings["requires"]["encoder"] = "ae-wavelets 2.0"
        config.write_text(json.dumps(settings))
    elif kind == "other weights":
        settings["recipe"]["encoder"]["hidden"] = [64]
        config.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("cut", "is cut short or broken"),
        ("empty", "is cut short or broken"),
        ("pickle", "is pickled code, not safetensors; it is not opened"),
        ("gone", "is neither a run directory nor a model folder"),
        ("no json", "is not a model's configuration"),
        ("format", "was written in format 99 by ae-toolkit 9"),
        ("plugin", "needs encoder 'wavelet' of ae-wavelets 2.0, which is not installed: pip inst"),
        ("other weights", "the weights do not fit the recipe"),
    ],
)
def test_broken_models(exported: Path, kind: str, sentence: str) -> None:
    broken(exported, kind)
    with pytest.raises((RunError, UsageError)) as caught:
        load(exported)
    assert sentence in str(caught.value)


def change_config(folder: Path, **changes: Any) -> None:
    """As somebody would who means harm: the checksum fits."""
    path = folder / checkpoint.CONFIG_FILE
    config = json.loads(path.read_text())
    for key, value in changes.items():
        *where, last = key.split("__")
        target = config
        for word in where:
            target = target[word]
        target[last] = value
    path.write_text(json.dumps(files.seal(config, but=checkpoint.EDITABLE_KEYS)))


@pytest.mark.parametrize(
    ("name", "sentence"), [(["mlp"], "'encoder.name' is ['mlp'], but"), ("ü" * 10**6, "needs enc")]
)
def test_a_part_of_an_impossible_name(name: Any, sentence: str, exported: Path) -> None:
    change_config(exported, recipe__encoder__name=name)
    with pytest.raises(RunError) as caught:
        load(exported)
    assert sentence in str(caught.value) and len(str(caught.value)) < 3000


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS_FILE, checkpoint.CONFIG_FILE])
def test_a_flipped_bit_is_noticed(name: str, exported: Path) -> None:
    path = exported / name
    content = bytearray(path.read_bytes())
    at = len(content) // 2 if name == checkpoint.WEIGHTS_FILE else content.index(b'"z_dim": 2') + 9
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged, its checksum is|has changed since it was wr"):
        load(exported)


def test_a_card_may_be_edited_and_files_without_checksums_load(exported: Path) -> None:
    path = exported / checkpoint.CONFIG_FILE
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "card": {"summary": "mine"}}))
    assert load(exported).config.card == {"summary": "mine"}
    del config["files"], config["checksum"]
    path.write_text(json.dumps(config))
    load(exported)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float, exported: Path) -> None:
    weights = checkpoint.load_weights(exported)
    weights["decoder.layers.0.weight"][3, 1] = value
    (exported / checkpoint.WEIGHTS_FILE).write_bytes(checkpoint.pack(weights))
    checkpoint.note_checksums(exported)
    with pytest.raises(RunError, match=r"'decoder.layers.0.weight' is not finite"):
        load(exported)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe__encoder__hidden": [40_000, 40_000]},
        {"recipe__encoder__hidden": [1] * 300_000},
        {"recipe__bottleneck__z_dim": 10**9},
        {"recipe__modality__size": 100_000},
        {"recipe__prior": {"name": "autoregressive", "width": 10**6}},
        {"recipe__prior": {"name": "flow", "layers": 10**6}},
    ],
    ids=["wide", "deep", "code", "picture", "prior", "flow"],
)
def test_a_small_folder_takes_no_large_memory(changes: dict[str, Any], exported: Path) -> None:
    """What a config promises is compared with the weights before memory is taken."""
    change_config(exported, **changes)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((RunError, UsageError), match=r"do not fit|are refused|less than or equal"):
        load(exported)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert time.monotonic() - began < 10


HOSTILE: dict[str, str] = {
    "deep": "[" * 100_000,
    "nested": '{"format": 1, "recipe": ' + '{"a": ' * 400 + "1" + "}" * 400 + ', "requires": {}}',
    "a list": "[1]",
    "requires": '{"format": 1, "recipe": {}, "requires": ["mlp"]}',
    "origin": '{"format": 1, "recipe": {}, "requires": {"encoder": 5}}',
    "recipe": '{"format": 1, "recipe": "mlp", "requires": {}}',
    "metrics": '{"format": 1, "recipe": {}, "requires": {}, "metrics": [1]}',
    "loss": '{"format": 1, "recipe": {}, "requires": {}, "metrics": {"loss": "x"}}',
    "card": '{"format": 1, "recipe": {}, "requires": {}, "card": {"summary": {}}}',
    "no text": '{"format": 1, "recipe": {}, "requires": {}, "written_by": "\\ud800"}',
    "large": " " * (files.MAX_JSON_BYTES + 1),
}


@pytest.mark.parametrize("kind", [*HOSTILE, "pipe", "device", "folder"])
def test_a_broken_config_is_one_sentence_and_one_model(
    kind: str, exported: Path, ae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_one = exported.with_name("broken")
    shutil.copytree(exported, broken_one)
    path = broken_one / checkpoint.CONFIG_FILE
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text(HOSTILE[kind])
    said = ae("evaluate", broken_one, "--data", "mnist-sample", code=1).output
    assert str(path) in said and len(said) < 1000
    monkeypatch.setattr(zoo, "bundled", lambda: {"broken": broken_one, "whole": exported})
    bad, good = ae("models").output.splitlines()
    assert bad.startswith("broken") and "broken: " in bad and "broken" not in good


def test_training_state_with_code_is_refused(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"step": Evil()}, tmp_path / checkpoint.STATE_FILE)
    with pytest.raises(RunError, match="holds code beside tensors; it is not opened"):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_pickled_model_file_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="pickled models are never opened"):
        load(tmp_path / "model.pt")


def test_unknown_names_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "bundled", lambda: {"mnist-vae": Path()})
    with pytest.raises(UsageError, match="there is no model 'mnist-vea': did you mean 'mnist-vae'"):
        load("mnist-vea")
    with pytest.raises(UsageError, match="make them with 'ae train mnist-2d'"):
        load("mnist-2d")


def test_hub_models(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of `huggingface_hub` with the same interface."""
    import sys
    from types import ModuleType

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = lambda repo, *, allow_patterns: str(exported)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert load("someone/digits").folder == exported

    def offline(repo: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to host\nmore")

    hub.snapshot_download = offline  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"could not be fetched from the hub: no route to host$"):
        load("someone/digits")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r"pip install ae-toolkit\[hub\]"):
        load("someone/digits")


def test_any_data_type_from_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from ae_toolkit.data.folder import files

    modality = Tensors(shape=(2, 3))
    check_modality(modality, [torch.randn(2, 3), torch.randn(2, 3)], tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(40):
        np.save(folder / f"{i}.npy", np.full((2, 3), i, dtype=np.float32))
    np.save(folder / "odd.npy", np.zeros(5))
    (folder / "text.npy").write_text("no array")
    (folder / "notes.txt").write_text("not mine")
    train = files(modality=modality, split="train", path=str(folder))
    test = files(modality=modality, split="test", path=str(folder))
    assert len(train) + len(test) == 40 and len(test) > 0
    assert not set(train.groups) & set(test.groups)
    said = capfd.readouterr().err
    assert "odd.npy: has shape (5,), not (2, 3)" in said and "text.npy: is not a .npy file" in said
    with pytest.raises(UsageError, match=r"no files that end in .npy \(1 others\)"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other/a.txt").write_text("")
        files(modality=modality, split="train", path=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="there is no such file or folder"):
        files(modality=modality, split="train", path=str(tmp_path / "nowhere"))


def test_holding_out_is_by_group_and_moves_nobody() -> None:
    from ae_toolkit.data.examples import Examples, train_test_split

    def split(num: int) -> set[str]:
        groups = [f"tune {i // 2}" for i in range(num)]
        mine, held = train_test_split(Examples(torch.zeros(num, 1), None, {}, groups), 0.2, seed=0)
        assert not set(mine.groups) & set(held.groups)
        return set(held.groups)

    assert split(200) <= split(400)
    assert len(split(4)) == 1


def test_shorter_examples_are_padded_and_masked() -> None:
    from ae_toolkit.contracts import Example
    from ae_toolkit.data.examples import Examples

    rows = [Example(torch.ones(n, 2), {"kind": n}, str(n)) for n in (3, 1)]
    stacked = Examples.stack(rows, length=4)
    assert stacked.mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3]
    assert Examples.stack(rows[:1], length=3).mask is None
    assert stacked.y[1].sum() == 2 and stacked.labels["kind"].tolist() == [3, 1]


def test_broken_cache_is_read_anew(tmp_path: Path) -> None:
    from ae_toolkit.data.folder import read_folder
    from ae_toolkit.testing.contracts import Tensors

    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", np.full((1, 8, 8), i))
    first = read_folder([folder], Tensors())
    assert first.folder is not None
    again = read_folder([folder], Tensors())
    assert torch.equal(first.examples.y, again.examples.y)
    assert first.examples.groups == ["0.npy", "1.npy", "2.npy"]
    for name, content in (("y.npy", b""), ("y.npy", b"short"), ("shard.json", b"[]")):
        path = next(first.folder.glob(f"*/{name}"))
        path.write_bytes(content)
        found = read_folder([folder], Tensors())
        assert len(found.examples) == 3 and path.read_bytes() != content
    np.save(folder / "3.npy", np.full((1, 8, 8), 3))
    assert len(read_folder([folder], Tensors()).examples) == 4
