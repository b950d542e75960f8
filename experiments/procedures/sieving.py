"""Which examples are trained on: circular sieving, and removal of the easy ones.

An example is forgotten when it is classified wrongly after it was classified rightly
the time before (Toneva et al. 2019). The easiest ones are those forgotten least often;
one that was never classified rightly counts as hardest of all. SpFDE (Yuan et al. 2022)
keeps a part of the examples back and exchanges some at intervals; MEST (Yuan et al.
2021) removes the easiest for good. Shape letters: N training examples, B of a batch.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neurrev_jax


class Sieve(NamedTuple):
    """What is remembered of the examples.

    Attributes:
      order: all examples, int32[N]: first the active ones, then those kept back, of
        which the first have been waiting longest.
      active: number of active ones, int32[].
      correct: whether an example was classified rightly last time, bool[N].
      learned: whether it ever was, bool[N].
      forgotten: how often it was forgotten, int32[N].
    """

    order: Any
    active: Any
    correct: Any
    learned: Any
    forgotten: Any


def start(examples: int, active: int, key: jax.Array) -> Sieve:
    """A random part of the examples is active, none has been seen.

    Args:
      examples: N.
      active: how many are active.
      key: PRNG key.

    Returns:
      The sieve.
    """
    nothing = jnp.zeros(examples, bool)
    return Sieve(
        order=jax.random.permutation(key, examples).astype(jnp.int32),
        active=jnp.int32(active),
        correct=nothing,
        learned=nothing,
        forgotten=jnp.zeros(examples, jnp.int32),
    )


def observe(sieve: Sieve, examples: jax.Array, correct: jax.Array) -> Sieve:
    """Notes how a batch was classified.

    Args:
      sieve: the sieve.
      examples: int[B], no example twice.
      correct: bool[B].

    Returns:
      The new sieve.

    >>> sieve = start(3, 3, jax.random.key(0))
    >>> for correct in ([True, False], [False, True], [False, False]):
    ...     sieve = observe(sieve, jnp.array([0, 2]), jnp.array(correct))
    >>> sieve.forgotten.tolist(), sieve.learned.tolist()
    ([1, 0, 1], [True, False, True])
    """
    is_forgotten = sieve.correct[examples] & ~correct
    return sieve._replace(
        correct=sieve.correct.at[examples].set(correct),
        learned=sieve.learned.at[examples].max(correct),
        forgotten=sieve.forgotten.at[examples].add(is_forgotten.astype(jnp.int32)),
    )


def shuffle(sieve: Sieve, key: jax.Array) -> jax.Array:
    """The order in which an epoch takes the examples.

    Args:
      sieve: the sieve.
      key: PRNG key.

    Returns:
      int32[N]: the active ones at random, then the others.
    """
    places = jax.random.permutation(key, sieve.order.shape[0])
    active_first = jnp.argsort(places >= sieve.active, stable=True)
    return sieve.order[places[active_first]]


def exchange(sieve: Sieve, count: int, key: jax.Array) -> Sieve:
    """Moves the easiest active examples to the end of those kept back.

    As many that have waited longest come in for them. On the host.

    Args:
      sieve: the sieve.
      count: how many are exchanged.
      key: PRNG key, chooses among equally easy ones.

    Returns:
      The new sieve, with as many active examples as before.
    """
    active, waiting = np.split(np.asarray(sieve.order), [int(sieve.active)])
    easy = _easiest(sieve, count, key)[active]
    order = [active[~easy], waiting[:count], waiting[count:], active[easy]]
    return sieve._replace(order=np.concatenate(order))


def remove(sieve: Sieve, count: int, key: jax.Array) -> Sieve:
    """Takes the easiest examples out for good. On the host.

    Args:
      sieve: the sieve.
      count: how many are removed.
      key: PRNG key, chooses among equally easy ones.

    Returns:
      The new sieve.
    """
    active, waiting = np.split(np.asarray(sieve.order), [int(sieve.active)])
    easy = _easiest(sieve, count, key)[active]
    order = np.concatenate([active[~easy], waiting, active[easy]])
    return sieve._replace(order=order, active=np.int32(len(active) - count))


def _easiest(sieve: Sieve, count: int, key: jax.Array) -> np.ndarray:
    """The active examples forgotten least often, bool[N]."""
    is_active = np.zeros(len(sieve.order), bool)
    is_active[np.asarray(sieve.order)[: int(sieve.active)]] = True
    hardest = np.iinfo(np.int32).max
    scores = np.where(sieve.learned, sieve.forgotten, np.int32(hardest))
    return np.asarray(neurrev_jax.select(scores, is_active, count, key))


@dataclasses.dataclass(frozen=True)
class Sieving:
    """When examples are exchanged or removed; nothing by default.

    Attributes:
      examples: N.
      active: active ones at the start.
      every_epochs: between two exchanges; None: there are none.
      exchanged: examples of each.
      removal_epoch: after so many epochs examples are removed; None: never.
      removed: how many.
    """

    examples: int
    active: int
    every_epochs: int | None = None
    exchanged: int = 0
    removal_epoch: int | None = None
    removed: int = 0

    def is_due(self, epochs: int) -> bool:
        """Whether something follows on the first so many epochs."""
        return self._exchanges(epochs) or epochs == self.removal_epoch

    def _exchanges(self, epochs: int) -> bool:
        return self.every_epochs is not None and epochs % self.every_epochs == 0

    def after_epoch(self, sieve: Sieve, epochs: int, key: jax.Array) -> Sieve:
        """What follows on an epoch that is not the last.

        Args:
          sieve: the sieve.
          epochs: epochs so far.
          key: PRNG key of this moment.

        Returns:
          The sieve of the next epoch.
        """
        if self._exchanges(epochs):
            sieve = exchange(sieve, self.exchanged, key)
        if epochs == self.removal_epoch:
            sieve = remove(sieve, self.removed, key)
        return sieve
