"""From a lower initial sparsity to the one asked for, along a cubic.

s(t) = s_f + (s_i - s_f) (1 - (t - begin)/(until - begin))^3 (Zhu and Gupta, 2018,
section 3), in whole numbers: of the n entries that have to go between the initial
count and the final one, floor(n (1 - progress)^3) are still there at call t, so that
the end is exact, and the beginning to float32's precision.
"""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, schedules, selection


@dataclasses.dataclass(frozen=True)
class Ramp:
    """How many entries are active when.

    Attributes:
      initial_sparsity: s_i, over all sparse leaves together.
      remaining: the share of what has to go that is still there, from 1 to 0.
    """

    initial_sparsity: float
    remaining: base.Ratio

    def initial_total(self, size: int) -> int:
        """Active entries at the start, of `size`: N - floor(s_i N)."""
        return size - math.floor(self.initial_sparsity * size)

    def initial_counts(self, sizes: jax.Array, final: jax.Array, total: int):
        """The initial counts of the leaves, int32[L], in proportion to the final ones.

        A leaf cannot have more than all its entries; what it cannot take goes to the
        others. For ERK counts this is ERK at the initial sparsity.

        Args:
          sizes: numbers of entries, int32[L].
          final: final counts, int32[L].
          total: what `initial_total` returned.
        """
        extra = total - jnp.sum(final)
        weights = final.astype(jnp.float32)
        return final + selection.apportion(extra, weights, sizes - final)

    def at(self, t: jax.Array, initial: Any, final: jax.Array) -> jax.Array:
        """Active entries after call t, between `initial` and `final`."""
        left = ratios.fraction_of(self.remaining(t), initial - final)
        return final + left

    def start(self, targets: base.Targets) -> base.Targets:
        """The `start` of a method that begins with `initial_counts`."""
        require_drawn(targets, f"an initial sparsity of {self.initial_sparsity}")
        size = sum(targets.sizes.values())
        total, final = self.initial_total(size), sum(targets.counts.values())
        if total < final:
            raise ValueError(
                f"initial_sparsity={self.initial_sparsity} is above the final sparsity "
                f"{1 - final / size:.4g} of these leaves; start with a lower one, "
                "0 for a dense start."
            )
        sizes = jnp.array([targets.sizes[path] for path in targets.counts], jnp.int32)
        last = jnp.array(list(targets.counts.values()), jnp.int32)
        first = self.initial_counts(sizes, last, total)
        counts = {path: first[i] for i, path in enumerate(targets.counts)}
        return dataclasses.replace(targets, counts=counts)


def ramp(
    initial_sparsity: float, window: tuple[int, int], schedule: base.Schedule
) -> Ramp:
    """Checks the arguments that methods with a ramp share.

    Args:
      initial_sparsity: in [0, 1).
      window: calls (begin, until) between which the sparsity rises.
      schedule: the method's; its last topology update may not come before `until`.

    Returns:
      The ramp.

    Raises:
      ValueError: if an argument lies outside its range, or the schedule ends early.
    """
    is_number = isinstance(initial_sparsity, numbers.Real)
    if not is_number or not 0 <= initial_sparsity < 1:
        raise ValueError(
            f"initial_sparsity={initial_sparsity!r} must be a number in [0, 1); 0 is a "
            "dense start."
        )
    require_reached("window", window, schedule)
    return Ramp(float(initial_sparsity), ratios.cubic(1.0, 0.0, *window))


def require_reached(
    name: str, window: tuple[int, int], schedule: base.Schedule
) -> None:
    """Raises where topology updates end before the end of a window is reached."""
    if len(window) != 2 or not 0 <= window[0] < window[1]:
        raise ValueError(
            f"{name}={window!r} must be two calls (begin, until) with 0 <= begin and "
            "begin < until."
        )
    # Of a function that someone wrote nothing more is known.
    if not isinstance(schedule, schedules.Periodic | schedules.Staged):
        return
    last = schedule.last_update()
    if last is not None and last < window[1]:
        raise ValueError(
            f"{name}={window!r} ends after the last topology update, "
            f"{f'at call {last}' if last else 'of which there is none'}, so that its "
            "end would not be reached; let the schedule go on or the window end "
            "earlier."
        )


def require_drawn(targets: base.Targets, what: str) -> None:
    """Raises where the caller gave the masks to start from."""
    if any(isinstance(count, jax.Array) for count in targets.counts.values()):
        raise ValueError(
            f"masks= was given, but the method starts with {what}, on the way to the "
            "sparsity; leave masks= out, or use static() to train under given masks."
        )
