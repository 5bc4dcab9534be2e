"""A likelihood for rows of a table, whose columns are of several kinds."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ae_toolkit import registry
from ae_toolkit.contracts import Likelihood, StepContext
from ae_toolkit.parts.likelihood import misfit, refuse_classes


class Mixed(nn.Module):
    """Each column has a likelihood of its own: elements are `(columns,)`, real numbers.

        "likelihood": {"name": "mixed", "columns": [
            "gaussian", "bernoulli", {"name": "categorical", "num_classes": 3}]}

    A class is given by its number. Of the P parameters, which are the most that any column needs, a
    column reads the first ones. It is a density where each column's likelihood is one.

    Args:
        columns: the likelihood of each, by its name or with settings and `num_classes`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        columns: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)],
    ):
        super().__init__()
        refuse_classes(num_classes, "mixed")
        self.names = [f"columns[{i}]" for i in range(len(columns))]
        self.columns: list[Likelihood] = []
        for name, settings in zip(self.names, columns, strict=True):
            try:
                self.columns.append(_make(settings))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from None
        # A stranger's may be a plain object, which has no weights.
        self.learned = nn.ModuleList(c for c in self.columns if isinstance(c, nn.Module))
        self.num_params = max(column.num_params for column in self.columns)
        self.is_density = all(column.is_density for column in self.columns)

    def nll(self, params: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        each = [
            column.nll(
                params[:, : column.num_params, i : i + 1],
                y[:, i : i + 1],
                None if mask is None else mask[:, i : i + 1],
            )
            for i, column in enumerate(self.columns)
        ]
        return torch.stack(each).sum(0)

    def misfit(self, y: Tensor) -> str:
        if y.shape[1:] != (len(self.columns),):
            return (
                f"has {len(self.columns)} columns, and is for data of the shape "
                f"{(len(self.columns),)}, not {tuple(y.shape[1:])}"
            )
        for i, (name, column) in enumerate(zip(self.names, self.columns, strict=True)):
            if reason := misfit(column, y[:, i : i + 1]):
                return f"cannot take the data: {name} {reason}"
        return ""

    def supports(self, y: Tensor) -> bool:
        return self.is_density and not self.misfit(y)

    def sample(self, params: Tensor, *, temperature: float, step: StepContext) -> Tensor:
        each = [
            column.sample(
                params[:, : column.num_params, i : i + 1], temperature=temperature, step=step
            )
            for i, column in enumerate(self.columns)
        ]
        return torch.cat([values.to(params.dtype) for values in each], 1)


def _make(settings: str | dict[str, Any]) -> Likelihood:
    """Builds the likelihood of a column.

    Raises:
        ValueError: there is none of that name, or its settings do not fit.
    """
    given = {"name": settings} if isinstance(settings, str) else dict(settings)
    num_classes = given.pop("num_classes", 0)
    if not isinstance(given.get("name"), str) or not isinstance(num_classes, int):
        raise ValueError(f"{settings} should have a name, and num_classes be a whole number")
    name = given.pop("name")
    factory = registry.likelihoods.get(name)
    if unknown := sorted(set(given) - set(inspect.signature(factory).parameters)):
        raise ValueError(f"likelihood {name!r}: there is no setting {unknown[0]!r}")
    made: Likelihood = factory(num_classes=num_classes, **given)
    return made
