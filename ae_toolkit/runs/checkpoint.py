"""What lies on disk, and how it gets there: whole or not at all, and never any code.

    runs/NAME/config.json metrics.jsonl timings.jsonl figures/*.png
    runs/NAME/checkpoints/step_0001000/{model.safetensors, config.json, train_state.pt}

`config.json` and `model.safetensors` suffice to load a model; a folder with those two is a model
wherever it lies. Everything is written to a temporary sibling and renamed into place; a checkpoint
has reached the disk before it is, and so has its name before another one is removed.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import check_input, replacing, sync
from ae_toolkit.files import write_text as write_text
from ae_toolkit.files import writing as writing
from ae_toolkit.runs.config import CONFIG_FILE as CONFIG_FILE
from ae_toolkit.runs.config import EDITABLE_KEYS as EDITABLE_KEYS
from ae_toolkit.runs.config import Config as Config
from ae_toolkit.runs.config import config_json as config_json
from ae_toolkit.runs.config import config_text, read_config
from ae_toolkit.runs.config import load_config as load_config
from ae_toolkit.runs.config import written_by as written_by
from ae_toolkit.texts import checksum

WEIGHTS_FILE, STATE_FILE = "model.safetensors", "train_state.pt"

PICKLE_PREFIX = b"\x80"  #: what a pickle begins with


def pack(weights: Mapping[str, Tensor]) -> bytes:
    """The contents of a `model.safetensors`."""
    own: dict[str, Tensor] = {}
    places = set()
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        # Tied weights are kept under each of their names.
        own[name] = tensor.clone() if place in places else tensor.contiguous()
        places.add(place)
    return to_safetensors(own)


def save(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: str,
    *,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder, and the training state beside the weights if there is one.

    Raises:
        RunError: the place cannot be written; what was there before stays.
    """
    with replacing(folder, folder=True) as temporary:
        (temporary / WEIGHTS_FILE).write_bytes(pack(weights))
        (temporary / CONFIG_FILE).write_text(config, encoding="utf-8")
        if state is not None:
            _save_state(dict(state), temporary / STATE_FILE)
        note_checksums(temporary)
        sync(*temporary.iterdir(), temporary)
    sync(folder.parent)


def note_checksums(folder: Path) -> None:
    """Writes into the `config.json` of a model folder the checksums of its files as they are.

    Raises:
        RunError: its `config.json` is broken.
    """
    raw, _ = read_config(folder / CONFIG_FILE)
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".pt"))
    raw["files"] = {path.name: checksum(path) for path in found}
    (folder / CONFIG_FILE).write_text(config_text(raw), encoding="utf-8")


def _save_state(state: dict[str, Any], path: Path) -> None:
    with _RememberingFile(FileIO(path, "w")) as file:
        try:
            torch.save(state, file)
        except RuntimeError:
            if file.error:  # PyTorch hides what the system has said
                raise file.error from None
            raise


class _RememberingFile(BufferedWriter):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, some: Any) -> int:
        try:
            return super().write(some)
        except OSError as error:
            self.error = self.error or error
            raise


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in `model.safetensors`, none of which is read or verified."""
    with _opening(folder) as path, safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def load_weights(folder: Path, name: str = WEIGHTS_FILE) -> dict[str, Tensor]:
    """Reads a file of a model folder that holds tensors and cannot hold code.

    Raises:
        RunError: it is missing, cut short, damaged, or no safetensors file.
    """
    with _opening(folder, name) as path, _verifying(path):
        return load_file(path)


@contextmanager
def _opening(folder: Path, name: str = WEIGHTS_FILE) -> Iterator[Path]:
    """Says what is wrong with the tensors of a folder."""
    path = folder / name
    if not path.is_file():
        raise RunError(f"{folder}: holds no {name}")
    try:
        yield path
    except (SafetensorError, OSError, ValueError) as error:
        if _first_bytes(path).startswith((PICKLE_PREFIX, b"PK\x03\x04")):
            raise RunError(f"{path}: is pickled code, not safetensors; it is not opened") from error
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: is cut short or broken ({reason})") from error


def is_sound(weight: Tensor, *, finite: bool) -> bool:
    """Whether no number of a tensor is NaN nor, where it shall be finite, infinite."""
    if not weight.is_floating_point() or not weight.numel():
        return True
    least, most = weight.aminmax()  # both NaN where one is
    return bool((least - least + most - most) == 0) if finite else not bool(least.isnan())


def load_state(folder: Path) -> dict[str, Any]:
    """Reads the training state, refusing anything but plain tensors and numbers.

    Raises:
        RunError: it is missing, cut short, damaged, or holds code.
    """
    path = folder / STATE_FILE
    try:
        check_input(path)
        with _verifying(path):
            if _first_bytes(path)[:1] == PICKLE_PREFIX:
                raise pickle.UnpicklingError
            with zipfile.ZipFile(path) as archive:  # which no training state compresses
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise RunError(
            f"{folder}: holds no {STATE_FILE}, so there is nothing to resume from"
        ) from None
    except RunError:
        raise
    except pickle.UnpicklingError as error:
        raise RunError(f"{path}: holds code beside tensors; it is not opened") from error
    except Exception as error:  # what PyTorch raises for a broken file is of many kinds
        raise RunError(f"{path}: is cut short or broken") from error
    if not isinstance(state, dict):
        raise RunError(f"{path}: holds no training state")
    return state


@contextmanager
def _verifying(path: Path) -> Iterator[None]:
    """Compares a file with its checksum in the `config.json` beside it, while the block runs."""
    config = path.with_name(CONFIG_FILE)
    known = read_config(config)[1].files.get(path.name) if config.exists() else None
    if known is None:
        yield
        return
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(checksum, path)
        yield
        if found.result() != known:
            raise RunError(f"{path}: is damaged, its checksum is {found.result()}, not {known}")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


class Checkpoint(NamedTuple):
    """One folder under `checkpoints/`."""

    folder: Path
    step: int
    loss: float  #: of the validation; infinite where there is none
    score: float  #: the least is the best: the loss, or what `train.monitor` names


def step_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step_{step:07d}"


def folders(run: Path) -> list[tuple[int, Path]]:
    """The steps and folders of a run's checkpoints, oldest first, whole or not."""
    return sorted(
        (int(number), path)
        for path in run.glob("checkpoints/step_*")
        if (number := path.name.removeprefix("step_")).isdecimal()
        and path.is_dir()
        and not path.is_symlink()
    )


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first. What is in the making or broken does not count."""
    found = []
    for step, folder in folders(run):
        try:
            config = read_config(folder / CONFIG_FILE)[1]
        except RunError:
            continue
        train = config.recipe.get("train")
        train = train if isinstance(train, dict) else {}
        score = config.metrics.get(str(train.get("monitor", "loss")), math.inf)
        if train.get("monitor_mode") == "max":
            score = -score if math.isfinite(score) else math.inf
        loss = config.metrics.get("loss", math.inf)
        numbers = (math.inf if math.isnan(number) else number for number in (loss, score))
        found.append(Checkpoint(folder, step, *numbers))
    return found


def best(run: Path) -> Checkpoint | None:
    """The checkpoint whose validation is the best by `train.monitor`; the latest of equals."""
    return min(reversed(checkpoints(run)), key=lambda point: point.score, default=None)
