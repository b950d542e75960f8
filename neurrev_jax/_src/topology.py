"""Prune, grow and awake: the topology updates that methods are composed of.

Each takes parameters and masks and returns new ones. All are pure, exact in their
counts and work under jit; dense leaves pass through. In place of trees they take
`rows.Stack`s of the rewirable leaves, and return the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, selection
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src import rows as rows_lib


@functools.partial(jax.jit, inline=True)
def prune(
    params: base.Params,
    masks: base.Masks,
    counts: Any,
    scores: base.Tree,
    key: jax.Array,
) -> tuple[base.Params, base.Masks]:
    """Deactivates the `counts` active entries with the lowest scores of each leaf.

    Args:
      params: parameter tree.
      masks: mask tree.
      counts: how many to prune: one int32 for every leaf, a tree of them, or
        int32[L] for the L rewirable leaves. More than are active prunes them all.
      scores: tree of real arrays, the shapes of `params`.
      key: PRNG key, settles ties.

    Returns:
      (params, masks): pruned entries are 0 and False, all others unchanged.

    >>> import jax, jax.numpy as jnp
    >>> w = {"w": jnp.array([0.5, -0.1, 0.3, 0.0])}
    >>> masks = {"w": jnp.array([True, True, True, False])}
    >>> params, masks = prune(w, masks, 1, jax.tree.map(jnp.abs, w), jax.random.key(0))
    >>> params["w"]
    Array([0.5, 0. , 0.3, 0. ], dtype=float32)
    >>> masks["w"]
    Array([ True, False,  True, False], dtype=bool)
    """
    leaves = _Leaves(params, masks)
    pruned = leaves.select(leaves.active, counts, [lambda: scores], key)
    return leaves.replace(leaves.active & ~pruned)


@functools.partial(jax.jit, inline=True)
def grow(
    params: base.Params,
    masks: base.Masks,
    counts: Any,
    scores: base.Tree | None,
    key: jax.Array,
) -> tuple[base.Params, base.Masks]:
    """Activates the `counts` inactive entries with the highest scores, at value 0.

    Args:
      params: parameter tree.
      masks: mask tree.
      counts: how many to grow: one int32 for every leaf, a tree of them, or
        int32[L] for the L rewirable leaves. More than are inactive grows them all.
      scores: tree of real arrays, the shapes of `params`; None grows at random.
      key: PRNG key, settles ties or makes the random choice.

    Returns:
      (params, masks): grown entries are 0 and True, all others unchanged.

    >>> import jax, jax.numpy as jnp
    >>> w = {"w": jnp.array([0.5, 0.0, 0.0, 0.0])}
    >>> masks = {"w": jnp.array([True, False, False, False])}
    >>> scores = {"w": jnp.array([9.0, 0.1, 0.4, 0.3])}
    >>> grow(w, masks, 1, scores, jax.random.key(0))[1]["w"]
    Array([ True, False,  True, False], dtype=bool)
    """
    leaves = _Leaves(params, masks)
    levels = []
    if scores is not None:
        levels.append(lambda: jax.tree.map(jnp.negative, scores))
    # Padding is inactive too, and no place to grow.
    grown = leaves.select(leaves.exists & ~leaves.active, counts, levels, key)
    return leaves.replace(leaves.active | grown)


@functools.partial(jax.jit, inline=True)
def awake(
    params: base.Params,
    masks: base.Masks,
    reference: base.Params,
    counts: Any,
    key: jax.Array,
    eligible: base.Masks | None = None,
) -> tuple[base.Params, base.Masks]:
    """NeurRev's search and awake: prunes the negative weights that changed least.

    Among active (and eligible) entries below zero, deactivates the `counts` whose
    |params - reference| is smallest, equal ones by larger |params| first (NeurRev,
    section 2.2.2, Algorithm 2; exactly `counts`, not one more).

    Args:
      params: parameter tree.
      masks: mask tree.
      reference: parameters at the last topology update, a tree like `params`.
      counts: how many to awake: one int32 for every leaf, a tree of them, or
        int32[L] for the L rewirable leaves. More than there are candidates takes
        them all.
      key: PRNG key, settles what is still tied.
      eligible: mask tree that restricts the candidates; None for no restriction.

    Returns:
      (params, masks): the chosen entries are 0 and False, all others unchanged.

    >>> import jax, jax.numpy as jnp
    >>> w = {"w": jnp.array([-0.8, -0.5, 0.7])}
    >>> masks = {"w": jnp.array([True, True, True])}
    >>> before = {"w": jnp.array([-0.8, -0.2, 0.7])}
    >>> awake(w, masks, before, 1, jax.random.key(0))[0]["w"]
    Array([ 0. , -0.5,  0.7], dtype=float32)
    """
    leaves = _Leaves(params, masks)
    candidates = awake_candidates(params, masks, eligible)
    levels = [
        lambda: jax.tree.map(lambda p, r: jnp.abs(p - r), params, reference),
        lambda: jax.tree.map(lambda p: -jnp.abs(p), params),
    ]
    awoken = leaves.select(leaves.pack(candidates), counts, levels, key)
    return leaves.replace(leaves.active & ~awoken)


def awake_candidates(
    params: base.Params, masks: base.Masks, eligible: base.Masks | None = None
) -> base.Masks:
    """The active (and eligible) entries below zero: what `awake` chooses from."""
    eligible = masks if eligible is None else eligible
    masks = masks_lib.broadcast(masks, params)
    return jax.tree.map(
        lambda p, m, e: (m & e & (p < 0)) if jnp.ndim(m) else m,
        params,
        masks,
        masks_lib.broadcast(eligible, params),
    )


def count_active(masks: base.Masks) -> jax.Array:
    """Number of active entries of each of the L rewirable leaves, int32[L]."""
    stacked = (
        masks if isinstance(masks, rows_lib.Stack) else rows_lib.stack(masks, masks)
    )
    if not stacked.layout.shapes:
        return jnp.zeros((0,), jnp.int32)
    return stacked.layout.count(stacked.rows, stacked.rows)[:, 0]


class _Leaves:
    """The rewirable leaves of a parameter tree in rows, and the way back."""

    def __init__(self, params: base.Params, masks: base.Masks):
        self._params = params
        if isinstance(masks, rows_lib.Stack):
            self._masks, stacked = masks, masks
        else:
            masks_lib.check_masks(params, masks)
            masks = masks_lib.broadcast(masks, params)
            self._masks = jax.tree.map(jnp.asarray, masks)
            stacked = rows_lib.stack(self._masks, self._masks)
        self.layout = stacked.layout
        self.active = stacked.rows

    @property
    def exists(self) -> jax.Array:
        """False in the padding, bool[R, W]."""
        # Tied to the masks lest XLA take it for a constant worth computing early.
        sizes, _ = jax.lax.optimization_barrier(
            (jnp.asarray(self.layout.row_sizes), self.active)
        )
        column = jax.lax.broadcasted_iota(jnp.int32, self.active.shape, 1)
        return column < sizes[:, None]

    def pack(self, tree: Any) -> jax.Array:
        """Rows [R, W] of the rewirable leaves of a tree like the parameters."""
        if isinstance(tree, rows_lib.Stack):
            return tree.rows
        return rows_lib.stack(tree, self._masks).rows

    def select(
        self,
        candidates: jax.Array,
        counts: Any,
        levels: list[Callable[[], Any]],
        key: jax.Array,
    ) -> jax.Array:
        """Rows [R, W] of what to select; levels are computed where needed."""
        if not self.layout.shapes:
            return candidates
        return selection.select_rows(
            [lambda level=level: self.pack(level()) for level in levels],
            candidates,
            self._count_per_leaf(counts),
            key,
            self.layout,
        )

    def replace(self, active: jax.Array) -> tuple[base.Params, base.Masks]:
        """Parameters and masks with these entries active, pruned and grown ones 0."""
        if isinstance(self._masks, rows_lib.Stack):
            kept = self.active & active
            rows = jnp.where(kept, self._params.rows, jnp.zeros_like(self._params.rows))
            return rows_lib.Stack(rows, self.layout), rows_lib.Stack(
                active, self.layout
            )
        stacked = rows_lib.Stack(active, self.layout)
        masks = rows_lib.unstack(stacked, self._masks, self._masks)
        params = jax.tree.map(
            lambda p, old, new: (
                jnp.where(old & new, p, jnp.zeros_like(p)) if old.ndim else p
            ),
            self._params,
            self._masks,
            masks,
        )
        return params, masks

    def _count_per_leaf(self, counts: Any) -> jax.Array:
        number = self.layout.number
        if isinstance(counts, (jax.Array, int)) and jnp.ndim(counts) <= 1:
            return jnp.broadcast_to(jnp.asarray(counts, jnp.int32), (number,))
        full = jax.tree.leaves(masks_lib.broadcast(counts, self._masks))
        flags = [mask.ndim > 0 for mask in jax.tree.leaves(self._masks)]
        return selection.stack_counts(
            [count for count, flag in zip(full, flags, strict=True) if flag]
        )
