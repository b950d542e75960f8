"""SET: prune the smallest weights of either sign, grow as many at random."""

from typing import Literal

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, rows, schedules, topology
from neurrev_jax._src.methods import static


@base.Card(prunes="smallest |w| of either sign", grows="at random")
def set_(
    update_ratio: float | base.Ratio = 0.3,
    schedule: base.Schedule | None = None,
    *,
    drop: Literal["signed", "magnitude"] = "signed",
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Sparse evolutionary training (SET; Mocanu et al., 2018).

    Per leaf, drops the fraction `update_ratio` of the smallest positive and of the
    negative weights closest to zero, and those that are exactly zero; grows the same
    number at random among all inactive positions, those just dropped included.

    Args:
      update_ratio: fraction of the active weights in [0, 1], or a ratio over time;
        0 changes nothing.
      schedule: when; `periodic(1000)` by default (the original: once per epoch,
        but not after the last).
      drop: `"signed"` treats positive, negative and zero weights separately, as SET
        does; `"magnitude"` drops the smallest |w| of either sign, as RigL's
        variant of SET does.
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`.

    Raises:
      ValueError: for a ratio outside [0, 1] or an unknown option.

    >>> set_(0.3, schedules.periodic(780)).name
    'set'
    """
    if drop not in ("signed", "magnitude"):
        raise ValueError(f"drop={drop!r} is unknown; choose 'signed' or 'magnitude'.")
    ratio = ratios.as_ratio("update_ratio", update_ratio)
    draw = static.draw_by(init_mask)

    def rewire(context: base.Context) -> base.Rewired:
        r = jnp.asarray(ratio(context.t), jnp.float32)
        keys = jax.random.split(context.key, 3)
        weights = rows.stack(context.params, context.masks)
        masks = rows.stack(context.masks, context.masks)
        if drop == "magnitude":
            size = jax.tree.map(jnp.abs, weights)
            k = ratios.fraction_of(r, topology.count_active(masks))
            _, masks = topology.prune(weights, masks, k, size, keys[0])
        else:
            # An active weight that is exactly zero has no sign: it was grown and has
            # never had a gradient. The original drops them all, whatever the ratio.
            zero = jax.tree.map(lambda m, w: m & (w == 0) & (r > 0), masks, weights)
            k = topology.count_active(zero)
            masks = jax.tree.map(lambda m, z: m & ~z, masks, zero)
            for sign, key in ((1, keys[0]), (-1, keys[1])):
                of_sign = jax.tree.map(
                    lambda m, w, sign=sign: m & (w * sign > 0), masks, weights
                )
                k_of_sign = ratios.fraction_of(r, topology.count_active(of_sign))
                size = jax.tree.map(
                    lambda w, sign=sign: jnp.where(w * sign > 0, w * sign, jnp.inf),
                    weights,
                )
                _, masks = topology.prune(weights, masks, k_of_sign, size, key)
                k = k + k_of_sign
        _, masks = topology.grow(weights, masks, k, None, keys[2])
        new = rows.unstack(masks, context.masks, context.masks)
        return base.Rewired(new, context.method_state)

    return base.Method(
        name="set",
        schedule=schedule or schedules.periodic(1000),
        rewire=rewire,
        start=draw,
    )
