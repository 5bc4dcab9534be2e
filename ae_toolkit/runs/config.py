"""The `config.json` of a model folder: what was built, whose parts that needs, what it came to.

It holds the checksums of the files beside it, and one of its own, in which the card does not count:
anybody may edit that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
from pydantic import BaseModel, ConfigDict

from ae_toolkit import registry
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import read_json
from ae_toolkit.recipe import Recipe, describe_invalid
from ae_toolkit.texts import CHECKSUM_KEY, is_sealed, seal
from ae_toolkit.version import CONTRACT_VERSION, __version__

CONFIG_FORMAT = 1
CONFIG_FILE = "config.json"
EDITABLE_KEYS = ("card",)  #: of a `config.json`: what may be edited


class _Card(BaseModel):
    """Of a card, what programs read."""

    summary: str = ""
    metrics: dict[str, Any] = {}


class _Config(BaseModel):
    """The keys of a `config.json`, and what each may be."""

    model_config = ConfigDict(strict=True)

    format: int
    recipe: dict[str, Any]
    requires: dict[str, str]
    written_by: str = "another version"
    metrics: dict[str, float] = {}
    card: _Card = _Card()
    files: dict[str, str] = {}  #: name -> checksum


class Config(NamedTuple):
    """The contents of a `config.json`."""

    recipe: Recipe
    metrics: Mapping[str, float]  #: of the validation split at this checkpoint, if any
    card: Mapping[str, Any]  #: where bundled weights come from: command, seed, data, metrics


def config_json(
    recipe: Recipe,
    *,
    metrics: Mapping[str, float] | None = None,
    card: Any = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """The text of a `config.json`.

    Args:
        recipe: what was built.
        metrics: of the validation split.
        card: where bundled weights come from.
        files: the checksums of those that lie beside it.
    """
    more = {"metrics": metrics, "card": card, "files": files}
    return config_text(
        {
            "format": CONFIG_FORMAT,
            "written_by": f"ae-toolkit {__version__}, contract {CONTRACT_VERSION}",
            "recipe": recipe.model_dump(mode="json"),
            "requires": recipe.requires(),
            **{key: value for key, value in more.items() if value},
        }
    )


def config_text(config: Mapping[str, Any]) -> str:
    """The text of a `config.json`, with its checksum."""
    return json.dumps(seal(config, but=EDITABLE_KEYS), indent=2, ensure_ascii=False) + "\n"


def load_config(folder: Path) -> Config:
    """Reads and checks the `config.json` of a folder, without building anything.

    Raises:
        RunError: it is broken, of a newer format, or needs a plugin that is not installed.
    """
    path = folder / CONFIG_FILE
    raw, config = read_config(path)
    _need_plugins(path, config.requires, config.recipe)
    try:
        recipe = Recipe.of(config.recipe).check()
    except UsageError as error:
        raise RunError(f"{path}: {error}") from error
    return Config(recipe, config.metrics, raw.get("card", {}))


def written_by(folder: Path) -> str:
    """Which version wrote a model folder; it raises a `RunError` where its config is broken."""
    return read_config(folder / CONFIG_FILE)[1].written_by


def read_config(path: Path) -> tuple[dict[str, Any], _Config]:
    """A `config.json` as it is, and what it says."""
    try:
        raw = read_json(path)
        if isinstance(raw, dict) and raw.get("format", CONFIG_FORMAT) != CONFIG_FORMAT:
            raise RunError(
                f"{path}: was written in format {raw['format']} by "
                f"{raw.get('written_by', 'another version')}; this is ae-toolkit {__version__}, "
                f"which reads format {CONFIG_FORMAT}"
            )
        config = _Config.model_validate(raw)
    except UsageError as error:
        raise RunError(str(error)) from error
    except pydantic.ValidationError as error:
        reason = describe_invalid(error, _Config)
        raise RunError(f"{path}: is not a model's configuration ({reason})") from None
    except ValueError as error:
        raise RunError(f"{path}: is not a model's configuration ({error})") from error
    if not is_sealed(raw, but=EDITABLE_KEYS):
        raise RunError(
            f"{path}: has changed since it was written: take it from a copy, or, if you have "
            f"edited it yourself, remove its {CHECKSUM_KEY!r}"
        )
    return raw, config


def _need_plugins(path: Path, requires: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Says which package is missing, before anything fails for want of it."""
    for kind, origin in requires.items():
        part = settings.get("data" if kind == "dataset" else kind, {})
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str):
            continue  # validation will say it
        known = registry.ALL_REGISTRIES[kind].names() if kind in registry.ALL_REGISTRIES else []
        if name.rpartition(":")[2] in known:
            continue
        cure = f"pip install {origin.partition(' ')[0]}"
        if origin == registry.THIS_PROCESS:
            cure = "register it first, as with 'ae --import FILE …'"
        raise RunError(f"{path}: needs {kind} {name!r} of {origin}, which is not installed: {cure}")
