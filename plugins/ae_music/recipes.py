"""The recipes of the music plugin.

The shipped models give all steps at once and keep a small code for every quarter note: the code is
flat for whoever blends it, but what it means is local, which is why so little training suffices.
Beside them stand the autoregressive ones of MusicVAE (Roberts et al. 2018): recurrent, and a causal
transformer in their place.
"""

from __future__ import annotations

from ae_toolkit import Recipe

#: Half of a training's first windows are in other keys; at its end nearly all are in their own, so
#: that the prior learns those of the corpus.
KEY_AUGMENTATION = {"transpose": 5, "transposed": [0.5, 0.05]}
QUARTER_ENCODER = {"name": "transformer", "width": 128, "layers": 2, "heads": 4, "patch": 4}


def melody_2bar() -> Recipe:
    """VAE of two bars of melody, all steps at once, with a learned prior."""
    return Recipe.of(
        {
            "name": "melody-2bar",
            "data": {"name": "folk-tunes"},
            "modality": {"name": "melody", "bars": 2, **KEY_AUGMENTATION},
            "condition": ["meter"],
            "encoder": QUARTER_ENCODER,
            "bottleneck": {"name": "gaussian", "z_dim": 8, "spatial": True},
            "prior": {"name": "autoregressive", "layers": 3, "hidden": 192},
            "decoder": QUARTER_ENCODER,
            "likelihood": {"name": "categorical"},
            "objective": {"name": "elbo", "beta": 0.3, "warmup": 0.2},
            "train": {"epochs": 16, "batch_size": 64, "lr": 2e-3, "clip": 50.0},
        }
    )


def melody_16bar() -> Recipe:
    """VAE of sixteen bars of melody, all steps at once, with a learned prior."""
    return melody_2bar().with_(
        {
            "name": "melody-16bar",
            "modality.bars": 16,
            "objective.beta": 0.4,
            "train.epochs": 2.5,
            "train.batch_size": 32,
            "train.evaluate_every": 0.5,
            "train.clip": 200.0,
        }
    )


def melody_2bar_ar() -> Recipe:
    """VAE of two bars whose decoder is a causal transformer, step after step."""
    return melody_2bar().with_(
        {
            "name": "melody-2bar-ar",
            "objective.beta": 0.1,  # it needs a richer code to go on rightly from its own steps
            "decoder": {"name": "autoregressive", "width": 128, "layers": 2, "heads": 4},
            "train.epochs": 6,
        }
    )


def melody_2bar_rnn() -> Recipe:
    """MusicVAE's flat model of two bars: recurrent both ways, with scheduled sampling."""
    return melody_2bar().with_(
        {
            "name": "melody-2bar-rnn",
            "encoder": {"name": "recurrent", "width": 512},
            "bottleneck": {"name": "gaussian", "z_dim": 128},
            "prior": {"name": "standard-normal"},
            "decoder": {"name": "recurrent", "width": 512, "scheduled_sampling": 0.3},
            "objective": {"name": "elbo", "beta": 0.2, "warmup": 0.1, "free_bits": 48.0,
                          "free_bits_per": "total"},
        }
    )  # fmt: skip


def melody_16bar_rnn() -> Recipe:
    """MusicVAE's hierarchical model of sixteen bars: a conductor over recurrent segments."""
    return melody_2bar_rnn().with_(
        {
            "name": "melody-16bar-rnn",
            "modality.bars": 16,
            "bottleneck.z_dim": 256,
            "decoder": {"name": "hierarchical", "segment": 16, "conductor": 512, "width": 512},
            "objective.free_bits": 256.0,
            "train.batch_size": 64,
            "train.clip": 200.0,
        }
    )
