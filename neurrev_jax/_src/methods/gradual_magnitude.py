"""Gradual magnitude pruning: from dense to sparse along a cubic."""

from typing import Literal

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, rows, schedules, topology
from neurrev_jax._src.methods import exchange, globally
from neurrev_jax._src.methods import ramp as ramp_lib


@base.Card(prunes="smallest |w|")
def gradual_magnitude(
    schedule: base.Schedule | None = None,
    *,
    window: tuple[int, int] = (0, 100_000),
    initial_sparsity: float = 0.0,
    scope: Literal["layer", "global"] = "layer",
) -> base.Method:
    """Gradual magnitude pruning (Zhu and Gupta, 2018), the dense-to-sparse reference.

    Every topology update prunes the smallest |w| down to the sparsity

        s(t) = s_f + (s_i - s_f) (1 - (t - begin)/(until - begin))^3

    and grows nothing. s_f is the sparsity that the transformation was given.

    Args:
      schedule: when; `periodic(1000)` by default.
      window: calls (begin, until) between which the sparsity rises; the first topology
        update at `until` or later arrives at s_f.
      initial_sparsity: s_i in [0, s_f]; 0 starts dense. The leaves start in proportion
        to their final counts, none with more than all its entries.
      scope: prune each leaf to its own count (`"layer"`), or the smallest weights of
        all leaves together (`"global"`), to the same total.

    Returns:
      A `Method`. In its cost a sparse forward pass is the mean over training.

    Raises:
      ValueError: for an unknown scope, a window that the schedule does not reach, or
        (from the transformation's `init`) an initial sparsity above the final one, or
        `masks=`.

    >>> gradual_magnitude(schedules.periodic(100), window=(0, 5000)).name
    'gradual_magnitude'
    """
    require_scope(scope)
    schedule = schedule or schedules.periodic(1000)
    ramp = ramp_lib.ramp(initial_sparsity, window, schedule)

    def rewire(context: base.Context) -> base.Rewired:
        weights = rows.stack(context.params, context.masks)
        masks = rows.stack(context.masks, context.masks)
        active = topology.count_active(masks)
        final = exchange.per_leaf(context.targets, context.masks)
        initial = ramp.initial_total(sum(masks.layout.sizes))
        if scope == "global":
            total = ramp.at(context.t, initial, jnp.sum(final))
            movable = exchange.may_change(context)
            count = jnp.maximum(jnp.sum(active) - total, 0)
            masks = globally.prune_smallest(weights, masks, count, context.key, movable)
        else:
            first = ramp.initial_counts(exchange.sizes(context.masks), final, initial)
            count = jnp.maximum(active - ramp.at(context.t, first, final), 0)
            size = jax.tree.map(jnp.abs, weights)
            _, masks = topology.prune(weights, masks, count, size, context.key)
        new = rows.unstack(masks, context.masks, context.masks)
        return base.Rewired(new, context.method_state)

    return base.Method(
        name="gradual_magnitude",
        schedule=schedule,
        rewire=rewire,
        start=ramp.start,
        grows="nothing",
    )


def require_scope(scope: str) -> None:
    """Raises unless `scope` is `"layer"` or `"global"`."""
    if scope not in ("layer", "global"):
        raise ValueError(f"scope={scope!r} is unknown; choose 'layer' or 'global'.")
