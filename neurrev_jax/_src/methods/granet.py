"""GraNet: gradual global pruning with regeneration by gradient at no cost."""

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, rows, schedules, topology
from neurrev_jax._src.methods import exchange, globally, rigl
from neurrev_jax._src.methods import ramp as ramp_lib


@base.Card(
    prunes="smallest |w|, twice", grows="largest |gradient|", scope="global, then layer"
)
def granet(
    update_ratio: float | base.Ratio = 0.5,
    schedule: base.Schedule | None = None,
    *,
    window: tuple[int, int] = (0, 100_000),
    initial_sparsity: float = 0.5,
) -> base.Method:
    """Gradual pruning with zero-cost neuroregeneration (GraNet; Liu et al., 2021).

    A topology update prunes the smallest |w| of all leaves together to the sparsity

        s(t) = s_f + (s_i - s_f) (1 - (t - begin)/(until - begin))^3,

    then regenerates: each leaf drops the fraction `update_ratio` of what it has left,
    by |w|, and grows as many where |gradient| is largest. This goes on after the
    sparsity has arrived at s_f, which is the one that the transformation was given.

    Args:
      update_ratio: fraction of the active weights in [0, 1], or a ratio over time; the
        original uses `cosine(0.5, calls, 0.005)` over all of training.
      schedule: when; `periodic(1000)` by default (the original: 1000 on CIFAR, 4000 on
        ImageNet).
      window: calls (begin, until) between which the sparsity rises; the original: up to
        epoch 110 of 160, or 30 of 100.
      initial_sparsity: s_i in [0, s_f]; 0 starts dense. The leaves start in proportion
        to their final counts, none with more than all its entries.

    Returns:
      A `Method`. The gradients passed to `update` must be dense on scheduled calls.
      In its cost a sparse forward pass is the mean over training.

    Raises:
      ValueError: for a ratio outside [0, 1], a window that the schedule does not
        reach, or (from the transformation's `init`) an initial sparsity above the
        final one, or `masks=`.

    >>> granet(ratios.cosine(0.5, 125_000, 0.005), window=(0, 86_000)).name
    'granet'
    """
    ratio = ratios.as_ratio("update_ratio", update_ratio)
    schedule = schedule or schedules.periodic(1000)
    ramp = ramp_lib.ramp(initial_sparsity, window, schedule)

    def rewire(context: base.Context) -> base.Rewired:
        key_prune, key_drop, key_grow = jax.random.split(context.key, 3)
        weights = rows.stack(context.params, context.masks)
        masks = rows.stack(context.masks, context.masks)
        size = jax.tree.map(jnp.abs, weights)
        growth = jax.tree.map(jnp.abs, rows.stack(context.grads, context.masks))

        initial = ramp.initial_total(sum(masks.layout.sizes))
        final = jnp.sum(exchange.per_leaf(context.targets, context.masks))
        total = ramp.at(context.t, initial, final)
        count = jnp.maximum(jnp.sum(topology.count_active(masks)) - total, 0)
        movable = exchange.may_change(context)
        masks = globally.prune_smallest(weights, masks, count, key_prune, movable)

        k = ratios.fraction_of(ratio(context.t), topology.count_active(masks))
        _, masks = topology.prune(weights, masks, k, size, key_drop)
        _, masks = topology.grow(weights, masks, k, growth, key_grow)
        new = rows.unstack(masks, context.masks, context.masks)
        return base.Rewired(new, context.method_state)

    declare = rigl.dense_calls(schedule)
    return base.Method(
        name="granet",
        schedule=schedule,
        rewire=rewire,
        cost=base.Cost(update=(2.0, 1.0)),
        start=ramp.start,
        init=declare,
        observe=declare,
        dense_gradients=schedule,
    )
