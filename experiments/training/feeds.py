"""How examples reach the devices: all of them at once, or batch after batch.

Both feeds have the same three methods. `train` continues training, `test` and
`observed` give the batches that are evaluated and that dormant neurons are measured
on. Shape letters: D local devices, S batches, B examples of a batch on one device.
"""

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import Config, Plan
from experiments.data import batches as batches_lib
from experiments.data.base import DataInfo, InMemory, Split
from experiments.data.batches import Batches
from experiments.errors import UsageError
from experiments.training import steps as steps_lib
from experiments.training.state import TrainState, distribute, replicate

Advance = Callable[[TrainState, int], TrainState]
"""``advance(state, steps) -> state``: trains so many steps, all of one epoch."""

# Steps that may be under way while the host prepares the next one.
_STEPS_AHEAD = 2

_NUMBERED = (
    "the examples of a stream have no number; use a data set that fits into memory."
)


class Feed(Protocol):
    """What a run needs of its data."""

    @property
    def info(self) -> DataInfo:
        """Facts about the data."""
        ...

    def train(self, recipe: steps_lib.Recipe, plan: Plan, step: int) -> Advance:
        """Training from a step on.

        Args:
          recipe: network, method and the like.
          plan: durations in steps.
          step: steps that have been trained before.

        Returns:
          What continues it; the state passed to it is given up.
        """
        ...

    def test(self) -> Iterator[Batches]:
        """The test set, on the local devices."""
        ...

    def sample(self, count: int, seed: int) -> Split:
        """Training examples on the host, the same in every process.

        Args:
          count: how many; all, if there are fewer.
          seed: chooses among them.

        Returns:
          The examples, as they are stored.
        """
        ...

    def train_labels(self) -> np.ndarray:
        """The classes of all training examples, of data held in memory."""
        ...

    def take(self, chosen: np.ndarray) -> Split:
        """Training examples by their number, of data held in memory."""
        ...

    def observed(self) -> Iterator[Batches]:
        """The examples that dormant neurons are measured on, on the local devices."""
        ...


class MemoryFeed:
    """Feeds from a data set that lies on every device.

    Args:
      config: a validated config.
      dataset: on the host.
    """

    def __init__(self, config: Config, dataset: InMemory):
        self.info = dataset.info
        self._batch_size = config.batch_size
        self._host = dataset.train
        self._train = replicate(dataset.train)
        head = Split(*(x[: config.dormant.examples] for x in dataset.train))
        self._test = _mine(dataset.test, config.eval_batch_size)
        self._observed = _mine(head, config.eval_batch_size)

    def train(self, recipe: steps_lib.Recipe, plan: Plan, step: int) -> Advance:
        """Whole stretches of an epoch in one call; see `Feed.train`."""
        del plan, step  # The state knows where it is.
        compiled = steps_lib.make_train_on_memory(recipe, self._batch_size)
        return lambda state, steps: compiled(state, self._train, np.int32(steps))

    def sample(self, count: int, seed: int) -> Split:
        """See `Feed.sample`."""
        order = np.random.default_rng(seed).permutation(len(self._host.labels))
        return self.take(order[:count])

    def train_labels(self) -> np.ndarray:
        """See `Feed.train_labels`."""
        return self._host.labels

    def take(self, chosen: np.ndarray) -> Split:
        """See `Feed.take`."""
        return Split(*(x[chosen] for x in self._host))

    def test(self) -> Iterator[Batches]:
        """See `Feed.test`."""
        yield self._test

    def observed(self) -> Iterator[Batches]:
        """See `Feed.observed`."""
        yield self._observed


class StreamFeed:
    """Feeds from a stream, a step at a time, ahead of the devices.

    Args:
      config: a validated config.
      stream: an `ImageStream` of this process.
    """

    def __init__(self, config: Config, stream: Any):
        self.info = stream.info
        self._config = config
        self._stream = stream

    def train(self, recipe: steps_lib.Recipe, plan: Plan, step: int) -> Advance:
        """One call per step; see `Feed.train`."""
        compiled = steps_lib.make_train_on_batch(recipe)
        batches = self._stream.train_batches(
            seed=self._config.seed,
            first_step=step,
            steps_per_epoch=plan.steps_per_epoch,
            batch_size=self._config.batch_size,
        )

        def advance(state: TrainState, steps: int) -> TrainState:
            under_way = collections.deque()
            for _ in range(steps):
                state, done = compiled(state, *map(_divide, next(batches)))
                under_way.append(done)
                if len(under_way) > _STEPS_AHEAD:
                    under_way.popleft().block_until_ready()
            return state

        return advance

    def sample(self, count: int, seed: int) -> Split:
        """See `Feed.sample`; these are the first that training sees."""
        size = self._config.batch_size
        batches = self._stream.train_batches(
            seed=seed,
            first_step=0,
            steps_per_epoch=self.info.train_examples // size,
            batch_size=size,
        )
        needed = itertools.islice(batches, -(-count // size))
        parts = [list(part) for part in zip(*needed, strict=True)] or [[], []]
        whole = [_gather(np.concatenate(part)) for part in parts if part]
        if not whole:
            shape = (0, *self.info.image_shape)
            return Split(np.zeros(shape, np.uint8), np.zeros(0, np.int32))
        return Split(*(x[:count] for x in whole))

    def train_labels(self) -> np.ndarray:
        """See `Feed.train_labels`."""
        raise UsageError(_NUMBERED)

    def take(self, chosen: np.ndarray) -> Split:
        """See `Feed.take`."""
        raise UsageError(_NUMBERED)

    def test(self) -> Iterator[Batches]:
        """See `Feed.test`."""
        return self._place(self._stream.test_batches(self._eval_batch_size()))

    def observed(self) -> Iterator[Batches]:
        """See `Feed.observed`."""
        examples = self._config.dormant.examples
        size = self._eval_batch_size()
        return self._place(self._stream.observed_batches(examples, size))

    def _eval_batch_size(self) -> int:
        devices = jax.device_count()
        return -(-self._config.eval_batch_size // devices) * devices

    def _place(self, batches: Iterator[Any]) -> Iterator[Batches]:
        for batch in batches:
            # A scan over a single batch.
            yield distribute(Batches(*(_divide(x)[:, None] for x in batch)))


def _gather(x: np.ndarray) -> np.ndarray:
    """All processes' parts, one after the other."""
    if jax.process_count() == 1:
        return x
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _divide(x: np.ndarray) -> np.ndarray:
    """Cuts a process's part of a batch into its devices' parts."""
    devices = jax.local_device_count()
    return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])


def _mine(split: Split, batch_size: int) -> Batches:
    """This process's part of a split that is divided over all devices."""
    laid_out = batches_lib.lay_out(split, batch_size, jax.device_count())
    local = jax.local_device_count()
    first = jax.process_index() * local
    return distribute(jax.tree.map(lambda x: x[first : first + local], laid_out))
