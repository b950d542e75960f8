"""When: which calls of `update` end with a topology update."""

import dataclasses
import itertools
from collections.abc import Sequence

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

    def last_update(self) -> int | None:
        """The call of the last topology update: 0 if there is none, None if no last.

        >>> periodic(100, until=250).last_update()
        200
        """
        if self.until is None:
            return None
        updates = self.number_of_updates(self.until)
        return self.start + self.every * updates if updates else 0


@dataclasses.dataclass(frozen=True)
class Staged:
    """One update interval after another.

    Attributes:
      stages: periodic schedules that do not overlap.
    """

    stages: tuple[Periodic, ...]

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        return jnp.any(jnp.stack([stage(t) for stage in self.stages]))

    def number_of_updates(self, calls: int) -> int:
        """How many topology updates there are in so many calls."""
        return sum(stage.number_of_updates(calls) for stage in self.stages)

    def last_update(self) -> int | None:
        """The call of the last topology update: 0 if there is none, None if no last."""
        ends = [stage.last_update() for stage in self.stages]
        return None if None in ends else max(end or 0 for end in ends)


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


@dataclasses.dataclass(frozen=True)
class Phases:
    """Dense and sparse phases in turn, the first one dense, the last one sparse.

    Attributes:
      boundaries: increasing calls that end a phase, an odd number of them: after
        the first the network is sparse, after the second dense, and so on.
    """

    boundaries: tuple[int, ...]

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        boundaries = jnp.array(self.boundaries, jnp.int32)
        return jnp.any(jnp.asarray(t, jnp.int32) == boundaries)

    def is_sparse_after(self, t: jax.typing.ArrayLike) -> jax.Array:
        """Whether the network is sparse once call t is over."""
        boundaries = jnp.array(self.boundaries, jnp.int32)
        passed = jnp.sum(jnp.asarray(t, jnp.int32) >= boundaries)
        return passed % 2 == 1

    def number_of_updates(self, calls: int) -> int:
        """How many topology updates there are in so many calls."""
        return sum(boundary <= calls for boundary in self.boundaries)

    def sparse_share(self, calls: int) -> float:
        """The share of the first `calls` calls that compute with a sparse network.

        >>> phases([10, 15, 20, 25, 85]).sparse_share(100)
        0.25
        """
        ends = [*self.boundaries, max(calls, self.boundaries[-1])]
        sparse = sum(
            max(min(end, calls) - begin, 0)
            for begin, end in zip(ends[::2], ends[1::2], strict=True)
        )
        return sparse / calls


def phases(boundaries: Sequence[int]) -> Phases:
    """Dense and sparse phases in turn, as AC/DC trains (Peste et al., 2021).

    Args:
      boundaries: increasing calls, each of which ends with a change: the first from
        dense to sparse, the second back, and so on. An odd number of them, so that
        training ends sparse.

    Returns:
      A schedule: a function of the call number t.

    Raises:
      ValueError: for an even number of boundaries, or boundaries that do not
        increase from 1 up.

    >>> schedule = phases([2, 4, 6])
    >>> [bool(schedule.is_sparse_after(t)) for t in range(1, 8)]
    [False, True, True, False, False, True, True]
    """
    boundaries = tuple(int(boundary) for boundary in boundaries)
    if any(b <= a for a, b in itertools.pairwise((0, *boundaries))):
        raise ValueError(
            f"boundaries={boundaries!r} must increase, from 1 up; they count calls of "
            "update, so convert epochs to steps and sort them."
        )
    if len(boundaries) % 2 == 0:
        raise ValueError(
            f"boundaries={boundaries!r}: with {len(boundaries)} of them the last phase "
            "is dense; give an odd number, so that training ends sparse."
        )
    return Phases(boundaries)


def staged(
    every: Sequence[int],
    boundaries: Sequence[int],
    until: int | None = None,
    start: int = 0,
) -> Staged:
    """Topology updates at intervals that change over training.

    After every `every[i]` calls, counted from call `boundaries[i - 1]`, up to and
    including call `boundaries[i]`: the growing periods of DSR (Mostafa and Wang,
    2019), say.

    Args:
      every: update intervals in calls, one more than `boundaries`.
      boundaries: increasing call numbers.
      until: the last call that may end with a topology update; None for no end.
      start: no topology update up to this call; the interval that holds there counts
        from it.

    Returns:
      A schedule: a function of the call number t.

    Raises:
      ValueError: if the lengths do not fit, the boundaries do not increase, an
        interval is below 1 or `start` negative.

    >>> schedule = staged([2, 4], [6], until=14)
    >>> [t for t in range(1, 20) if schedule(t)]
    [2, 4, 6, 10, 14]
    """
    every, boundaries = tuple(every), tuple(boundaries)
    if len(every) != len(boundaries) + 1:
        raise ValueError(
            f"{len(every)} intervals and {len(boundaries)} boundaries do not fit: "
            "give exactly one interval more than boundaries."
        )
    if start < 0:
        raise ValueError(f"start={start!r} must not be negative; it counts calls.")
    edges = (0, *boundaries)
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"boundaries={boundaries!r} must increase, from 1 up; sort them."
        )
    ends = [end if until is None else min(end, until) for end in boundaries]
    return Staged(
        tuple(
            periodic(interval, until=end, start=max(begin, start))
            for interval, end, begin in zip(every, [*ends, until], edges, strict=True)
        )
    )
