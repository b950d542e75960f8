"""SET: prune the smallest weights of either sign, grow as many at random."""

from typing import Literal

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import ratios
from neurrev_jax._src import schedules
from neurrev_jax._src import topology
from neurrev_jax._src.methods import static


def set_(
    update_ratio: float | base.Ratio = 0.3,
    schedule: base.Schedule | None = None,
    *,
    drop: Literal["signed", "magnitude"] = "signed",
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Sparse evolutionary training (Mocanu et al., 2018; methods.md section 5).

    Per leaf, drops the fraction `update_ratio` of the smallest positive and of the
    negative weights closest to zero, and grows the same number at random among all
    inactive positions, those just dropped included.

    Args:
      update_ratio: fraction of the active weights in [0, 1], or a ratio over time.
      schedule: when; `periodic(1000)` by default (the original: once per epoch,
        but not after the last).
      drop: `"signed"` treats positive and negative weights separately, as SET
        does; `"magnitude"` drops the smallest |w| of either sign, as RigL's
        variant of SET does.
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`.

    Raises:
      ValueError: for a ratio outside [0, 1] or an unknown option.

    >>> set_(0.3, periodic(780)).name
    'set'
    """
    if drop not in ("signed", "magnitude"):
        raise ValueError(f"drop={drop!r} is unknown; choose 'signed' or 'magnitude'.")
    ratio = ratios.as_ratio("update_ratio", update_ratio)

    def rewire(context: base.Context) -> base.Rewired:
        r = ratio(context.t)
        key_drop, key_grow = jax.random.split(context.key)
        params, masks = context.params, context.masks
        size = jax.tree.map(jnp.abs, params)
        if drop == "magnitude":
            active = topology.count_active(masks)
            k = jax.tree.map(lambda n: ratios.fraction_of(r, n), active)
            params, masks = topology.prune(params, masks, k, size, key_drop)
        else:
            key_positive, key_negative = jax.random.split(key_drop)
            k = None
            for wanted, part_key in ((1, key_positive), (-1, key_negative)):
                of_sign = jax.tree.map(
                    lambda p, m, s=wanted: (m & (p * s > 0)) if jnp.ndim(m) else m,
                    context.params,
                    context.masks,
                )
                number = jax.tree.map(
                    lambda n: ratios.fraction_of(r, n), topology.count_active(of_sign)
                )
                _, left = topology.prune(context.params, of_sign, number, size, part_key)
                # What was dropped of this sign: in `of_sign` and no longer left.
                masks = jax.tree.map(
                    lambda m, s, keep: (m & (keep | ~s)) if jnp.ndim(m) else m,
                    masks,
                    of_sign,
                    left,
                )
                k = number if k is None else jax.tree.map(jnp.add, k, number)
            params = jax.tree.map(
                lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, masks
            )
        _, masks = topology.grow(params, masks, k, None, key_grow)
        return base.Rewired(masks, context.method_state)

    return base.Method(
        name="set",
        schedule=schedule or schedules.periodic(1000),
        rewire=rewire,
        start=static.draw_by(init_mask),
    )
