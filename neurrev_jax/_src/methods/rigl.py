"""RigL: prune by magnitude, grow where the dense gradient is largest."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, schedules, topology
from neurrev_jax._src.methods import exchange, static


class GradientGrowthState(NamedTuple):
    """Whether the coming call scores growth by dense gradients.

    Attributes:
      dense_next: bool[].
    """

    dense_next: jax.Array

    def gradient_masks(self, masks: base.Masks) -> Any:
        """Every entry where the coming call needs dense gradients."""
        return jax.tree.map(lambda m: m | self.dense_next, masks)


def dense_calls(
    schedule: base.Schedule,
) -> Callable[[base.Context], GradientGrowthState]:
    """The `init` and `observe` of a method that grows by gradient on schedule."""
    return lambda context: GradientGrowthState(
        jnp.asarray(schedule(context.t + 1), bool)
    )


@base.Card(prunes="smallest |w|", grows="largest |gradient|")
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
        k = ratios.fraction_of(ratio(context.t), topology.count_active(context.masks))
        growth = jax.tree.map(jnp.abs, context.grads)
        new = exchange.drop_and_grow(context, k, k, grow_by=growth)
        return base.Rewired(new, context.method_state)

    declare = dense_calls(schedule)
    return base.Method(
        name="rigl",
        schedule=schedule,
        rewire=rewire,
        cost=base.Cost(update=(2.0, 1.0)),
        start=draw,
        init=declare,
        observe=declare,
        dense_gradients=schedule,
    )
