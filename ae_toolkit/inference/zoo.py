"""Where models are: bundled with a package, in a run directory, in a plain folder, on a hub."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ae_toolkit import registry
from ae_toolkit.console import log
from ae_toolkit.errors import RunError, UsageError, did_you_mean
from ae_toolkit.files import check_input, checksum, is_signed, outputs, writing
from ae_toolkit.runs import checkpoint
from ae_toolkit.version import former_names


def resolve(model: str) -> Path:
    """Finds the folder of a bundled name, a run directory, a model folder or a hub id.

    Raises:
        UsageError: there is nothing of that name.
        RunError: the hub cannot be reached, or a run has no checkpoint yet.
    """
    path, known = Path(model), bundled()
    if (path / checkpoint.WEIGHTS_FILE).is_file():
        return path
    if (path / "checkpoints").is_dir():
        whole = {point.folder for point in checkpoint.checkpoints(path)}
        for _, folder in checkpoint.folders(path):
            if folder not in whole:
                log(f"{folder}: its {checkpoint.CONFIG_FILE} is broken, it is passed over")
        if point := checkpoint.best(path):
            return point.folder
        raise RunError(f"{path}: this run has no whole checkpoint yet")
    if model in known:
        return known[model]
    files = f"{checkpoint.CONFIG_FILE} and {checkpoint.WEIGHTS_FILE}"
    if path.is_dir():
        raise UsageError(f"{path}: is neither a run directory nor a model folder with {files}")
    if path.is_file():
        hint = "pickled models are never opened; " if path.suffix in (".pt", ".pth", ".pkl") else ""
        raise UsageError(f"{path}: is a file, but {hint}a model is a folder with {files}")
    if model.count("/") == 1 and not path.is_absolute() and path.parts[0] not in (".", ".."):
        return _from_hub(model)
    hint = did_you_mean(model, known)
    if model in registry.recipes.names():
        hint = f"the recipe has no bundled weights, so make them with 'ae train {model}'"
    raise UsageError(f"there is no model {model!r}: {hint}")


def bundled() -> dict[str, Path]:
    """The models that lie in `weights/NAME/` of any package that declares a recipe."""
    found: dict[str, Path] = {}
    packages = {
        value.partition(":")[0].partition(".")[0] for *_, value in registry.recipes.origins()
    }
    for package in sorted(packages):
        with suppress(ImportError, ValueError):
            spec = find_spec(package)
            for place in (spec.submodule_search_locations or []) if spec else []:
                for config in sorted(Path(place).glob(f"weights/*/{checkpoint.CONFIG_FILE}")):
                    found.setdefault(config.parent.name, config.parent)
    return found


def _from_hub(model: str) -> Path:
    """Fetches the two files of a model from the Hugging Face hub."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise RunError(
            f"{model!r} is no folder here, so it must be a hub id, and that needs "
            f"'pip install ae-toolkit[hub]'"
        ) from None
    fetch: Callable[..., str] = snapshot_download
    try:
        return Path(fetch(model, allow_patterns=[checkpoint.CONFIG_FILE, "*.safetensors"]))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise RunError(
            f"{model!r} is no folder here and could not be fetched from the hub: {first}"
        ) from error


def export(model: str, out: Path, *, dtype: str = "fp32", card: Any = None) -> int:
    """Writes a model without its training state and returns the bytes of its weights.

    Args:
        model: as `resolve` takes it.
        out: the folder to make.
        dtype: `fp32`, or `bf16` for half the size.
        card: replaces the model's own.
    """
    folder = resolve(model)
    config, weights = checkpoint.load_config(folder), checkpoint.load_weights(folder)
    if dtype == "bf16":
        weights = {n: w.bfloat16() if w.is_floating_point() else w for n, w in weights.items()}
    if out.resolve() == folder.resolve():
        raise UsageError(f"{out}: is the model itself, which stays as it is; choose another folder")
    if out.is_dir() and any(out.iterdir()) and not is_signed(out / checkpoint.CONFIG_FILE):
        raise UsageError(f"{out}: is a folder with something else in it; choose another")
    run_files = ("checkpoints", "metrics.jsonl", checkpoint.STATE_FILE)
    if any((out / name).exists() for name in run_files):
        raise UsageError(
            f"{out}: is a run or a checkpoint, which stays as it is; choose another folder"
        )
    contents = {checkpoint.WEIGHTS_FILE: checkpoint.pack(weights)}
    for extra in folder.glob("*.safetensors"):  # what a data type ships beside its weights
        check_input(extra)
        contents.setdefault(extra.name, extra.read_bytes())
    files = {name: checksum(content) for name, content in contents.items()}
    text = checkpoint.config_json(
        config.recipe, metrics=config.metrics, card=card or config.card, files=files
    )
    contents[checkpoint.CONFIG_FILE] = text.encode()
    with outputs():
        for name, content in contents.items():
            with writing(out / name) as temporary:
                temporary.write_bytes(content)
    return len(contents[checkpoint.WEIGHTS_FILE])


__getattr__ = former_names(__name__, {"find": "resolve"})
