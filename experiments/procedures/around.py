"""What happens around the steps of one method's training."""

import dataclasses
from typing import Any, NamedTuple

import jax

from experiments import config as config_lib
from experiments.procedures import sieving as sieving_lib
from experiments.procedures.freezing import Freezing
from experiments.procedures.lottery import Lottery
from experiments.procedures.sieving import Sieving

# Folded into the run's key in the place of an epoch, whose keys order the examples.
_PURPOSE = 2**31 - 1


class Memory(NamedTuple):
    """What the procedures remember; part of the state of training.

    Attributes:
      ticket: a `lottery.Ticket`, or ().
      sieve: a `sieving.Sieve`, or ().
    """

    ticket: Any = ()
    sieve: Any = ()


@dataclasses.dataclass(frozen=True)
class Around:
    """The procedures of one method; by default there is none.

    Attributes:
      plan: durations in steps.
      lottery: pruning in rounds, or None.
      freezing: of layers, or None.
      sieving: of examples, or None.
    """

    plan: config_lib.Plan
    lottery: Lottery | None = None
    freezing: Freezing | None = None
    sieving: Sieving | None = None

    def start(
        self, params: Any, batch_stats: Any, opt_state: Any, key: jax.Array
    ) -> tuple[Any, Memory]:
        """What training starts with.

        Args:
          params: fresh parameters.
          batch_stats: fresh batch statistics.
          opt_state: fresh optimizer state.
          key: the run's key.

        Returns:
          (optimizer state, memory).
        """
        memory = Memory()
        if self.lottery is not None:
            opt_state, ticket = self.lottery.start(params, batch_stats, opt_state)
            memory = memory._replace(ticket=ticket)
        if self.sieving is not None:
            examples, active = self.sieving.examples, self.sieving.active
            sieve = sieving_lib.start(examples, active, _key(key, 0))
            memory = memory._replace(sieve=sieve)
        return opt_state, memory

    def frozen_blocks(self, epoch: int) -> int:
        """Blocks that are frozen in an epoch, counted from 0."""
        return 0 if self.freezing is None else self.freezing.frozen_blocks(epoch)

    def after_epoch(self, state: Any, epochs: int) -> Any:
        """What follows on an epoch that is not the last.

        Args:
          state: a `TrainState` on the host.
          epochs: epochs so far.

        Returns:
          The state of the next epoch.
        """
        key = _key(jax.random.wrap_key_data(state.key), epochs)
        if self.sieving is not None:
            sieve = self.sieving.after_epoch(state.memory.sieve, epochs, key)
            state = state._replace(memory=state.memory._replace(sieve=sieve))
        if self.lottery is not None:
            state = self._end_round(self.lottery, state, epochs, key)
        return state

    def _end_round(
        self, lottery: Lottery, state: Any, epochs: int, key: jax.Array
    ) -> Any:
        ticket = state.memory.ticket
        if epochs == self.plan.rewind_epochs:
            ticket = ticket._replace(params=state.params, batch_stats=state.batch_stats)
        if self._ends_round(epochs):
            params, batch_stats, opt_state, ticket = lottery.end_round(
                state.params, state.opt_state, ticket, key
            )
            state = state._replace(
                params=params, batch_stats=batch_stats, opt_state=opt_state
            )
        return state._replace(memory=state.memory._replace(ticket=ticket))

    def is_due(self, epochs: int) -> bool:
        """Whether something follows on the first so many epochs."""
        plan = self.plan
        return (self.sieving is not None and self.sieving.is_due(epochs)) or (
            self.lottery is not None
            and (epochs == plan.rewind_epochs or self._ends_round(epochs))
        )

    def _ends_round(self, epochs: int) -> bool:
        return self.plan.round_of(epochs) > self.plan.round_of(epochs - 1)

    def report(self, memory: Memory, epochs: int) -> dict[str, int]:
        """What the metrics of an epoch say of the procedures.

        Args:
          memory: at the end of the epoch.
          epochs: epochs so far.

        Returns:
          Values by name; nothing where there is no procedure.
        """
        values = {}
        if self.lottery is not None:
            last = epochs - 1
            values["round"] = int(memory.ticket.done)
            values["epoch_in_round"] = self.plan.epoch_in_training(last) + 1
        if self.freezing is not None:
            values["frozen_blocks"] = self.frozen_blocks(epochs - 1)
        if self.sieving is not None:
            values["active_examples"] = int(memory.sieve.active)
            values["forgetting_events"] = int(memory.sieve.forgotten.sum())
        return values


def _key(key: jax.Array, epochs: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, _PURPOSE), epochs)
