"""Where the work is done, and what can be done there."""

from __future__ import annotations

import os
import shutil

import torch

from ae_toolkit.errors import UsageError


def pick_device(name: str = "auto", *, local_rank: int | None = None) -> torch.device:
    """Returns the device of that name; `auto` is CUDA, else MPS, else the CPU.

    Args:
        name: of a device.
        local_rank: which of a machine's CUDA devices is meant, where the name leaves it open.

    Raises:
        UsageError: the name is unknown, or there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: choose auto, cpu, cuda, cuda:0 … or mps") from None
    if device.type == "cuda" and device.index is None and local_rank is not None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        which = device if local_rank else name
        seen = torch.cuda.device_count()
        raise UsageError(f"--device {which}: PyTorch sees {seen} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: PyTorch sees no Apple GPU here")
    return device


def has_compiler(device: torch.device) -> bool:
    """Whether PyTorch can compile for a device here."""
    if device.type != "cpu":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def has_fast_bf16(device: torch.device) -> bool:
    """Returns True if a device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.11
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
