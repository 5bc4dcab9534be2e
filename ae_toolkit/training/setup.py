"""What a training needs, set up: the data in batches, the model and its learner, and a step.

`fit` trains with it; a dry run only measures it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ae_toolkit.autoencoder import Autoencoder
from ae_toolkit.console import tell
from ae_toolkit.contracts import Batch, Step, Terms
from ae_toolkit.data.batches import Batches
from ae_toolkit.data.examples import hold_out, load_data
from ae_toolkit.errors import Failure, Fault, said
from ae_toolkit.modality import Modality
from ae_toolkit.parts.backbones.covering import let_cover
from ae_toolkit.randomness import Source, Tape
from ae_toolkit.recipe import Recipe
from ae_toolkit.registry import culprit
from ae_toolkit.training import memory
from ae_toolkit.training.distributed import Ranks, check_batch
from ae_toolkit.training.engine import Engine
from ae_toolkit.training.optimizer import Learner, whole_state
from ae_toolkit.training.schedule import Schedule
from ae_toolkit.training.step import Stepper
from ae_toolkit.training.validation import means


class Workshop:
    """Everything that a recipe's training works with.

    Args:
        recipe: what to build.
        engine: how to work; it may be exchanged until `rehearse`.
        device: where to work.
        ranks: who works together.

    Raises:
        Misuse: the recipe cannot be built, or its batches cannot be shared by the ranks.
        Failure: the data cannot be read.
    """

    def __init__(self, recipe: Recipe, engine: Engine, device: torch.device, ranks: Ranks):
        self.recipe, self.engine, self.device, self.ranks = recipe, engine, device, ranks
        self.train = train = recipe.train
        check_batch(train, ranks.num)

        # The data: split by group, and dealt out in batches.
        self.modality: Modality = recipe.make("modality")
        everything = ranks.leader_first(lambda: load_data(recipe, self.modality, "train"))
        learned, self.held_out = hold_out(everything, train.validation, seed=train.seed)
        del everything
        self.examples = learned.to(device)
        self.schedule = Schedule.of(train, len(self.examples), num_ranks=ranks.num)
        if self.schedule.batch_size < train.batch_size:
            tell(
                f"train.batch_size is {train.batch_size}, but there are {len(self.examples)} "
                f"examples: each batch holds {self.schedule.batch_size}"
            )
        self.batches = Batches.of(
            self.examples,
            batch_size=self.schedule.batch_size,
            batches=self.schedule.batches,
            seed=train.seed,
            device=device,
            rank=ranks.rank,
            num_ranks=ranks.num,
        )

        # The model, its averaged twin, and what moves them.
        torch.manual_seed(train.seed)
        # Sharded weights are whole twice, on the CPU, before they are shared.
        copies = 2 if self.sharded else memory.COPIES
        with memory.weighing(device, share=memory.neighbours(), copies=copies):
            self.model = Autoencoder(recipe, modality=self.modality)
            if device.type == "cpu":
                let_cover(self.model)
            if not self.sharded:
                self.model = self.model.to(device).to(memory_format=torch.channels_last)
            self.objective = recipe.make("objective")
            twin = copy.deepcopy(self.model).eval()
            self.called = ranks.spread(self.model, train)
            if self.sharded:
                ranks.spread(twin, train)
            self.learner = Learner(self.model, twin, train)
            self.model.train()

    @property
    def sharded(self) -> bool:
        """Whether no rank has the whole model."""
        return self.train.parallel == "fsdp" and self.ranks.num > 1

    def rehearse(self, step: int) -> None:
        """Runs the batch of a step once, to hear which noise is asked for.

        Raises:
            Failure: a part does not do what it should.
        """
        first = self.batches.at(step * self.train.accumulate)
        before = [buffer.clone() for buffer in self.model.buffers()]
        size, accumulate = len(first.y), self.train.accumulate
        if not self.sharded:  # whose parts work within the whole only
            with memory.enough_for(size, accumulate=accumulate):
                self._check_parts(_few(first, 2))
        memory.weigh_batch(
            lambda few: self._loss_of_some(first, few), size, self.device, accumulate=accumulate
        )
        with memory.enough_for(size, accumulate=accumulate), _first_step(self.recipe):
            self.tape = Tape(
                Source(self.train.seed, "train", self.device),
                lambda now: self.objective(self.terms_of(self.model, first, now), now),
                rank=self.ranks.rank,
                num_ranks=self.ranks.num,
            )
        # What a part counts of what it has seen must be the same in a training that is resumed.
        for buffer, former in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(former)

    def terms_of(self, model: nn.Module, batch: Batch, now: Step) -> Terms:
        """How the loss of a batch in the storage dtype is made up."""
        y = self.modality.augment(self.modality.prepare(batch.y), now)
        with self.engine.autocast():
            return model(batch._replace(y=y), now, num_samples=self.objective.num_samples)

    def loss_of(self, batch: Batch, now: Step) -> tuple[Tensor, Tensor]:
        """The loss `()`, and a row of `TERMS` to log."""
        terms = self.terms_of(self.called, batch, now)
        loss = self.objective(terms, now).mean()
        return loss, torch.stack([loss.detach(), *means(terms)])

    @torch.no_grad()
    def _check_parts(self, batch: Batch) -> None:
        """Holds what every part gives against its contract.

        Raises:
            Fault: a part gives something else.
        """
        now = Source(self.train.seed, "train", self.device).step(0, progress=0.0)
        y = self.modality.augment(self.modality.prepare(batch.y), now)
        with self.engine.autocast():
            self.model.check(batch._replace(y=y), now, objective=self.objective)

    def _loss_of_some(self, batch: Batch, few: int) -> Tensor:
        now = Source(self.train.seed, "train", self.device).step(0, progress=0.0)
        terms = self.terms_of(self.model, _few(batch, few), now)
        loss: Tensor = self.objective(terms, now).mean()
        return loss

    def stepper(self, compiled: bool) -> Stepper:
        return Stepper(
            self.loss_of,
            self.called,
            self.learner,
            accumulate=self.train.accumulate,
            device=self.device,
            alone=self.ranks.num == 1,
            compiled=compiled,
        )

    def paces(self, first: int, num: int) -> Tensor:
        """What `Learner.update` must know of the steps from `first` on, a row for each."""
        rates = [self.train.lr * self.schedule.factor(i) for i in range(first, first + num)]
        return self.learner.paces(rates, first=first, steps=self.schedule.steps)

    def take(self, stepper: Stepper, step: int, pace: Tensor) -> Tensor:
        """Takes one step and returns its row of `TERMS`, the mean of this rank's batches."""
        micros = range(step * self.train.accumulate, (step + 1) * self.train.accumulate)
        rows = [
            stepper(self.batches.at(micro), self.tape.draw(micro), pace, last=micro == micros[-1])
            for micro in micros
        ]
        return rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)

    def shown(self) -> Autoencoder | None:
        """The averaged model, whole, on rank 0; None on the others. All ranks must ask."""
        averaged = self.learner.settle()
        if not self.sharded:
            assert isinstance(averaged, Autoencoder)
            return averaged if self.ranks.leads else None
        weights = whole_state(averaged, keep=self.ranks.leads)
        if not self.ranks.leads:
            return None
        model = Autoencoder(self.recipe, modality=self.modality)
        model.load_state_dict(weights)
        return model.eval()


def _few(batch: Batch, num: int) -> Batch:
    """The first examples of a batch."""
    return Batch(
        batch.y[:num],
        None if batch.mask is None else batch.mask[:num],
        {name: column[:num] for name, column in batch.labels.items()},
    )


@contextmanager
def _first_step(recipe: Recipe) -> Iterator[None]:
    """Says that a stranger's parts do not fit, where the error comes from what they gave to ours.

    Raises:
        Fault: so it is.
    """
    try:
        yield
    except Exception as error:
        strangers = recipe.strangers()
        if isinstance(error, Failure) or not strangers or culprit(error):
            raise
        raise Fault(
            f"recipe {recipe.name!r}, with parts of {', '.join(strangers)}, fails at its first "
            f"step: {said(error)}"
        ) from error
