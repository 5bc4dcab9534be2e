"""What lies on disk, and how it gets there: whole or not at all, and never any code.

    runs/NAME/config.json metrics.jsonl timings.jsonl figures/*.png
    runs/NAME/checkpoints/step_0001000/{model.safetensors, config.json, train_state.pt}

`config.json` and `model.safetensors` suffice to load a model; a folder with those two is a model
wherever it lies. Everything is written to a temporary sibling and renamed into place; a checkpoint
has reached the disk before it is, and so has its name before another one is removed.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ae_toolkit import CONTRACT, __version__, registry
from ae_toolkit.errors import Failure, Misuse
from ae_toolkit.files import replacing, sync
from ae_toolkit.files import write_text as write_text
from ae_toolkit.files import writing as writing
from ae_toolkit.recipe import Recipe

FORMAT = 1

CONFIG, WEIGHTS, STATE = "config.json", "model.safetensors", "train_state.pt"


class Config(NamedTuple):
    """The contents of a `config.json`.

    Attributes:
        recipe: what was built.
        metrics: of the validation split at this checkpoint, if any.
        card: where bundled weights come from: command, seed, data, minutes, metrics.
    """

    recipe: Recipe
    metrics: Mapping[str, float]
    card: Mapping[str, Any]


def config_json(
    recipe: Recipe, *, metrics: Mapping[str, float] | None = None, card: Any = None
) -> str:
    """The text of a `config.json`."""
    config = {
        "format": FORMAT,
        "written_by": f"ae-toolkit {__version__}, contract {CONTRACT}",
        "recipe": recipe.model_dump(mode="json"),
        "requires": recipe.requires(),
    }
    if metrics:
        config["metrics"] = dict(metrics)
    if card:
        config["card"] = card
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def pack(weights: Mapping[str, Tensor]) -> bytes:
    """The contents of a `model.safetensors`."""
    return to_safetensors({name: tensor.contiguous() for name, tensor in weights.items()})


def save(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: str,
    *,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder, and the training state beside the weights if there is one.

    Raises:
        Failure: the place cannot be written; what was there before stays.
    """
    with replacing(folder, folder=True) as temporary:
        (temporary / WEIGHTS).write_bytes(pack(weights))
        (temporary / CONFIG).write_text(config, encoding="utf-8")
        if state is not None:
            _save_state(dict(state), temporary / STATE)
        sync(*temporary.iterdir(), temporary)
    sync(folder.parent)


def _save_state(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        attempts = _Attempts(file)
        try:
            torch.save(state, attempts)  # type: ignore[arg-type]
        except RuntimeError:
            if attempts.error:  # PyTorch hides what the system has said
                raise attempts.error from None
            raise


class _Attempts:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]):
        self.file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, some: Any) -> int:
        try:
            return self.file.write(some)
        except OSError as error:
            self.error = self.error or error
            raise


def load_config(folder: Path) -> Config:
    """Reads and checks the `config.json` of a folder, without building anything.

    Raises:
        Failure: it is broken, of a newer format, or needs a plugin that is not installed.
    """
    path = folder / CONFIG
    raw = _read(path)
    version, settings, requires = raw["format"], raw["recipe"], raw["requires"]
    if version != FORMAT:
        raise Failure(
            f"{path}: was written in format {version} by {raw.get('written_by', 'another version')}"
            f"; this is ae-toolkit {__version__}, which reads format {FORMAT}"
        )
    _need_plugins(path, requires, settings)
    try:
        recipe = Recipe.of(settings).check()
    except Misuse as error:
        raise Failure(f"{path}: {error}") from error
    return Config(recipe, raw.get("metrics", {}), raw.get("card", {}))


def written_by(folder: Path) -> str:
    """Which version wrote a model folder.

    Raises:
        Failure: its `config.json` is broken.
    """
    return str(_read(folder / CONFIG).get("written_by", "another version"))


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        for key in ("format", "recipe", "requires"):
            raw[key]
    except OSError as error:
        raise Failure(f"{path}: cannot be read, {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path}: is not a model's configuration ({error})") from error
    return dict(raw)


def _need_plugins(path: Path, requires: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Says which package is missing, before anything fails for want of it."""
    for kind, origin in requires.items():
        part = settings.get("data" if kind == "dataset" else kind, {})
        name = part.get("name", "") if isinstance(part, dict) else ""
        known = registry.ALL[kind].names() if kind in registry.ALL else []
        if name.rpartition(":")[2] in known:
            continue
        distribution = origin.partition(" ")[0]
        cure = (
            "register it first, as with 'ae --import FILE …'"
            if origin == registry.HERE
            else f"pip install {distribution}"
        )
        raise Failure(f"{path}: needs {kind} {name!r} of {origin}, which is not installed: {cure}")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Reads `model.safetensors`, which holds tensors and cannot hold code.

    Raises:
        Failure: it is missing, cut short, or no safetensors file.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise Failure(f"{folder}: holds no {WEIGHTS}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        if _is_pickle(path):
            raise Failure(f"{path}: is pickled code, not safetensors; it is not opened") from error
        raise Failure(f"{path}: is cut short or broken ({error})") from error


def load_state(folder: Path) -> dict[str, Any]:
    """Reads the training state, refusing anything but plain tensors and numbers.

    Raises:
        Failure: it is missing, cut short, or holds code.
    """
    path = folder / STATE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Failure(f"{folder}: holds no {STATE}, so there is nothing to resume from") from None
    except pickle.UnpicklingError as error:
        if not _is_pickle(path):
            raise Failure(f"{path}: is cut short or broken") from error
        raise Failure(f"{path}: holds code beside tensors; it is not opened") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise Failure(f"{path}: is cut short or broken") from error
    return state


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start[:1] == b"\x80" or start == b"PK\x03\x04"


class Checkpoint(NamedTuple):
    """One folder under `checkpoints/`."""

    folder: Path
    step: int
    loss: float


def folders(run: Path) -> list[tuple[int, Path]]:
    """The steps and folders of a run's checkpoints, oldest first, whole or not."""
    names = ((path.name.removeprefix("step_"), path) for path in run.glob("checkpoints/step_*"))
    return sorted((int(number), path) for number, path in names if number.isdecimal())


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first. Folders in the making do not count."""
    found = []
    for step, folder in folders(run):
        try:
            raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            loss = float(raw.get("metrics", {}).get("loss", float("inf")))
        except (OSError, ValueError):
            continue
        found.append(Checkpoint(folder, step, loss))
    return found


def best(run: Path) -> Checkpoint | None:
    """The checkpoint with the least validation loss; the latest of equals."""
    return min(reversed(checkpoints(run)), key=lambda point: point.loss, default=None)
