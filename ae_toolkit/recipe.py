"""What to build and how to train it: a validated, immutable page of settings.

A recipe is an ordinary function that returns a `Recipe`; its docstring is its summary. Vary one
with `recipe.with_({"train.lr": 3e-4})`, or from the command line with `--set train.lr=3e-4`.
A part is written `{"name": …, own arguments…}`, or as its name alone, and checked against the
constructor of the part that the name stands for before anything is built.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ae_toolkit import registry
from ae_toolkit.contracts import OPTIONAL_ARGUMENTS, SUPPLIED_ARGUMENTS, Shape
from ae_toolkit.errors import PluginError, UsageError, did_you_mean, wrap_plugin_errors
from ae_toolkit.modality import Modality, check_declared
from ae_toolkit.version import CONTRACT_VERSION

MAX_VALUE_CHARS = 200  #: characters of a value that does not fit

Positive = Annotated[int, Field(gt=0)]
PYDANTIC_TYPE = re.compile(r"(constrained-)?int|tuple\[.*")  #: which pydantic puts among the names
Fraction = Annotated[float, Field(ge=0, lt=1)]
Above0 = Annotated[float, Field(gt=0, lt=1e12, allow_inf_nan=False)]


class Part(BaseModel):
    """The name of a part and its own arguments."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, settings: Any) -> Any:
        return {"name": settings} if isinstance(settings, str) else settings

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Train(BaseModel):
    """How a recipe is trained. One epoch is one pass over the training split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Above0 = 20
    batch_size: Positive = 256
    accumulate: Positive = 1  #: batches per optimiser step
    optimizer: str = "adamw"  #: the rule by which weights are moved, as registered
    lr: Above0 = 1e-3
    lr_scale: dict[str, Annotated[float, Field(ge=0, lt=1e6)]] = {}  #: of parts; 0 freezes one
    schedule: Literal["constant", "cosine", "one-cycle"] = "cosine"
    warmup: Fraction = 0.02  #: share of the steps in which the learning rate rises
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  #: decoupled, as in AdamW
    clip: Annotated[float, Field(ge=0)] = 0.0  #: largest gradient norm; 0: no clipping
    ema: Fraction = 0.999  #: decay of the averaged weights that are kept; 0: none
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.05  #: share held out by group
    evaluate_every: Above0 = 1.0  #: epochs between validations
    monitor: str = "loss"  #: the number of a validation by which the best checkpoint is known
    monitor_mode: Literal["min", "max"] = "min"  #: whether the least of it is the best
    patience: Annotated[int, Field(ge=0)] = 0  #: validations without gain before stopping; 0: none
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"  #: what several ranks do: copy the weights, or share
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Recipe(BaseModel):
    """Everything that makes a model, and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    distribution: str = ""  #: whose recipe it is; its own parts win where names clash
    data: Part
    modality: Part
    condition: tuple[str, ...] = ()  #: labels that every part is given
    corruption: Part = Part(name="none")
    encoder: Part
    bottleneck: Part
    prior: Part = Part(name="standard-normal")
    decoder: Part
    likelihood: Part
    objective: Part = Part(name="elbo")
    train: Train = Train()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Recipe:
        """Validates a plain mapping.

        Raises:
            UsageError: a key is unknown or a value does not fit; the sentence names it.
        """
        try:
            return cls.model_validate(settings)
        except pydantic.ValidationError as error:
            raise UsageError(f"recipe: {describe_invalid(error, cls)}") from None

    def with_(self, changes: Mapping[str, Any]) -> Recipe:
        """Returns a changed copy; keys are dotted paths such as `encoder.width`.

        Changing the `name` of a part drops the arguments of the former part.
        """
        settings = self.model_dump()
        # Names first, so that arguments given beside a new name are kept in any order.
        for key, value in sorted(changes.items(), key=lambda kv: not kv[0].endswith(".name")):
            where, _, leaf = key.rpartition(".")
            if where not in settings and where:
                raise UsageError(
                    f"recipe: there is no {where!r} in {key!r}: {did_you_mean(where, settings)}"
                )
            target = settings[where] if where else settings
            if not isinstance(target, dict):
                raise UsageError(f"recipe: {where!r} has no settings of its own, so not {key!r}")
            if leaf == "name" and where and target.get("name") != value:
                target.clear()
            target[leaf] = value
        return Recipe.of(settings)

    def part(self, kind: str) -> Part:
        """The part of one kind; `dataset` is the kind of the part named `data`."""
        part = getattr(self, "data" if kind == "dataset" else kind)
        assert isinstance(part, Part)
        return part

    def check(self) -> Recipe:
        """Checks every part's arguments against its constructor, building nothing.

        Raises:
            UsageError: an unknown part, or an argument that is unknown, missing or of a wrong type.
        """
        for kind in SUPPLIED_ARGUMENTS:
            self._factory(kind)
        return self

    def make(self, kind: str, **supplied: Any) -> Any:
        """Builds one part, with what `Autoencoder` supplies.

        Raises:
            UsageError: as `check`, or the part itself refuses its arguments.
            RunError: its constructor raises something else.
        """
        factory, arguments = self._factory(kind)
        with wrap_plugin_errors(f"{registry.ALL_REGISTRIES[kind].describe(factory)} raises"):
            try:
                made = factory(**arguments, **supplied)
            except ValueError as error:
                if isinstance(error, UsageError):
                    raise
                raise UsageError(f"{kind} {self.part(kind).name!r}: {error}") from error
        if isinstance(made, Modality):
            check_declared(made)
        return made

    def requires(self) -> dict[str, str]:
        """`{kind: "distribution version"}` of every part, for the record."""
        return {kind: str(self.origin(kind)) for kind in SUPPLIED_ARGUMENTS}

    def strangers(self) -> list[str]:
        """The distributions other than ours that provide its parts."""
        found = {str(self.origin(kind)) for kind in SUPPLIED_ARGUMENTS}
        return sorted(name for name in found if name.partition(" ")[0] != registry.OWN_DISTRIBUTION)

    def origin(self, kind: str) -> registry.Origin:
        """Which distribution provides the part of one kind."""
        return registry.ALL_REGISTRIES[kind].origin(self.part(kind).name, prefer=self.distribution)

    def settings(self) -> dict[str, Any]:
        """Everything that `with_` can change, `{dotted key: value}`, parts' defaults included."""
        found: dict[str, Any] = {"condition": self.condition}
        for kind in SUPPLIED_ARGUMENTS:
            factory, arguments = self._factory(kind)
            prefix = "data" if kind == "dataset" else kind
            found[f"{prefix}.name"] = self.part(kind).name
            for name, parameter in inspect.signature(factory).parameters.items():
                if not is_supplied(kind, parameter):
                    found[f"{prefix}.{name}"] = arguments.get(name, parameter.default)
        return found | {f"train.{name}": value for name, value in self.train}

    def prior_of(self, *, z_shapes: Sequence[Shape], num_classes: int = 0, **offered: Any) -> Any:
        """Builds the prior for codes of a shape.

        Args:
            z_shapes: of the codes.
            num_classes: how many values a number of a code can take; 0: codes are real.
            offered: `cond_dim`, and what else a prior may take: see `OPTIONAL_ARGUMENTS`.

        Raises:
            UsageError: as `make`, or it is for real codes and these are integers, or vice versa.
        """
        parameters = inspect.signature(self._factory("prior")[0]).parameters.values()
        taken = {p.name for p in parameters if is_supplied("prior", p)}
        if bool(num_classes) != ("num_classes" in taken):
            names = ("integers", "real", "standard-normal"), ("real", "integers", "categorical")
            prior, codes, other = names[num_classes > 0]
            raise UsageError(
                f"prior {self.prior.name!r} is for codes that are {prior}, and those of bottleneck "
                f"{self.bottleneck.name!r} are {codes}: choose another, such as "
                f"--set prior.name={other}"
            )
        offered |= {"z_shapes": z_shapes, "num_classes": num_classes}
        return self.make("prior", **{name: offered[name] for name in taken})

    def _factory(self, kind: str) -> tuple[Any, dict[str, Any]]:
        part = self.part(kind)
        factory = registry.ALL_REGISTRIES[kind].get(part.name, prefer=self.distribution)
        taken = inspect.signature(factory).parameters
        if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in taken.values()):
            raise PluginError(
                f"{registry.ALL_REGISTRIES[kind].describe(factory)}: its constructor takes any "
                f"argument; it must name them, keyword-only, so that a setting that does not exist "
                f"is noticed"
            )
        for name in SUPPLIED_ARGUMENTS[kind]:
            if name not in taken:
                raise UsageError(
                    f"{kind} {part.name!r}: its constructor must take {name!r}, as of contract "
                    f"{CONTRACT_VERSION}; ask for a newer version of the package that provides it"
                )
        return factory, check_arguments(factory, part, kind=kind)


