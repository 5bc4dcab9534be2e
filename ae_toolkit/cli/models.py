"""The verbs that use a trained model of any data type: reconstruct, sample and their like.

Everything heavy is imported inside the callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ae_toolkit.cli.options import (
    Command,
    FiniteRange,
    device_option,
    label_option,
    need_ending,
    overwrite_option,
    parse_labels,
    report_skipped,
    seed_option,
    warn_untrained_prior,
)
from ae_toolkit.errors import RunError
from ae_toolkit.files import announce

if TYPE_CHECKING:
    from torch import Tensor

    from ae_toolkit.data.folder import Reading
    from ae_toolkit.inference.model import Model


MAX_CODES_BYTES = 256 << 20  #: of codes that are packed in a file of any size …
MAX_GROWTH = 4  #: … and of a larger one, so many times its size

files_argument = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))


def out_option(help: str, *, folder: bool = False) -> Callable[[Command], Command]:
    """`-o`: where to write, which must be named."""
    kind = click.Path(path_type=Path, file_okay=not folder, dir_okay=folder)
    return click.option("-o", "--out", required=True, type=kind, help=help)


@click.command("reconstruct")
@click.argument("model")
@files_argument
@out_option("Folder for the results, named like the originals.", folder=True)
@overwrite_option
@label_option
@device_option
def reconstruct(
    model: str, files: tuple[Path, ...], out: Path, labels: tuple[str, ...], device: str
) -> None:
    """Send FILES through the code of MODEL and back.

    \b
    Example:
      ae reconstruct mnist-2d three.png seven.png -o back/
    """
    loaded = load_model(model, device)
    found = read_inputs(loaded, files)
    _write_each(loaded, loaded.reconstruct(found.items, parse_labels(labels)), found.names, out)
    report_skipped(found.skipped, total=found.num_files)


@click.command("sample")
@click.argument("model")
@click.option("-n", "--num", default=16, show_default=True, type=click.IntRange(1),
              help="How many.")  # fmt: skip
@out_option("Folder for the results.", folder=True)
@overwrite_option
@click.option("--temperature", default=1.0, show_default=True, type=FiniteRange(0),
              help="Spread of the codes; less is safer and duller.")  # fmt: skip
@click.option("--likelihood-temperature", default=0.0, show_default=True, type=FiniteRange(0),
              help="Spread of elements given their code; 0: the best single guess.")  # fmt: skip
@label_option
@seed_option
@device_option
def sample(
    model: str, num: int, out: Path, labels: tuple[str, ...], device: str, **options: Any
) -> None:
    """Make new items from the prior of MODEL.

    \b
    Example:
      ae sample mnist-vae -n 16 -o new/ --seed 1
    """
    loaded = load_model(model, device)
    warn_untrained_prior(loaded)
    items = loaded.sample(num, parse_labels(labels), **options)
    _write_each(loaded, items, [f"{i:04}" for i in range(num)], out)
    announce(f"seed {options['seed']}")


@click.command("interpolate")
@click.argument("model")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@out_option("One file with all the steps.")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(2, 1000),
              help="Items in all, both ends included.")  # fmt: skip
@click.option("--path", default="slerp", show_default=True, type=click.Choice(["slerp", "lerp"]),
              help="Along the great arc or the straight line.")  # fmt: skip
@label_option
@device_option
def interpolate(
    model: str, a: Path, b: Path, out: Path, labels: tuple[str, ...], device: str, **options: Any
) -> None:
    """Walk from A to B through the codes of MODEL.

    \b
    Example:
      ae interpolate mnist-vae three.png eight.png -o walk.png
    """
    loaded = load_model(model, device)
    need_ending(out, loaded.modality.suffixes)
    first, second = (read_inputs(loaded, [file]).items[0] for file in (a, b))
    walk = loaded.interpolate(first, second, labels=parse_labels(labels), **options)
    _write(loaded, walk, out)
    announce(f"{out}: {options['steps']} steps from {a} to {b}")


@click.command("encode")
@click.argument("model")
@files_argument
@out_option(
    "A .npz file with arrays 'z' (N, D), 'names', 'item' (which rows are of one item), and the "
    "labels that 'z' was made under."
)
@label_option
@device_option
def encode(
    model: str, files: tuple[Path, ...], out: Path, labels: tuple[str, ...], device: str
) -> None:
    """Write the codes of FILES by MODEL.

    \b
    Example:
      ae encode mnist-2d three.png seven.png -o z.npz
    """
    import numpy as np

    from ae_toolkit.files import check_output, writing

    loaded = load_model(model, device)
    check_output(out)
    found, known = read_inputs(loaded, files), parse_labels(labels)
    rows, names, counts = [], [], []
    columns: dict[str, list[Any]] = {}
    for name, item in zip(found.names, found.items, strict=True):
        examples = loaded.examples([item], known)
        rows.append(loaded.encode_examples(examples).cpu().numpy())
        counts.append(len(examples))
        names += [name if len(examples) == 1 else f"{name}.{i:03}" for i in range(len(examples))]
        for label, column in examples.labels.items():
            columns.setdefault(label, []).append(column.cpu().numpy())
    z = np.concatenate(rows)
    arrays: dict[str, Any] = {f"label.{k}": np.concatenate(v) for k, v in columns.items()}
    with writing(out) as temporary, temporary.open("wb") as file:
        item = np.repeat(np.arange(len(counts)), counts)
        np.savez(file, z=z, names=np.array(names), item=item, **arrays)
    announce(f"{out}: {z.shape[0]} codes of {z.shape[1]} numbers")
    report_skipped(found.skipped, total=found.num_files)


@click.command("decode")
@click.argument("model")
@click.argument("codes", type=click.Path(path_type=Path))
@out_option("Folder for the results.", folder=True)
@overwrite_option
@label_option
@device_option
def decode(model: str, codes: Path, out: Path, labels: tuple[str, ...], device: str) -> None:
    """Turn CODES back into items.

    CODES is a .npz with an array 'z', as 'ae encode' writes it, or a .npy. Labels that it holds are
    used unless --label says otherwise. Codes of one long item become one item again.

    \b
    Example:
      ae decode mnist-2d z.npz -o back/
    """
    loaded = load_model(model, device)
    z, names, counts, known = _read_codes(codes)
    items = loaded.decode(z, {**known, **parse_labels(labels)}, counts=counts)
    _write_each(loaded, items, names, out)


@click.command("export")
@click.argument("model")
@out_option("Folder for config.json and model.safetensors.", folder=True)
@click.option("--dtype", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]),
              help="bf16 halves the file.")  # fmt: skip
def export(model: str, out: Path, dtype: str) -> None:
    """Write MODEL without its training state.

    \b
    Example:
      ae export runs/mine -o shared/mine --dtype bf16
    """
    from ae_toolkit.inference.zoo import export as export_model

    size = export_model(model, out, dtype=dtype)
    announce(f"{out}: {size / 1e6:.2f} MB")


def load_model(model: str, device: str) -> Model:
    from ae_toolkit.inference.loading import load

    return load(model, device=device)


def read_inputs(model: Model, files: Iterable[Path]) -> Reading:
    from ae_toolkit.data.folder import read_files

    return read_files(files, model.modality)


def _read_codes(path: Path) -> tuple[Tensor, list[str], list[int], dict[str, Tensor]]:
    """The codes of a file, of the items that they make the names and numbers of codes; labels."""
    import zipfile

    import numpy as np
    import torch

    from ae_toolkit.files import check_input

    size = check_input(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                promised = sum(entry.file_size for entry in archive.infolist())
            if promised > max(MAX_GROWTH * size, MAX_CODES_BYTES):
                raise RunError(f"would take {promised / 1e6:,.0f} MB")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"z": loaded}
        else:
            with loaded:
                arrays = dict(loaded)
        z = torch.from_numpy(_numbers(np.atleast_2d(arrays["z"])))
        item = _numbers(arrays.get("item", np.arange(len(z))))
        labels = {
            name.removeprefix("label."): torch.from_numpy(_numbers(column))
            for name, column in arrays.items()
            if name.startswith("label.") and column.shape == (len(z),)
        }
    except KeyError:
        raise RunError(f"{path}: holds no array 'z'") from None
    except Exception as error:  # numpy raises half a dozen kinds for a file that is none of its own
        raise RunError(f"{path}: holds no codes ({error})") from error
    if not (len(z) and z.dim() == 2 and bool(z.isfinite().all())):
        raise RunError(f"{path}: its 'z' must be rows of numbers, at least one and all finite")
    if item.shape != (len(z),) or item.dtype.kind not in "iu" or (np.diff(item) < 0).any():
        raise RunError(f"{path}: its 'item' must number the rows of 'z' in order, item by item")
    _, starts, counts = np.unique(item, return_index=True, return_counts=True)
    names = arrays.get("names", np.array([]))
    if names.shape != (len(z),) or names.dtype.kind != "U":
        names = np.array([f"{i:04}" for i in range(len(z))])
    first = zip(names[starts].tolist(), counts, strict=True)
    named = [(count > 1 and name.rpartition(".")[0]) or name for name, count in first]
    return z.float() if z.is_floating_point() else z, named, counts.tolist(), labels


def _numbers(array: Any) -> Any:
    """An array of real numbers in a type that PyTorch knows."""
    import numpy as np

    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype} is no array of real numbers")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _write(model: Model, items: list[Any], path: Path, *, named: bool = True) -> None:
    from ae_toolkit.files import writing
    from ae_toolkit.modality import describe

    need_ending(path, model.modality.suffixes)
    with writing(path, named=named) as temporary:
        model.modality.write(items, temporary)
        if not temporary.exists():
            raise RunError(f"{path}: {describe(model.modality)} wrote nothing")


def _write_each(model: Model, items: list[Any], names: list[str], out: Path) -> None:
    from ae_toolkit.files import safe_names

    for item, name in zip(items, safe_names(names), strict=True):
        _write(model, [item], out / f"{name}{model.modality.suffixes[0]}", named=False)
    announce(f"{out}: {len(items)} files")


MODEL_COMMANDS = (reconstruct, sample, interpolate, encode, decode, export)
