"""SNFS: grow where the momentum is largest, in the layers where it is largest."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, schedules, selection, topology
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src.methods import exchange, static


class SnfsState(NamedTuple):
    """The momentum that growth goes by.

    Attributes:
      momentum: of the dense gradients; the structure and types of the parameters,
        shape () for dense leaves.
    """

    momentum: base.Params

    def gradient_masks(self, masks: base.Masks) -> base.Masks:
        """Every entry, on every call."""
        return jax.tree.map(jnp.ones_like, masks)


@base.Card(
    prunes="smallest |w|", grows="largest |momentum|", scope="layer, redistributed"
)
def snfs(
    update_ratio: float | base.Ratio = 0.5,
    schedule: base.Schedule | None = None,
    *,
    momentum: float = 0.9,
    redistribute: bool = True,
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Sparse networks from scratch (SNFS; Dettmers and Zettlemoyer, 2019, section 3).

    Keeps a momentum of the dense gradients. A topology update drops the fraction
    `update_ratio` of each leaf's active weights (rounded up, to float32's precision
    for leaves of millions) with the smallest |w|;
    divides what was dropped over the leaves in proportion to the mean |momentum| of
    their active weights; and grows where |momentum| is largest. A leaf of sparsity
    below 0.2 with more than the average mean |momentum| drops at most the fraction
    that its sparsity is. No leaf fills up more than 99 % of its inactive entries,
    as long as others have room.

    The paper rounds every leaf's share up; here shares are rounded by largest
    remainder, so that the total number of active weights stays exact.

    The inner optimizer sees dense gradients and keeps the slots of inactive entries,
    so a grown weight starts with the momentum it had gathered.

    Args:
      update_ratio: fraction of the active weights in [0, 1], or a ratio over time;
        the original uses `cosine(0.5, steps, final=0.005)`.
      schedule: when; `periodic(1000)` by default (the original: once per epoch).
      momentum: decay of the momentum per call, in [0, 1).
      redistribute: False grows in every leaf what it dropped, as RigL's variant of
        SNFS does (with `periodic(100)`).
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`; its state is an `SnfsState`. The gradients passed to `update` must
      be dense on every call.

    Raises:
      ValueError: for a ratio outside [0, 1], a momentum outside [0, 1) or an unknown
        option.

    >>> snfs(ratios.cosine(0.5, 78_000, final=0.005), schedules.periodic(780)).name
    'snfs'
    """
    ratio = ratios.as_ratio("update_ratio", update_ratio)
    if not 0 <= momentum < 1:
        raise ValueError(
            f"momentum={momentum!r} must lie in [0, 1); 0 grows by the gradient of "
            "the call alone."
        )

    def init(context: base.Context) -> SnfsState:
        return SnfsState(
            masks_lib.tree_map(
                lambda p, m: jnp.zeros(jnp.shape(m), p.dtype),
                context.params,
                context.masks,
            )
        )

    def observe(context: base.Context) -> SnfsState:
        def gather(old, g, m):
            if not m.ndim:
                return old
            # A batch that overflowed must not decide all growth from then on.
            return jnp.where(jnp.isfinite(g), momentum * old + g.astype(old.dtype), old)

        old = context.method_state.momentum
        return SnfsState(jax.tree.map(gather, old, context.grads, context.masks))

    def rewire(context: base.Context) -> base.Rewired:
        gathered = jax.tree.map(jnp.abs, context.method_state.momentum)
        active = topology.count_active(context.masks)
        share = _mean_over_active(gathered, context.masks)
        r = jnp.asarray(ratio(context.t), jnp.float32)
        dropped = _to_drop(r, active, share, context)
        grown = _to_grow(dropped, active, share, context) if redistribute else dropped
        new = exchange.drop_and_grow(context, dropped, grown, grow_by=gathered)
        return base.Rewired(new, context.method_state)

    return base.Method(
        name="snfs",
        schedule=schedule or schedules.periodic(1000),
        rewire=rewire,
        cost=base.Cost(sparse=2.0, dense=1.0),
        start=static.draw_by(init_mask),
        init=init,
        observe=observe,
        inner_gradients="dense",
        slots="keep",
        dense_gradients=_always,
    )


def _always(t: jax.Array) -> bool:
    del t
    return True


def _mean_over_active(tree: base.Tree, masks: base.Masks) -> jax.Array:
    """Mean of each rewirable leaf over its active entries, float32[L]."""
    means: list[Any] = []
    for leaf, mask in zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True):
        if mask.ndim:
            of_active = jnp.where(mask, leaf, jnp.zeros_like(leaf))
            count = jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1)
            total = jnp.sum(of_active.astype(jnp.float32))
            means.append(total / count.astype(jnp.float32))
    return jnp.stack(means) if means else jnp.zeros((0,), jnp.float32)


def _to_drop(
    r: jax.Array, active: jax.Array, share: jax.Array, context: base.Context
) -> jax.Array:
    """How many weights each leaf drops, int32[L]."""
    number = active.astype(jnp.float32)
    sparsity = 1 - number / exchange.sizes(context.masks).astype(jnp.float32)
    is_full = (sparsity < 0.2) & (share > jnp.mean(share))
    of_leaf = jnp.where(is_full, jnp.minimum(sparsity, r), r)
    # Rounding of the product must not lift a whole number above itself.
    dropped = jnp.ceil(of_leaf * number * jnp.float32(1 - 1e-6)).astype(jnp.int32)
    return jnp.where(exchange.may_change(context), jnp.minimum(dropped, active), 0)


def _to_grow(
    dropped: jax.Array, active: jax.Array, share: jax.Array, context: base.Context
) -> jax.Array:
    """How many weights each leaf grows, int32[L]; as many in all as are dropped."""
    sizes = exchange.sizes(context.masks)
    room = jnp.where(exchange.may_change(context), sizes - active + dropped, 0)
    caps = jnp.floor(jnp.float32(0.99) * room.astype(jnp.float32)).astype(jnp.int32)
    total = jnp.sum(dropped)
    caps = jnp.where(jnp.sum(caps) < total, room, caps)
    share = jnp.where(exchange.may_change(context), share, 0.0)
    fair = selection.apportion(total, share, jnp.full_like(caps, total))
    grown = jnp.minimum(fair, caps)
    # What does not fit is spread equally over the leaves that have room.
    spread = selection.apportion(
        total - jnp.sum(grown), jnp.ones_like(share), caps - grown
    )
    return grown + spread
