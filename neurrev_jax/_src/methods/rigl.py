"""RigL: prune by magnitude, grow where the dense gradient is largest."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, rows, schedules, topology
from neurrev_jax._src.methods import static


class GradientGrowthState(NamedTuple):
    """Whether the coming call scores growth by dense gradients.

    Attributes:
      dense_next: bool[].
    """

    dense_next: jax.Array

    def gradient_masks(self, masks: base.Masks) -> Any:
        """Every entry where the coming call needs dense gradients."""
        return jax.tree.map(lambda m: m | self.dense_next, masks)


def rigl(
    update_ratio: float | base.Ratio = 0.3,
    schedule: base.Schedule | None = None,
    *,
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Rigging the lottery (RigL; Evci et al., 2020, section 3).

    Per leaf, drops the fraction `update_ratio` of the active weights with the
    smallest |w| and grows the same number where |gradient| is largest among all
    positions not kept; a weight dropped and regrown keeps its value.

    Args:
      update_ratio: fraction of the active weights in [0, 1], or a ratio over time;
        the original uses `cosine(0.3, until)`.
      schedule: when; `periodic(100)` by default.
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`. The gradients passed to `update` must be dense on scheduled calls.

    Raises:
      ValueError: for a ratio outside [0, 1] or an unknown option.

    >>> rigl(ratios.cosine(0.3, 75_000), schedules.periodic(100, until=75_000)).name
    'rigl'
    """
    ratio = ratios.as_ratio("update_ratio", update_ratio)
    draw = static.draw_by(init_mask)
    schedule = schedule or schedules.periodic(100)

    def rewire(context: base.Context) -> base.Rewired:
        key_drop, key_grow = jax.random.split(context.key)
        weights = rows.stack(context.params, context.masks)
        masks = rows.stack(context.masks, context.masks)
        gradients = rows.stack(context.grads, context.masks)
        k = ratios.fraction_of(ratio(context.t), topology.count_active(masks))
        size = jax.tree.map(jnp.abs, weights)
        weights, masks = topology.prune(weights, masks, k, size, key_drop)
        growth = jax.tree.map(jnp.abs, gradients)
        _, masks = topology.grow(weights, masks, k, growth, key_grow)
        new = rows.unstack(masks, context.masks, context.masks)
        return base.Rewired(new, context.method_state)

    def dense_in_next_call(context: base.Context) -> GradientGrowthState:
        return GradientGrowthState(jnp.asarray(schedule(context.t + 1), bool))

    return base.Method(
        name="rigl",
        schedule=schedule,
        rewire=rewire,
        cost=base.Cost(update=(2.0, 1.0)),
        start=draw,
        init=dense_in_next_call,
        observe=dense_in_next_call,
        dense_gradients=schedule,
    )
