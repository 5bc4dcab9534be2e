"""By which engine a training works: device, precision, compiled or not; decided once, then kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError

from ae_toolkit.console import log
from ae_toolkit.device import has_compiler, has_fast_bf16
from ae_toolkit.errors import RunError, UsageError
from ae_toolkit.files import CHECKSUM_KEY, is_sealed, read_json, seal
from ae_toolkit.recipe import Train
from ae_toolkit.runs import checkpoint

ENGINE_FILE = "engine.json"  #: in a run directory
MAX_THREADS = 1024


class Engine(NamedTuple):
    """What must not change during a training, for it to be repeatable to the last bit."""

    device: str
    bf16: bool
    compiled: bool
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]
    ranks: Annotated[int, Field(ge=1)]

    def __str__(self) -> str:
        precision = "bf16" if self.bf16 else "fp32"
        spread = f", {self.ranks} ranks" if self.ranks > 1 else ""
        return f"{precision} on {self.device}{spread}{', compiled' if self.compiled else ''}"

    @classmethod
    def pick(cls, train: Train, device: torch.device, *, num_ranks: int = 1) -> Engine:
        """Resolves the recipe's settings for a device; `auto` compiles nothing before a trial."""
        bf16 = train.precision == "bf16" or (train.precision == "auto" and has_fast_bf16(device))
        compiled = train.compile == "on"
        if compiled and not has_compiler(device):
            raise UsageError(
                "train.compile=on needs a C++ compiler (g++ or clang++), and none is here"
            )
        return cls(device.type, bf16, compiled, torch.get_num_threads(), num_ranks)

    def write(self, run: Path) -> None:
        """Writes it down, so that a training goes on as it began wherever it is killed."""
        checkpoint.write_text(run / ENGINE_FILE, json.dumps(seal(self._asdict())) + "\n")

    @classmethod
    def written(cls, run: Path) -> Engine | None:
        """How a former training worked; None where it is not known, which is said."""
        path = run / ENGINE_FILE
        if not path.exists():
            return None
        try:
            known = read_json(path)
            if not is_sealed(known):
                raise ValueError("it has changed since it was written")
            known.pop(CHECKSUM_KEY, None)
            return TypeAdapter(cls).validate_python(known, strict=True)
        except (ValueError, TypeError, AttributeError, RunError) as error:
            why = "" if isinstance(error, ValidationError) else f" ({error})"
            log(f"{path}: is broken{why}: it goes on as it would begin here, not bit for bit")
            return None

    def as_before(self, former: Engine, train: Train) -> Engine:
        """The engine of a former run, where this machine has it; says what stops being exact."""
        if former.device != self.device:
            log(f"what began on {former.device} goes on on {self.device}: not bit for bit")
            return self
        if former.ranks != self.ranks:
            log(
                f"what began on {former.ranks} ranks goes on on {self.ranks}: the same batches and "
                f"noise (but for dropout), summed in another order, so not bit for bit"
            )
        if former.threads != self.threads:
            torch.set_num_threads(former.threads)
        compiled = former.compiled and has_compiler(torch.device(self.device))
        if train.compile != "auto":
            compiled = self.compiled
        if compiled != former.compiled:
            log(f"steps are {'' if compiled else 'not '}compiled from here on: not bit for bit")
        return former._replace(ranks=self.ranks, compiled=compiled)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)
