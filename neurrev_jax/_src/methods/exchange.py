"""What the topology updates of several methods have in common.

Counts per leaf are int32[L] for the L rewirable leaves, in the tree's order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, rows, topology
from neurrev_jax._src import masks as masks_lib


def drop_and_grow(
    context: base.Context,
    dropped: Any,
    grown: Any,
    *,
    drop_by: base.Tree | None = None,
    grow_by: base.Tree | None = None,
    regrow: bool = True,
) -> base.Masks:
    """Drops active entries of each leaf and grows inactive ones.

    Args:
      context: of the topology update.
      dropped: how many to drop, int32[L].
      grown: how many to grow, int32[L].
      drop_by: tree of scores, lowest first; None drops the smallest |w|.
      grow_by: tree of scores, highest first; None grows at random.
      regrow: whether entries just dropped are candidates for growth.

    Returns:
      The new masks.
    """
    key_drop, key_grow = jax.random.split(context.key)
    weights = rows.stack(context.params, context.masks)
    old = rows.stack(context.masks, context.masks)
    if drop_by is None:
        lowest = jax.tree.map(jnp.abs, weights)
    else:
        lowest = rows.stack(drop_by, context.masks)
    _, kept = topology.prune(weights, old, dropped, lowest, key_drop)
    highest = None if grow_by is None else rows.stack(grow_by, context.masks)
    start = kept if regrow else old
    _, new = topology.grow(weights, start, grown, highest, key_grow)
    if not regrow:
        new = jax.tree.map(lambda n, o, k: k | (n & ~o), new, old, kept)
    return rows.unstack(new, context.masks, context.masks)


def sizes(masks: base.Masks) -> jax.Array:
    """Number of entries of each rewirable leaf, int32[L]."""
    found = [mask.size for mask in jax.tree.leaves(masks) if mask.ndim]
    return jnp.array(found, jnp.int32)


def per_leaf(tree: base.Tree, masks: base.Masks) -> jax.Array:
    """The scalars that `tree` (or a prefix of it) holds for rewirable leaves, [L]."""
    scalars = jax.tree.leaves(masks_lib.broadcast(tree, masks))
    flags = [mask.ndim > 0 for mask in jax.tree.leaves(masks)]
    found = [x for x, flag in zip(scalars, flags, strict=True) if flag]
    return jnp.array(found) if found else jnp.zeros((0,), jnp.int32)


def may_change(context: base.Context) -> jax.Array:
    """Which rewirable leaves the caller has not frozen, bool[L].

    A method that moves entries from leaf to leaf has to leave the frozen ones out:
    what it says of them is disregarded, and its total would be off.
    """
    if context.frozen is None:
        return jnp.ones(sizes(context.masks).shape, bool)
    return ~per_leaf(context.frozen, context.masks).astype(bool)


def draw(
    sample: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    key: jax.Array,
    masks: base.Masks,
) -> base.Tree:
    """Random numbers for all rewirable leaves, drawn in one go.

    Args:
      sample: `sample(key, shape)`, such as `jax.random.normal`.
      key: PRNG key.
      masks: mask tree.

    Returns:
      A tree like `masks`: arrays of the shapes of rewirable leaves, and a zero for
      the others.
    """
    leaves, structure = jax.tree.flatten(masks)
    flat = sample(key, (sum(mask.size for mask in leaves if mask.ndim),))
    drawn, begin = [], 0
    for mask in leaves:
        if mask.ndim:
            own = flat[begin : begin + mask.size]
            drawn.append(jnp.reshape(own, mask.shape))
            begin += mask.size
        else:
            drawn.append(jnp.zeros((), flat.dtype))
    return structure.unflatten(drawn)
