"""`sparse_transform`: any sparse-training method around any Optax optimizer."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from neurrev_jax._src import base, distributions, selection, update_step
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src import paths as paths_lib
from neurrev_jax._src.methods import neurrev as neurrev_lib


def sparse_transform(
    inner: optax.GradientTransformation,
    method: base.Method | None = None,
    *,
    sparsity: float | Mapping[str, float] = 0.9,
    distribution: Any = "erk",
    masks: base.Masks | None = None,
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains sparsely by `method` with the optimizer `inner`.

    `optax.apply_updates` is all there is to do with the updates: it leaves exact
    zeros wherever the new masks are False. Put gradient clipping into `inner`, which
    sees masked gradients; outside, it would see those of inactive entries.

    Call number t, from 1, ends with a topology update iff `method.schedule(t)`. An
    entry active before and after it keeps its value and slots; a newly active one
    starts at the method's growth value, 0 by default, with zero slots.

    Args:
      inner: any Optax transformation.
      method: `neurrev()` by default.
      sparsity: fraction of inactive entries in [0, 1), or by path pattern (first
        match wins; a pattern other than `"*"` fixes the leaves it matches, `"*"` is
        the target that `distribution` spreads over the others).
      distribution: `"uniform"`, `"er"`, `"erk"`, what `uniform(...)`, `er(...)` or
        `erk(...)` return, a mapping from path pattern to sparsity, or a function
        of the shapes by path (and, if it takes a second argument, the sparsity)
        that returns the sparsity by path. Leaves it leaves out stay dense.
      masks: start from this mask tree instead of drawing one.
      where: `where(path, leaf) -> bool`, which leaves are sparsifiable. Default:
        floating leaves with at least two axes longer than 1 named `kernel`; in
        trees without that name, any such leaf.
      key: an int, a typed key or raw key data.

    Returns:
      An Optax transformation. Its `init` (jit-able) returns a `SparseState`; its
      `update(grads, state, params, *, frozen=None, **extra)` hands `extra` on to
      `inner`, and leaves leaves that are True in `frozen` (a tree of bool or a
      prefix of one), their slots and their masks as they are.

    Raises:
      ValueError: from `init`, for a sparsity outside [0, 1), an unknown
        distribution, a pattern that matches nothing, a tree without a sparsifiable
        leaf, masks that do not fit or ratios that cannot be met; from `update`, if
        called without `params`.

    >>> import jax.numpy as jnp, neurrev_jax, optax
    >>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
    >>> tx = sparse_transform(optax.sgd(0.1), sparsity=0.9)
    >>> opt_state = tx.init(params)
    >>> params = neurrev_jax.sparsify(params, opt_state)
    >>> updates, opt_state = tx.update(params, opt_state, params)
    >>> int((optax.apply_updates(params, updates)["kernel"] != 0).sum())
    20
    """
    method = neurrev_lib.neurrev() if method is None else method
    inner = optax.with_extra_args_support(inner)

    def asked_for(params: base.Params) -> base.Targets:
        if masks is not None:
            masks_lib.check_masks(params, masks)
            return _targets_of(params, masks)
        shapes = paths_lib.sparsifiable(params, where)
        counts = distributions.initial_counts(shapes, sparsity, distribution)
        sizes = {path: math.prod(shapes[path]) for path in counts}
        return base.Targets(sizes, counts)

    def init(params: base.Params) -> base.SparseState:
        typed_key = selection.as_key(key)
        targets = asked_for(params)
        # A method may start elsewhere (dense, say); what was asked for it keeps.
        first = method.start(targets)
        if masks is None:
            drawn = draw_masks(params, first, jax.random.fold_in(typed_key, 0))
        else:
            # A copy, so that donating the state does not take the caller's masks.
            full = masks_lib.broadcast(masks, params)
            drawn = jax.tree.map(lambda m: jnp.array(m, copy=True), full)
            drawn = _with_masks_of_dense(params, drawn, first)
        context = base.Context(
            t=jnp.int32(0),
            # Not the one that drew the masks; no call has this number.
            key=jax.random.fold_in(typed_key, 2**32 - 1),
            params=params,
            grads=None,
            masks=drawn,
            targets=_target_tree(params, drawn, targets),
            counted=_counted(params, targets),
            method_state=None,
            extra={},
        )
        return base.SparseState(
            count=jnp.int32(0),
            key=jnp.array(jax.random.key_data(typed_key), copy=True),
            masks=drawn,
            inner_state=inner.init(params),
            method_state=method.init(context),
        )

    def update(
        grads: base.Params,
        state: base.SparseState,
        params: base.Params | None = None,
        *,
        frozen: base.Tree | None = None,
        **extra: Any,
    ) -> tuple[base.Params, base.SparseState]:
        if params is None:
            raise ValueError(
                "params=None: the update depends on the parameters; call "
                "tx.update(grads, opt_state, params)."
            )
        masks_lib.check_masks(params, state.masks)
        count = jnp.asarray(optax.safe_increment(state.count))
        targets = asked_for(params)
        context = base.Context(
            t=count,
            key=jax.random.fold_in(selection.as_key(state.key), count),
            params=params,
            grads=grads,
            masks=state.masks,
            targets=_target_tree(params, state.masks, targets),
            counted=_counted(params, targets),
            method_state=state.method_state,
            extra=extra,
            frozen=frozen,
        )
        step = update_step.UpdateStep(method, inner, context, state.inner_state)
        updates, new_masks, inner_state, method_state = step.run()
        return updates, base.SparseState(
            count, state.key, new_masks, inner_state, method_state
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  (optax types states as arrays)


def _targets_of(params: base.Params, masks: base.Masks) -> base.Targets:
    """The targets that given masks amount to."""
    full = jax.tree.leaves(masks_lib.broadcast(masks, params))
    sparse = {
        path: mask
        for (path, _), mask in zip(
            paths_lib.flatten_with_paths(params)[0], full, strict=True
        )
        if jnp.ndim(mask)
    }
    sizes = {path: mask.size for path, mask in sparse.items()}
    counts = {path: jnp.sum(mask, dtype=jnp.int32) for path, mask in sparse.items()}
    return base.Targets(sizes, counts)


def draw_masks(
    params: base.Params, targets: base.Targets, key: jax.Array
) -> base.Masks:
    """The first masks: exactly the target counts, at random or by magnitude."""
    leaves, structure = paths_lib.flatten_with_paths(params)
    index = [i for i, (path, _) in enumerate(leaves) if path in targets.counts]
    chosen = [leaves[i] for i in index]
    masks = [jnp.ones((), bool) for _ in leaves]
    scores = None
    if targets.draw == "magnitude":
        scores = [[-jnp.abs(leaf) for _, leaf in chosen]]
    every = [jnp.ones(jnp.shape(leaf), bool) for _, leaf in chosen]
    counts = [targets.counts[path] for path, _ in chosen]
    if chosen:
        drawn = selection.select_each(scores, every, counts, key)
        for i, mask in zip(index, drawn, strict=True):
            masks[i] = mask
    return structure.unflatten(masks)


def _with_masks_of_dense(
    params: base.Params, masks: base.Masks, targets: base.Targets
) -> base.Masks:
    """Given masks, those of dense leaves with a target as large as the leaf."""
    leaves, structure = paths_lib.flatten_with_paths(params)
    return structure.unflatten(
        jnp.ones(jnp.shape(leaf), bool) if path in targets.counts and not m.ndim else m
        for (path, leaf), m in zip(leaves, jax.tree.leaves(masks), strict=True)
    )


def _counted(params: base.Params, targets: base.Targets) -> base.Tree:
    leaves, structure = paths_lib.flatten_with_paths(params)
    return structure.unflatten(path in targets.counts for path, _ in leaves)


def _target_tree(params: base.Params, masks: base.Masks, targets: base.Targets):
    leaves, structure = paths_lib.flatten_with_paths(params)
    return structure.unflatten(
        jnp.asarray(targets.counts.get(path, 0) if m.ndim else 0, jnp.int32)
        for (path, _), m in zip(leaves, jax.tree.leaves(masks), strict=True)
    )
