"""AC/DC: dense and sparse phases in turn."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, rows, schedules, topology
from neurrev_jax._src.methods import exchange, globally, gradual_magnitude
from neurrev_jax._src.methods import ramp as ramp_lib

# The ImageNet run of 100 epochs, with 1000 calls to an epoch.
_PHASES = schedules.phases([*range(10_000, 80_000, 5_000), 85_000])


@base.Card(
    prunes="smallest |w|, in sparse phases",
    grows="everything, in dense phases",
    scope="global",
)
def ac_dc(
    schedule: schedules.Phases = _PHASES,
    *,
    scope: Literal["global", "layer"] = "global",
    reset_slots: bool = True,
    calls: int | None = None,
) -> base.Method:
    """Alternating compressed and decompressed training (AC/DC; Peste et al., 2021).

    Training starts dense. At the end of a dense phase the weights with the largest |w|
    stay, at the end of a sparse phase all others come back, from 0. Within a phase the
    masks stay as they are; the last phase is sparse.

    Args:
      schedule: what `phases` returns. By default that of the paper's ImageNet runs
        (100 epochs, sparse in 10 to 15, 20 to 25, ..., 70 to 75 and from 85), with 1000
        calls to an epoch.
      scope: keep the largest weights of all leaves together (`"global"`), or each
        leaf's own count (`"layer"`). Which leaves take part, and how many weights
        stay, is what the distribution says.
      reset_slots: zero the inner optimizer's slots, those of biases and other dense
        leaves too, whenever the network becomes dense, as the published runs do with
        the momentum.
      calls: the length of training, which only the declared cost needs: which share of
        it computes with a dense network. None declares half, as in the paper's runs.

    Returns:
      A `Method`.

    Raises:
      ValueError: for another schedule, an unknown scope, `calls` below 1, or (from
        the transformation's `init`) `masks=`.

    >>> ac_dc(schedules.phases([100, 200, 300]), calls=400).cost
    Cost(sparse=1.5, dense=1.5, ...)
    """
    gradual_magnitude.require_scope(scope)
    if not isinstance(schedule, schedules.Phases):
        raise ValueError(
            f"schedule={schedule!r} does not say which phases are sparse; pass "
            "phases([...]) with the calls at which they change."
        )
    if calls is not None and not calls >= 1:
        raise ValueError(f"calls={calls!r} must be at least 1 or None.")
    share = 0.5 if calls is None else schedule.sparse_share(calls)

    def start(targets: base.Targets) -> base.Targets:
        ramp_lib.require_drawn(targets, "a dense phase")
        return dataclasses.replace(targets, counts=dict(targets.sizes))

    def rewire(context: base.Context) -> base.Rewired:
        sparse = schedule.is_sparse_after(context.t)
        weights = rows.stack(context.params, context.masks)
        masks = rows.stack(context.masks, context.masks)
        active = topology.count_active(masks)
        final = exchange.per_leaf(context.targets, context.masks)
        if scope == "global":
            count = jnp.maximum(jnp.sum(active) - jnp.sum(final), 0)
            movable = exchange.may_change(context)
            kept = globally.prune_smallest(weights, masks, count, context.key, movable)
        else:
            size = jax.tree.map(jnp.abs, weights)
            count = jnp.maximum(active - final, 0)
            _, kept = topology.prune(weights, masks, count, size, context.key)
        masks = jax.tree.map(lambda kept: kept | ~sparse, kept)
        new = rows.unstack(masks, context.masks, context.masks)
        reset = ~sparse if reset_slots else False
        return base.Rewired(new, context.method_state, reset_slots=reset)

    return base.Method(
        name="ac_dc",
        schedule=schedule,
        rewire=rewire,
        cost=base.Cost(sparse=3 * share, dense=3 * (1 - share)),
        start=start,
    )