def is_supplied(kind: str, parameter: inspect.Parameter) -> bool:
    """Returns whether an argument of a part comes from `Autoencoder`, and not from a recipe."""
    if parameter.name in OPTIONAL_ARGUMENTS.get(kind, ()):
        return parameter.default is parameter.empty
    return parameter.name in SUPPLIED_ARGUMENTS[kind]


def check_arguments(factory: Any, part: Part, *, kind: str) -> dict[str, Any]:
    """Returns a part's own arguments as its constructor annotates them: a JSON list as a tuple.

    Raises:
        UsageError: one is unknown, missing or of a wrong type.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if not is_supplied(kind, parameter)
    }
    label = f"{kind} {part.name!r}"
    if loose := [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]:
        raise UsageError(
            f"{label}: constructors of parts are keyword-only, but {loose[0]!r} is not"
        )
    constructor = factory if inspect.isfunction(factory) else factory.__init__
    hints = typing.get_type_hints(constructor, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default)
        for name, p in parameters.items()
    }
    model = pydantic.create_model(
        "arguments",
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True),
        **fields,
    )
    try:
        checked = model.model_validate(part.arguments)
    except pydantic.ValidationError as error:
        raise UsageError(f"{label}: {describe_invalid(error, model)}") from None
    return {name: getattr(checked, name) for name in part.arguments}


def choose_labels(recipe: Recipe, labels: Mapping[str, int]) -> dict[str, int]:
    """The labels that condition a recipe, with their numbers of classes.

    Raises:
        UsageError: the data type has no such label.
    """
    for name in recipe.condition:
        if name not in labels:
            raise UsageError(
                f"recipe: condition {name!r} is no label of modality "
                f"{recipe.modality.name!r}: {did_you_mean(name, labels)}"
            )
    return {name: labels[name] for name in recipe.condition}


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads `key=value` pairs, values as JSON where they are JSON, else as text.

    Raises:
        UsageError: a pair has no `=`.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes key=value, such as train.lr=3e-4, not {pair!r}")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def named(name: str) -> Recipe:
    """Returns the recipe that an installed package, or this process, provides under `name`.

    Raises:
        UsageError: there is none.
        RunError: its function raises, or returns no recipe.
    """
    function = registry.recipes.get(name)
    origin = registry.recipes.origin(name)
    whose = registry.recipes.describe(function)
    try:
        with wrap_plugin_errors(f"{whose} raises"):
            recipe = function()
    except UsageError as error:
        raise PluginError(f"{whose}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise PluginError(f"{whose} must return a Recipe, not {type(recipe).__name__}")
    return recipe.model_copy(update={"distribution": origin.distribution})


def summary(part: Any) -> str:
    """The first line of a part's docstring."""
    return (inspect.getdoc(part) or "").partition("\n")[0]


def describe_invalid(error: pydantic.ValidationError, model: type[BaseModel]) -> str:
    """Says the first of pydantic's complaints in words, with the nearest name."""
    first = max(error.errors(), key=lambda one: len(one["loc"]))  # of several types, the nearest
    path = [str(step) for step in first["loc"] if not PYDANTIC_TYPE.fullmatch(str(step))]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        for step in path[:-1]:
            model = typing.cast(type[BaseModel], model.model_fields[step].annotation)
        return f"there is no setting {where!r}: {did_you_mean(path[-1], model.model_fields)}"
    if first["type"] == "missing":
        return f"the setting {where!r} is missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    given = " ".join(repr(first["input"]).split())
    given = f"{given[:MAX_VALUE_CHARS]} …" if len(given) > MAX_VALUE_CHARS else given
    return f"{repr(where) if where else 'it'} is {given}, but {message}"
