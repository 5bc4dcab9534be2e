"""Recipes are validated before anything is built, and every complaint names what is wrong."""

from __future__ import annotations

import pytest

from ae_toolkit import UsageError, registry
from ae_toolkit.recipe import named, parse_settings


@pytest.mark.parametrize("name", registry.recipes.names())
def test_every_recipe_is_sound_and_has_a_summary(name: str) -> None:
    recipe = named(name).check()
    assert recipe.name == name
    assert recipe.distribution == "ae-toolkit"
    assert registry.recipes.get(name).__doc__


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["train.epoch=3"], "no setting 'train.epoch': did you mean 'epochs'"),
        (["train.epochs=many"], "'train.epochs' is 'many', but input should be a valid number"),
        (["train.batch_size=0"], "'train.batch_size' is 0, but input should be greater than 0"),
        (["trian.lr=1"], "there is no 'trian' in 'trian.lr': did you mean 'train'"),
        (["colour=red"], "no setting 'colour'"),
        (["encoder.name=transformr"], "no encoder 'transformr'"),
        (["encoder.hiden=[3]"], "encoder 'mlp': there is no setting 'hiden': did you mean"),
        (["encoder.hidden=wide"], "encoder 'mlp': 'hidden' is 'wide'"),
        (["bottleneck.z_dim=-1", "objective.beta=1"], "'z_dim' is -1, but input"),
        (["modality.size=[28,-1]"], "modality 'image': 'size.1' is -1, but input should"),
        (["encoder.name=resnet", "encoder.widths=[]"], "'widths' is [], but tuple should have"),
        (["encoder.name=transformer", "encoder.heads=0"], "'heads' is 0, but input should be"),
        (["condition=[\"digitt\"]"], "condition 'digitt' is no label of modality 'image'"),
        (["likelihood.name=categorical"], "categorical needs two classes per element"),
        (["decoder.name=conv", "bottleneck.z_dim=[2,2]"], "z_dim has 2 levels"),
    ],
)  # fmt: skip
def test_complaints(settings: list[str], sentence: str) -> None:
    from ae_toolkit.autoencoder import Autoencoder

    with pytest.raises(UsageError) as caught:
        recipe = named("mnist-2d").with_(parse_settings(settings)).check()
        Autoencoder(recipe, modality=recipe.make("modality"))
    assert sentence in str(caught.value)


def test_set_needs_an_equals_sign() -> None:
    with pytest.raises(UsageError, match="--set takes key=value"):
        parse_settings(["train.lr"])


def test_changing_the_name_drops_the_former_arguments() -> None:
    recipe = named("mnist-2d").with_({"encoder.widths": [8], "encoder.name": "conv"})
    assert recipe.encoder.model_dump() == {"name": "conv", "widths": [8]}


def test_recipes_do_not_change() -> None:
    recipe = named("mnist-2d")
    recipe.with_({"train.lr": 1.0})
    assert recipe == named("mnist-2d")
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.lr = 1.0
