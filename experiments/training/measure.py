"""What is measured while a method is trained: the lines of its metrics."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import neurrev_jax
from experiments import config as config_lib
from experiments.data.base import DataInfo
from experiments.data.batches import Batches
from experiments.methods import Arm, learning_rate
from experiments.training import evaluation as evaluation_lib
from experiments.training import state as state_lib
from experiments.training.feeds import Feed
from neurrev_jax import models


@dataclasses.dataclass(frozen=True)
class Shared:
    """Compiled functions that are the same for all methods.

    Attributes:
      evaluate: see `evaluation.make_evaluate`.
      observer: see `evaluation.make_observer`.
    """

    evaluate: Callable[[Any, Batches], evaluation_lib.EvalSums]
    observer: evaluation_lib.Observer


def share(model: nn.Module, info: DataInfo) -> Shared:
    """Prepares what every method's measurements use.

    Args:
      model: the network.
      info: facts about the data.

    Returns:
      The functions; each is compiled on its first call.
    """
    return Shared(
        evaluate=evaluation_lib.make_evaluate(model, info),
        observer=evaluation_lib.make_observer(model, info),
    )


class Measure:
    """Measures one method.

    Args:
      config: its resolved config.
      plan: its durations in steps.
      arm: the method.
      feed: the data.
      shared: compiled functions.
    """

    def __init__(
        self,
        config: config_lib.Config,
        plan: config_lib.Plan,
        arm: Arm,
        feed: Feed,
        shared: Shared,
    ):
        self._config, self._plan, self._arm = config, plan, arm
        self._feed, self._shared = feed, shared
        self._forward_variables = evaluation_lib.make_forward_variables(arm)
        self._updates = arm.topology_updates(plan.total_steps)
        self._rate_of_step = learning_rate(config, plan)

    def steps(self, step: int, sums: state_lib.Sums) -> dict[str, Any]:
        """A line of the step log.

        Args:
          step: steps so far.
          sums: over the steps since the line before.

        Returns:
          The line.
        """
        steps = (step - 1) % self._config.log_every_steps + 1
        return {
            "step": step,
            "epoch": self._plan.epochs_at(step),
            "learning_rate": self._rate(step),
            "train_loss": float(sums.loss) / steps,
            "train_accuracy": int(sums.correct) / (steps * self._config.batch_size),
        }

    def epoch(
        self, state: state_lib.TrainState, replicated: Any, sums: state_lib.Sums
    ) -> dict[str, Any]:
        """A line of the metrics: the network after an epoch.

        Args:
          state: the state on the host.
          replicated: the same on the devices.
          sums: over the steps of the epoch.

        Returns:
          The line.
        """
        plan, step = self._plan, int(state.step)
        epoch = plan.epoch_of(step)
        length = step - plan.start_of(epoch - 1)
        variables = self._forward_variables(replicated)
        evaluated = self._evaluate(variables)
        summary = self._arm.summarize(state.params, state.opt_state)
        values = {
            "epoch": epoch,
            "step": step,
            "learning_rate": self._rate(step),
            "train_loss": float(sums.loss) / length,
            "train_accuracy": int(sums.correct) / (length * self._config.batch_size),
            "test_loss": float(evaluated.loss) / int(evaluated.count),
            "test_accuracy": int(evaluated.correct) / int(evaluated.count),
            "sparsity": summary.total.sparsity,
            "topology_updates": int(self._updates[step]),
            **self._arm.report(state.opt_state),
            **self._arm.around.report(state.memory, epoch),
        }
        is_last = epoch == self._plan.epochs
        if epoch % self._config.dormant.every_epochs == 0 or is_last:
            values.update(self._dormant(variables))
        return values

    def _rate(self, step: int) -> float:
        """The learning rate of the step that has just been made."""
        step = self._plan.step_in_training(step - 1)
        return np.asarray(self._rate_of_step(np.int32(step))).item()

    def _evaluate(self, variables: Any) -> evaluation_lib.EvalSums:
        # Summed on the host, in the type of the devices: the same every time.
        return functools.reduce(
            lambda a, b: jax.tree.map(np.add, a, b),
            (
                state_lib.unreplicate(self._shared.evaluate(variables, batches))
                for batches in self._feed.test()
            ),
        )

    def _dormant(self, variables: Any) -> dict[str, Any]:
        observer, stats = self._shared.observer, None
        for batches in self._feed.observed():
            if stats is None:
                stats = observer.start(variables, batches)
            stats = observer.add(variables, stats, batches)
        stats = state_lib.unreplicate(observer.finish(stats))

        def rates(where: Any = None) -> neurrev_jax.DormantRates:
            dormant = self._config.dormant
            return neurrev_jax.dormant_rate(
                stats, dormant.criterion, dormant.threshold, where=where
            )

        every = rates()
        # Channels after an addition can be kept alive by the shortcut alone.
        inner = rates(models.is_inner)
        return {
            "dormant_rate": float(every.overall),
            "dormant_rate_inner": float(inner.overall),
            "dormant_rate_by_layer": {
                path: float(rate) for path, rate in every.layers.items()
            },
        }
