"""DSR: prune below one adaptive threshold, grow where most survived."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from neurrev_jax._src import base, ratios, schedules, selection, topology
from neurrev_jax._src.methods import exchange, static


class DsrState(NamedTuple):
    """The threshold that adapts.

    Attributes:
      threshold: weights with |w| below it are pruned next, float32[].
      pruned: how many the last topology update pruned in all, int32[].
    """

    threshold: jax.Array
    pruned: jax.Array


@base.Card(
    prunes="|w| below an adaptive threshold",
    grows="at random, where most survived",
    scope="global",
)
def dsr(
    update_ratio: float | base.Ratio | None = None,
    schedule: base.Schedule | None = None,
    *,
    target_count: int | None = None,
    threshold: float = 1e-3,
    tolerance: float = 0.1,
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Dynamic sparse reparameterization (DSR; Mostafa and Wang, 2019, section 3).

    A topology update prunes all weights with |w| below one threshold H, of every
    leaf, but for each leaf's last; say K in all. It grows K at random, divided over
    the leaves in proportion to what survived in them, at positions that were
    inactive before. Then H is halved if K > (1 + tolerance) K*, doubled if
    K < (1 - tolerance) K*. The total number of active weights never changes. (Where
    the network has fewer than K free positions, no more are pruned than there are,
    and K* is at most that. Frozen leaves count for none of this.)

    Args:
      update_ratio: K* as a fraction of all active weights of the network, or a
        ratio over time; 0.1 by default.
      schedule: when; `periodic(100)` by default. The original's intervals grow:
        `staged([100, 200, 400, 800], boundaries)`, from epochs 0, 25, 80 and 140.
      target_count: K* itself, instead of `update_ratio` (the original: 20,000 for
        WRN-28-2, 400,000 for ResNet-50); fewer than the active weights.
      threshold: H at the start, positive.
      tolerance: in [0, 1).
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`; its state is a `DsrState`.

    Raises:
      ValueError: for a ratio outside [0, 1], both a ratio and a count, or a number
        outside its range; from the transformation's `init`, for a `target_count` that
        the network does not have.

    >>> dsr(target_count=20_000).name
    'dsr'
    """
    if update_ratio is not None and target_count is not None:
        raise ValueError(
            f"update_ratio={update_ratio!r} and target_count={target_count!r} both say "
            "how many weights to prune; give one of them."
        )
    if target_count is not None and not target_count >= 1:
        raise ValueError(
            f"target_count={target_count!r} must be at least 1: it is how many weights "
            "a topology update should prune in all."
        )
    if not 0 < threshold < float("inf"):
        raise ValueError(
            f"threshold={threshold!r} must be positive and finite: halving and "
            "doubling have to lead somewhere."
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r} must lie in [0, 1); try 0.1.")
    ratio = ratios.as_ratio(
        "update_ratio", 0.1 if update_ratio is None else update_ratio
    )

    draw = static.draw_by(init_mask)

    def start(targets: base.Targets) -> base.Targets:
        active = list(targets.counts.values())
        if target_count is not None and not any(isinstance(n, Tracer) for n in active):
            total = sum(map(int, active))
            if target_count >= total:
                raise ValueError(
                    f"target_count={target_count} must be less than the {total} "
                    "weights that are active in all; a tenth of them is usual."
                )
        return draw(targets)

    def init(context: base.Context) -> DsrState:
        del context
        return DsrState(jnp.float32(threshold), jnp.int32(0))

    def rewire(context: base.Context) -> base.Rewired:
        old: DsrState = context.method_state
        active = topology.count_active(context.masks)
        movable = exchange.may_change(context)
        free = jnp.where(movable, exchange.sizes(context.masks) - active, 0)
        below = _count_below(old.threshold, active, context)
        total = jnp.minimum(jnp.sum(below), jnp.sum(free))
        # All of them, unless there is no room for as many to grow.
        pruned = selection.apportion(total, below, below)
        grown = selection.apportion(total, active - pruned, free)
        new = exchange.drop_and_grow(context, pruned, grown, regrow=False)

        open_ = jnp.sum(jnp.where(movable, active, 0))
        wanted = ratios.fraction_of(ratio(context.t), open_)
        if target_count is not None:
            wanted = jnp.int32(target_count)
        # What cannot be had is not aimed at: the threshold would run away.
        most = jnp.sum(jnp.where(movable, jnp.maximum(active - 1, 0), 0))
        wanted = jnp.minimum(wanted, jnp.minimum(most, jnp.sum(free)))
        k = jnp.sum(below).astype(jnp.float32)
        wanted = wanted.astype(jnp.float32)
        factor = jnp.where(
            k > (1 + tolerance) * wanted,
            jnp.float32(0.5),
            jnp.where(k < (1 - tolerance) * wanted, jnp.float32(2), jnp.float32(1)),
        )
        return base.Rewired(new, DsrState(old.threshold * factor, total))

    return base.Method(
        name="dsr",
        schedule=schedule or schedules.periodic(100),
        rewire=rewire,
        start=start,
        init=init,
    )


def _count_below(
    threshold: jax.Array, active: jax.Array, context: base.Context
) -> jax.Array:
    """Active weights below the threshold in each leaf but for its last, int32[L]."""
    below = jax.tree.map(
        lambda w, m: m & (jnp.abs(w).astype(jnp.float32) < threshold) if m.ndim else m,
        context.params,
        context.masks,
    )
    counts = jnp.minimum(topology.count_active(below), jnp.maximum(active - 1, 0))
    return jnp.where(exchange.may_change(context), counts, 0)
