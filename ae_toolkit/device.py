"""Where the work is done, in which precision, and by which engine: decided once, then kept."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import torch

from ae_toolkit.errors import Misuse
from ae_toolkit.recipe import Train
from ae_toolkit.rundir import tell


def pick_device(name: str = "auto") -> torch.device:
    """Returns the device of that name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        Misuse: the name is unknown, or there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Misuse(f"--device {name!r}: choose auto, cpu, cuda, cuda:0 … or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Misuse(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise Misuse("--device mps: PyTorch sees no Apple GPU here")
    return device


class Engine(NamedTuple):
    """What must not change during a training, for it to be repeatable to the last bit."""

    device: str
    bf16: bool
    compiled: bool
    threads: int

    def __str__(self) -> str:
        precision = "bf16" if self.bf16 else "fp32"
        return f"{precision} on {self.device}{', compiled' if self.compiled else ''}"

    @classmethod
    def pick(cls, train: Train, device: torch.device) -> Engine:
        """Resolves the recipe's `auto` settings for a device."""
        bf16 = train.precision == "bf16" or (train.precision == "auto" and _fast_bf16(device))
        wanted = train.compile == "on" or (train.compile == "auto" and device.type == "cuda")
        if train.compile == "on" and not _has_compiler(device):
            raise Misuse("train.compile=on needs a C++ compiler (g++ or clang++), and none is here")
        return cls(device.type, bf16, wanted and _has_compiler(device), torch.get_num_threads())

    def as_before(self, former: Engine) -> Engine:
        """The engine of a former run, where this machine has it; says what stops being exact."""
        if former.device != self.device:
            tell(f"what began on {former.device} goes on on {self.device}: not bit for bit")
            return self
        if former.threads != self.threads:
            torch.set_num_threads(former.threads)
        return former

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)


def _fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def _has_compiler(device: torch.device) -> bool:
    if device.type != "cpu":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
