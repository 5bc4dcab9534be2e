"""The recipes of the audio plugin."""

from __future__ import annotations

from ae_toolkit import Recipe


def note_timbre() -> Recipe:
    """VAE of one-second notes that is told the pitch, so that its code holds the timbre."""
    return Recipe.of(
        {
            "name": "note-timbre",
            "data": {"name": "gm-notes"},
            "modality": {"name": "note", "equalise": 4.0},
            "condition": ["pitch"],
            "encoder": {"name": "note", "dropout": 0.1},
            "bottleneck": {"name": "gaussian", "z_dim": 16},
            "prior": {"name": "flow", "layers": 4, "hidden": 96},
            "decoder": {"name": "note", "layers": 3, "dropout": 0.1},
            "likelihood": {"name": "squared-error"},
            "objective": {"name": "elbo", "beta": 0.02, "warmup": 0.1},
            "train": {
                "epochs": 28,
                "batch_size": 128,
                "lr": 2e-3,
                "clip": 500.0,
                "validation": 0.1,
            },
        }
    )


def note_denoise() -> Recipe:
    """Takes hiss off notes, and off recordings of any length."""
    patches = {"name": "resnet", "widths": [64], "blocks": 2, "patch": 8}
    return Recipe.of(
        {
            "name": "note-denoise",
            "data": {"name": "gm-notes"},
            "modality": {"name": "note", "tune": False},
            "corruption": {"name": "hiss"},
            "encoder": patches,
            "bottleneck": {"name": "deterministic", "z_dim": 64, "spatial": True},
            "decoder": patches,
            "likelihood": {"name": "squared-error"},
            "train": {
                "epochs": 1.5,
                "evaluate_every": 0.25,
                "batch_size": 32,
                "lr": 2e-3,
                "validation": 0.02,
            },
        }
    )
