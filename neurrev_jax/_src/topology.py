"""Prune, grow and awake: the topology updates that methods are composed of.

Each takes parameters and masks and returns new ones. All are pure, exact in their
counts and work under jit; dense leaves pass through.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src import selection


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
      counts: how many to prune: an int32 for every leaf, or a tree of them. More
        than are active prunes them all.
      scores: tree of real arrays, the shapes of `params`.
      key: PRNG key, settles ties.

    Returns:
      (params, masks): pruned entries are 0 and False, all others unchanged.

    >>> import jax, jax.numpy as jnp
    >>> w = {"w": jnp.array([0.5, -0.1, 0.3, 0.0])}
    >>> masks = {"w": jnp.array([True, True, True, False])}
    >>> params, masks = prune(w, masks, 1, jax.tree.map(jnp.abs, w), jax.random.key(0))
    >>> params["w"], masks["w"]
    (Array([0.5, 0. , 0.3, 0. ], dtype=float32), Array([ True, False,  True, False], dtype=bool))
    """
    leaves = _Leaves(params, masks)
    pruned = leaves.select(leaves.masks, counts, [scores], key)
    return leaves.replace([m & ~p for m, p in zip(leaves.masks, pruned, strict=True)])


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
      counts: how many to grow: an int32 for every leaf, or a tree of them. More
        than are inactive grows them all.
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
    inactive = [~m for m in leaves.masks]
    levels = [] if scores is None else [jax.tree.map(jnp.negative, scores)]
    grown = leaves.select(inactive, counts, levels, key)
    return leaves.replace([m | g for m, g in zip(leaves.masks, grown, strict=True)])


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
      counts: how many to awake: an int32 for every leaf, or a tree of them. More
        than there are candidates takes them all.
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
    change = jax.tree.map(lambda p, r: jnp.abs(p - r), params, reference)
    size = jax.tree.map(lambda p: -jnp.abs(p), params)
    awoken = leaves.select(leaves.sparse(candidates), counts, [change, size], key)
    return leaves.replace([m & ~a for m, a in zip(leaves.masks, awoken, strict=True)])


def awake_candidates(
    params: base.Params, masks: base.Masks, eligible: base.Masks | None = None
) -> base.Masks:
    """The active (and eligible) entries below zero: what `awake` chooses from."""
    eligible = masks if eligible is None else eligible
    return masks_lib.tree_map(
        lambda p, m, e: (m & e & (p < 0)) if jnp.ndim(m) else m, params, masks, eligible
    )


def count_active(masks: base.Masks) -> base.Tree:
    """Number of active entries of each rewirable leaf, int32[]; 0 for dense ones."""
    return jax.tree.map(
        lambda m: jnp.sum(m, dtype=jnp.int32) if jnp.ndim(m) else jnp.int32(0), masks
    )


class _Leaves:
    """The rewirable leaves of a parameter tree, picked out and put back."""

    def __init__(self, params: base.Params, masks: base.Masks):
        masks_lib.check_masks(params, masks)
        self._params, self._structure = jax.tree.flatten(params)
        self._all_masks = jax.tree.leaves(masks_lib.broadcast(masks, params))
        self._index = [i for i, m in enumerate(self._all_masks) if jnp.ndim(m)]
        self.masks = [self._all_masks[i] for i in self._index]

    def sparse(self, tree: Any) -> list[Any]:
        """The rewirable leaves of a tree like the parameters."""
        leaves = self._structure.flatten_up_to(tree)
        return [leaves[i] for i in self._index]

    def select(
        self,
        candidates: Sequence[jax.Array],
        counts: Any,
        levels: Sequence[Any],
        key: jax.Array,
    ) -> list[jax.Array]:
        if not self._index:
            return []
        full = masks_lib.broadcast(counts, self._structure.unflatten(self._params))
        scores = [self.sparse(level) for level in levels]
        return selection.select_each(scores, candidates, self.sparse(full), key)

    def replace(
        self, masks: Sequence[jax.Array]
    ) -> tuple[base.Params, base.Masks]:
        params, all_masks = list(self._params), list(self._all_masks)
        for i, new in zip(self._index, masks, strict=True):
            kept = new & self._all_masks[i]
            params[i] = jnp.where(kept, params[i], jnp.zeros_like(params[i]))
            all_masks[i] = new
        return self._structure.unflatten(params), self._structure.unflatten(all_masks)
