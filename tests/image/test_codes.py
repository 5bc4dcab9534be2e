"""`ae image perturb` and `maps`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import untrained
from PIL import Image as Pictures

from ae_toolkit import load
from ae_toolkit.recipe import named


def size_of(path: str) -> tuple[int, int]:
    with Pictures.open(path) as picture:
        return picture.size


def test_noise_on_a_code_is_drawn_row_by_row(ae: Any, tmp_path: Path) -> None:
    picture = load("mnist-2d").sample(1)[0]
    picture.save("digit.png")
    said = ae("image", "perturb", "digit.png", "--model", "mnist-2d", "--sigma", 0.5, "-n", 3)
    assert "digit.png, its code by mnist-2d" in said.output
    one = size_of("perturbed.png")
    ae("image", "perturb", "digit.png", "--model", "mnist-2d", "-n", 3, "-o", "three.png")
    assert size_of("three.png")[1] > 1.5 * one[1]
    ae("image", "perturb", "digit.png", "--model", "mnist-2d", "-n", 3, "-o", "other.png",
       "--seed", 1)  # fmt: skip
    assert Path("other.png").read_bytes() != Path("three.png").read_bytes()


def test_maps_of_a_code_are_drawn_where_it_has_positions(ae: Any, tmp_path: Path) -> None:
    load("mnist-2d").sample(1)[0].save("digit.png")
    assert "its code of 8x4x4" in ae("image", "maps", "digit.png").output
    assert size_of("maps.png")[0] > 5 * size_of("maps.png")[1]
    assert "has no maps" in ae("image", "maps", "digit.png", "--model", "mnist-vae", code=2).output
    recipe = named("mnist-fsq").with_({"data.name": "mnist-sample"})
    untrained(recipe, tmp_path / "integers")
    assert "its code of 1x7x7" in ae("image", "maps", "digit.png", "--model", "integers",
                                     "-o", "integers.png").output  # fmt: skip
