"""The tutorial: every block of it is run, in order, in one folder, as a reader would."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, Site

from ae_toolkit import registry
from ae_toolkit.testing.plugins import check_plugin, examine
from ae_toolkit.testing.scaffold import write_plugin

PAGE = (ROOT / "docs/tutorial.md").read_text()


class Block(NamedTuple):
    """One fenced block: its language, the file that it belongs to, and its text."""

    language: str
    file: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"```(\w+) ?(\S*)\n(.*?)```", PAGE, re.DOTALL)]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_script_is_the_template_with_decorators(tmp_path: Path) -> None:
    write_plugin("ecg", tmp_path / "ecg")
    template = (tmp_path / "ecg/ecg/__init__.py").read_text()
    script = "".join(block.text for block in BLOCKS if block.file == "series.py")
    kept = [line for line in lines(script) if not re.match(r"@|from ae_toolkit.registry", line)]
    assert kept == lines(template)
    (declared,) = (b.text for b in BLOCKS if b.language == "toml" and not b.file)
    assert declared in (tmp_path / "ecg/pyproject.toml").read_text()


@pytest.mark.slow
def test_every_block_runs(ae, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in BLOCKS:
        if block.language == "console":
            for line in lines(block.text):
                run(line.split(), ae, site)
        elif block.language == "python":
            path = Path(block.file)
            before = path.read_text() + "\n" if path.exists() else ""
            path.write_text(before + block.text)
        elif block.file:
            settings = Path(block.file)
            rest = re.sub(
                r"^\[project\.entry-points.*?(?=^\[tool)",
                "",
                settings.read_text(),
                flags=re.M | re.S,
            )
            settings.write_text(f"{rest}\n{block.text}")
    assert Path("walk.csv").read_text().count("\n\n") == 8
    assert all(Path("runs", name, "figures").is_dir() for name in ("first", "notebook", "ecg-fill"))
    assert Path("walk.png").stat().st_size > 10_000


def run(words: list[str], ae, site: Site) -> None:
    """Runs a line of a console block as a process of its own would."""
    for parts in registry.ALL_REGISTRIES.values():
        parts._local.clear()
    sys.modules.pop("series", None)
    if words[0] == "ae":
        quick = ["--set", "train.epochs=1", "--quiet"] if "train" in words else []
        ae(*words[1:], *quick)
    elif words[:2] == ["pip", "install"]:
        site.remove("ecg")
        site.put_project(Path(words[2]))
    elif words[0] == "pytest":
        (test,) = Path(words[1]).glob("tests/test_*.py")
        runpy.run_path(str(test))["test_keeps_the_contract"]()
    else:
        assert words[0] == "python"
        runpy.run_path(words[1])


def test_what_is_said_is_what_the_page_says(ae, site: Site, tmp_path: Path) -> None:
    """What a package may get wrong in its own module, each provoked."""
    said = [re.sub(r"`(.*)`", r"\1", row[1].strip()) for row in TABLE]
    changes = (
        ('"""Ecg', 'raise KeyError(\'x\')\n"""'),
        ("return Recipe.of(", "return dict("),
        ("    return of_items", "    return None\n    return of_items"),
        ("y.T, dtype", "y, dtype"),
        ("columns: int = 1", "columns: int = 1, **more"),
    )
    expected = [said[i] for i in (0, 1, 2, 3, 5)]
    for (old, new), sentence in zip(changes, expected, strict=True):
        shutil.rmtree(tmp_path / "ecg", ignore_errors=True)
        site.remove("ecg")
        write_plugin("ecg", tmp_path / "ecg")
        site.put_project(tmp_path / "ecg", lambda text, old=old, new=new: text.replace(old, new))
        output = ae("train", "ecg-vae", code=1).output
        assert sentence.rstrip("…").strip() in output
        assert any(not check.ok for check in examine("ecg"))
        with pytest.raises(AssertionError):
            check_plugin("ecg")


TABLE = re.findall(r"^\| ([^|]*) \| (`.*`) \|$", PAGE, re.MULTILINE)
