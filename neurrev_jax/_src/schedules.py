"""When: which calls of `update` end with a topology update."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Every `every` calls after `start`, up to and including `until`.

    Attributes:
      every: calls between topology updates (the update interval), at least 1.
      until: no topology update after this call; None for no end.
      start: calls are counted from here, exclusive.
    """

    every: int
    until: int | None = None
    start: int = 0

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(t, jnp.int32)
        fires = (t > self.start) & ((t - self.start) % self.every == 0)
        return fires if self.until is None else fires & (t <= self.until)

    def number_of_updates(self, calls: int) -> int:
        """How many topology updates there are in so many calls.

        >>> periodic(100, until=93_600).number_of_updates(124_800)
        936
        """
        last = calls if self.until is None else min(calls, self.until)
        return max(last - self.start, 0) // self.every


@dataclasses.dataclass(frozen=True)
class Never:
    """No topology update at all."""

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        del t
        return jnp.zeros((), bool)


def periodic(every: int, until: int | None = None, start: int = 0) -> Periodic:
    """Topology updates after every `every` calls.

    Call t, counted from 1, ends with one iff start < t <= until and
    (t - start) % every == 0.

    Args:
      every: the update interval in calls, at least 1.
      until: the last call that may end with one (inclusive); None for no end.
      start: no topology update up to this call, and the interval counts from it.

    Returns:
      A schedule: a function of the call number t.

    Raises:
      ValueError: if `every` is below 1 or `start` negative.

    >>> schedule = periodic(3, until=9)
    >>> [t for t in range(1, 15) if schedule(t)]
    [3, 6, 9]
    """
    if int(every) != every or every < 1:
        raise ValueError(
            f"every={every!r} must be a whole number of at least 1; it counts calls "
            "of update, so convert epochs to steps first."
        )
    if start < 0:
        raise ValueError(f"start={start!r} must not be negative; it counts calls.")
    return Periodic(int(every), until, start)
