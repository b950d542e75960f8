"""Prune and grow over all leaves together, for methods with one global budget.

Shapes in this module: L rewirable leaves, R rows, W entries a row (see `rows`).
"""

import jax
import jax.numpy as jnp

from neurrev_jax._src import rows, topology


def prune_smallest(
    weights: rows.Stack,
    masks: rows.Stack,
    count: jax.Array,
    key: jax.Array,
    movable: jax.Array,
) -> rows.Stack:
    """Deactivates the `count` active entries with the smallest |w| of all leaves.

    Args:
      weights: parameters.
      masks: active entries.
      count: int32[]; more than are active in movable leaves prunes all of those.
      key: PRNG key, settles ties.
      movable: which leaves may be pruned, bool[L].

    Returns:
      The new masks.
    """
    fixed = masks.rows & ~masks.layout.spread(movable)[:, None]
    candidates = rows.Stack(masks.rows & ~fixed, masks.layout).join()
    size = jax.tree.map(jnp.abs, weights.join())
    _, kept = topology.prune(weights.join(), candidates, count, size, key)
    return rows.Stack(kept.rows | fixed, masks.layout)


def grow_largest(
    masks: rows.Stack,
    count: jax.Array,
    scores: rows.Stack,
    key: jax.Array,
    movable: jax.Array,
    closed: rows.Stack | None = None,
) -> rows.Stack:
    """Activates the `count` inactive entries with the highest scores of all leaves.

    Args:
      masks: active entries.
      count: int32[]; more than there is room for grows all there is.
      scores: real numbers.
      key: PRNG key, settles ties.
      movable: in which leaves entries may grow, bool[L].
      closed: entries that may not grow; None for none.

    Returns:
      The new masks.
    """
    shut = jnp.broadcast_to(~masks.layout.spread(movable)[:, None], masks.rows.shape)
    if closed is not None:
        shut = shut | closed.rows
    # What may not grow counts as active while growth looks for a place.
    taken = rows.Stack(masks.rows | shut, masks.layout).join()
    _, grown = topology.grow(scores.join(), taken, count, scores.join(), key)
    return rows.Stack(masks.rows | (grown.rows & ~shut), masks.layout)
