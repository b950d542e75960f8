"""A run's durations in steps: what a config says in epochs, converted once.

Without JAX, as a config is checked before JAX starts; but steps may be traced.
"""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's durations in steps.

    Epochs and steps are counted from 0. Times past the end of the run may be asked
    for, and steps may be traced.

    Attributes:
      epochs: passes over the active training examples, the multiplier included; of
        all trainings, where there are several.
      steps_per_epoch: full batches in one pass.
      total_steps: steps of the whole run.
      warmup_steps: steps of linear warm-up, in epochs of `steps_per_epoch`.
      train_examples: size of the training set, active or not.
      shorter: (epochs, steps): after so many epochs an epoch has only so many steps;
        None if all are alike.
      rounds: how often training starts again.
      rewind_epochs: from which epoch of the first training on.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    train_examples: int = 0
    shorter: tuple[int, int] | None = None
    rounds: int = 0
    rewind_epochs: int = 0

    def epoch_of(self, step: Any) -> Any:
        """The epoch that a step belongs to."""
        if self.shorter is None:
            return step // self.steps_per_epoch
        epochs, steps = self.shorter
        late = _excess(step, epochs * self.steps_per_epoch)
        return (step - late) // self.steps_per_epoch + late // steps

    def start_of(self, epoch: Any) -> Any:
        """The first step of an epoch."""
        if self.shorter is None:
            return epoch * self.steps_per_epoch
        epochs, steps = self.shorter
        late = _excess(epoch, epochs)
        return (epoch - late) * self.steps_per_epoch + late * steps

    def epochs_at(self, step: int) -> float:
        """Epochs after so many steps, with what has been done of the last."""
        epoch = self.epoch_of(step)
        start, end = self.start_of(epoch), self.start_of(epoch + 1)
        return epoch + (step - start) / (end - start)

    def step_at(self, epochs: float) -> int:
        """The step after so many epochs, whole or not."""
        if self.shorter is None or epochs <= self.shorter[0]:
            return round(epochs * self.steps_per_epoch)
        before, steps = self.shorter
        return before * self.steps_per_epoch + round((epochs - before) * steps)

    def share(self, fraction: float, end: int) -> int:
        """The step after such a share of the epochs up to the step `end`."""
        if self.shorter is None:
            return round(fraction * end)
        return self.step_at(fraction * self.epochs_at(end))

    def at_full_length(self, step: Any) -> Any:
        """The step that is as many epochs into a run whose epochs are all alike."""
        if self.shorter is None:
            return step
        epoch = self.epoch_of(step)
        start, end = self.start_of(epoch), self.start_of(epoch + 1)
        part = (step - start) / (end - start)
        return (epoch + part) * self.steps_per_epoch

    @property
    def training_epochs(self) -> int:
        """Epochs of the first training; the others repeat its end."""
        repeated = self.rounds * self.rewind_epochs
        return (self.epochs + repeated) // (self.rounds + 1)

    @property
    def training_steps(self) -> int:
        """Steps of the first training."""
        return self.start_of(self.training_epochs)

    def round_of(self, epoch: int) -> int:
        """The training that an epoch belongs to, 0 for the first."""
        again = self.training_epochs - self.rewind_epochs
        return _excess(epoch - self.rewind_epochs, 0) // again

    def epoch_in_training(self, epoch: int) -> int:
        """The epoch of the first training that an epoch repeats."""
        again = self.training_epochs - self.rewind_epochs
        return epoch - self.round_of(epoch) * again

    def step_in_training(self, step: int) -> int:
        """The step of the first training that a step repeats."""
        epoch = self.epoch_of(step)
        again = epoch - self.epoch_in_training(epoch)
        return step - self.start_of(again)


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """When a method changes the topology, in steps.

    Attributes:
      interval: steps between topology updates.
      start: no topology update up to this step, and the interval counts from it.
      until: last step that may end with a topology update.
      later: (step, interval), the steps increasing: from there on the interval is that.
    """

    interval: int
    start: int
    until: int
    later: tuple[tuple[int, int], ...] = ()


def every_so_many_epochs(
    plan: Plan, epochs: float, start_epochs: float, until: int
) -> UpdatePlan:
    """Topology updates at equal distances in epochs, however long an epoch is.

    Args:
      plan: the durations of the run.
      epochs: between two topology updates.
      start_epochs: what they are counted from.
      until: last step that may end with one.

    Returns:
      The steps.

    >>> plan = Plan(10, 8, 56, 0, shorter=(4, 4))
    >>> every_so_many_epochs(plan, 3, 0, 56)  # at epochs 3, 6, 9
    UpdatePlan(interval=24, start=0, until=56, later=((24, 16), (40, 12)))
    """
    interval = max(1, round(plan.steps_per_epoch * epochs))
    start = plan.step_at(start_epochs)
    if plan.shorter is None:
        return UpdatePlan(interval, start, until)
    before, steps = plan.shorter
    # The last update while epochs are long, and the one after it, which may have some
    # of both kinds before it.
    number = max(0, math.floor((before - start_epochs) / epochs + 1e-9))
    long = start + number * interval
    next_ = max(plan.step_at(start_epochs + (number + 1) * epochs), long + 1)
    later = ((long, next_ - long), (next_, max(1, round(steps * epochs))))
    if number:
        return UpdatePlan(interval, start, until, later)
    return UpdatePlan(next_ - start, start, until, later[1:])


def _excess(value: Any, bound: int) -> Any:
    """max(value - bound, 0), of whole numbers of any kind."""
    over = value - bound
    return (over + abs(over)) // 2
