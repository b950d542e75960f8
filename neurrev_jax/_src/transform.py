"""`sparse_transform`: any sparse-training method around any Optax optimizer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from neurrev_jax._src import (
    base,
    branching,
    distributions,
    inner_slots,
    inner_step,
    selection,
)
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

    >>> import jax.numpy as jnp, optax
    >>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
    >>> tx = sparse_transform(optax.sgd(0.1), sparsity=0.9)
    >>> opt_state = tx.init(params)
    >>> params = sparsify(params, opt_state)
    >>> updates, opt_state = tx.update(params, opt_state, params)
    >>> int((optax.apply_updates(params, updates)["kernel"] != 0).sum())
    20
    """
    method = neurrev_lib.neurrev() if method is None else method
    inner = optax.with_extra_args_support(inner)

    def start(params: base.Params) -> base.Targets:
        if masks is not None:
            masks_lib.check_masks(params, masks)
            return method.start(_targets_of(params, masks))
        shapes = paths_lib.sparsifiable(params, where)
        counts = distributions.initial_counts(shapes, sparsity, distribution)
        sizes = {path: math.prod(shapes[path]) for path in counts}
        return method.start(base.Targets(sizes, counts))

    def init(params: base.Params) -> base.SparseState:
        typed_key = selection.as_key(key)
        targets = start(params)
        if masks is None:
            drawn = _draw(params, targets, jax.random.fold_in(typed_key, 0))
        else:
            # A copy, so that donating the state does not take the caller's masks.
            full = masks_lib.broadcast(masks, params)
            drawn = jax.tree.map(lambda m: jnp.array(m, copy=True), full)
        context = base.Context(
            t=jnp.int32(0),
            key=jax.random.fold_in(typed_key, 0),
            params=params,
            grads=None,
            masks=drawn,
            targets=_target_tree(params, drawn, targets),
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
        context = base.Context(
            t=count,
            key=jax.random.fold_in(selection.as_key(state.key), count),
            params=params,
            grads=grads,
            masks=state.masks,
            targets=_target_tree(params, state.masks, start(params)),
            method_state=state.method_state,
            extra=extra,
            frozen=frozen,
        )
        step = _Step(method, inner, context, state.inner_state)
        updates, new_masks, inner_state, method_state = step.run()
        return updates, base.SparseState(
            count, state.key, new_masks, inner_state, method_state
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  (optax types states as arrays)


class _Carry(NamedTuple):
    """What a topology update changes, in place."""

    masks: base.Masks
    inner_state: Any
    method_state: Any
    grown: base.Params | None


class _Step:
    """One call of `update`, in the order of its parts."""

    def __init__(
        self,
        method: base.Method,
        inner: optax.GradientTransformationExtraArgs,
        context: base.Context,
        inner_state: Any,
    ):
        self.method = method
        self.inner = inner
        self.context = context
        self.params = context.params
        self.inner_state = inner_state
        # For each leaf of the inner state, the parameter leaf it is a slot of, or -1.
        self.slots = inner_slots.leaf_numbers(inner, inner_state, self.params)
        self.sparse = [m.ndim > 0 for m in jax.tree.leaves(context.masks)]
        self.recorded: inner_step.InnerStep | None = None

    def run(self) -> tuple[base.Params, base.Masks, Any, Any]:
        method, context = self.method, self.context
        fires = jnp.asarray(method.schedule(context.t), bool)
        is_traced = isinstance(fires, Tracer)
        grows, resets = self._outline() if is_traced else (True, True)
        # The cases in which the update may be derived from masked slots; see
        # `inner_step`. Without tracing there is nothing to fuse.
        record = is_traced and not resets and not grows and self._is_plain()

        raw, state = self._inner_update(record)
        state = self._mask_slots(state, self._movable(context.masks))
        method_state = context.method_state
        if method.observe is not None:
            after = self._params_after(raw, state)
            method_state = method.observe(
                self._at(after, context.masks, method_state, context.grads)
            )

        def rewire(carry: _Carry, grads: base.Params) -> _Carry:
            after = self._params_after(raw, carry.inner_state, carry.masks)
            now = self._at(after, carry.masks, carry.method_state, grads)
            rewired = method.rewire(now)
            masks = self._unless_frozen(rewired.masks, carry.masks)
            # Slots are zero already where an entry was inactive before.
            movable = self._movable(masks, rewired.method_state)
            kept = self._mask_slots(carry.inner_state, movable)
            if rewired.reset_slots is not False:
                kept = self._reset_slots(kept, rewired.reset_slots)
            grown = rewired.grown if carry.grown is not None else None
            return _Carry(masks, kept, rewired.method_state, grown)

        zeros = jax.tree.map(jnp.zeros_like, self.params) if grows else None
        start = _Carry(context.masks, state, method_state, zeros)
        end = branching.run_if(fires, rewire, start, (context.grads,))
        updates = self._final_updates(raw, end)
        return updates, end.masks, end.inner_state, end.method_state

    def _outline(self) -> tuple[bool, bool]:
        """Whether the method gives growth values and may reset slots; checks it."""
        found: list[tuple[bool, bool]] = []

        def rewire():
            rewired = self.method.rewire(self.context)
            found.append((rewired.grown is not None, rewired.reset_slots is not False))
            return rewired.masks, rewired.method_state

        new = jax.eval_shape(rewire)
        old = (self.context.masks, self.context.method_state)
        same = jax.tree.structure(new) == jax.tree.structure(old) and all(
            a.shape == b.shape and a.dtype == b.dtype
            for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        )
        if not same:
            raise ValueError(
                f"method {self.method.name!r}: rewire must return masks and a state of "
                "the structure, shapes and types it was given; compare them with "
                "context.masks and context.method_state."
            )
        return found[0]

    def _is_plain(self) -> bool:
        method = self.method
        return (
            method.inner_gradients == "masked"
            and method.slots == "zero"
            and method.inactive == "zero"
            and method.after_step is None
            and self.context.frozen is None
            and not _may_fire_first(method.schedule)
        )

    def _at(
        self, params: base.Params, masks: base.Masks, state: Any, grads: base.Params
    ) -> base.Context:
        return dataclasses.replace(
            self.context, params=params, masks=masks, method_state=state, grads=grads
        )

    def _movable(self, masks: base.Masks, method_state: Any = None) -> base.Masks:
        """The entries whose parameters and slots the inner optimizer may move."""
        if self.method.inactive == "zero":
            return masks
        state = self.context.method_state if method_state is None else method_state
        return state.gradient_masks(masks)

    def _inner_update(self, record: bool) -> tuple[base.Params, Any]:
        """The inner optimizer's own updates and state."""
        method, context = self.method, self.context
        if method.inner_gradients == "dense":
            grads = context.grads
        elif method.inner_gradients == "backward":
            grads = _where(
                context.method_state.gradient_masks(context.masks), context.grads
            )
        else:
            grads = _where(context.masks, context.grads)
        if method.add_gradient is not None:
            grads = jax.tree.map(
                lambda g, a: g + a.astype(g.dtype), grads, method.add_gradient(context)
            )
        grads = self._unless_frozen(grads, jax.tree.map(jnp.zeros_like, grads))

        if record:
            extra = dict(context.extra)
            self.recorded = inner_step.InnerStep(
                lambda p, g, s, e: self.inner.update(g, s, p, **e),
                self.params,
                (grads, self.inner_state, extra),
            )
            return self.recorded.updates, self.recorded.state
        raw, state = self.inner.update(
            grads, self.inner_state, self.params, **context.extra
        )
        if method.after_step is not None:
            noise = _where(context.masks, method.after_step(context))
            raw = jax.tree.map(lambda u, n: u + n.astype(u.dtype), raw, noise)
        return raw, state

    def _params_after(
        self, raw: base.Params, state: Any, masks: base.Masks | None = None
    ) -> base.Params:
        """The parameters as this call would leave them without topology update."""
        masks = self.context.masks if masks is None else masks
        raw, _ = self._derive(raw, state)
        updates = self._mask_updates(raw, masks, masks, None)
        return optax.apply_updates(self.params, updates)

    def _derive(self, raw: base.Params, state: Any) -> tuple[base.Params, list[bool]]:
        """The updates from the state as it is now, where that can be."""
        if self.recorded is None:
            return raw, [False] * len(self.sparse)
        leaves, derived = self.recorded.updates_from(state, self.slots, self.sparse)
        return jax.tree.structure(raw).unflatten(leaves), derived

    def _final_updates(self, raw: base.Params, end: _Carry) -> base.Params:
        raw, derived = self._derive(raw, end.inner_state)
        # A derived update is zero where the entry has just grown, so the old masks
        # (which the topology update has overwritten) are not needed for it.
        old = jax.tree.leaves(self.context.masks)
        new, structure = jax.tree.flatten(end.masks)
        before = structure.unflatten(
            [n if d else o for n, o, d in zip(new, old, derived, strict=True)]
        )
        return self._mask_updates(raw, before, end.masks, end.grown)

    def _mask_updates(
        self,
        raw: base.Params,
        old: base.Masks,
        new: base.Masks,
        grown: base.Params | None,
    ) -> base.Params:
        """The updates that leave inactive entries at zero (or where they are)."""
        if self.method.inactive == "hold":
            updates = _where(self._movable(old), raw)
        else:

            def mask(u, p, o, n, start):
                if n.ndim == 0:
                    return u
                # Wide enough for -p to be exact.
                u = u.astype(jnp.promote_types(u.dtype, p.dtype))
                out = jnp.where(n, u, -p.astype(u.dtype))
                if o is n:
                    return out
                begin = (start - p).astype(u.dtype)
                return jnp.where(n & ~o, begin, out)

            starts = (
                jax.tree.map(jnp.zeros_like, self.params) if grown is None else grown
            )
            updates = jax.tree.map(mask, raw, self.params, old, new, starts)
        return self._unless_frozen(updates, jax.tree.map(jnp.zeros_like, updates))

    def _mask_slots(self, state: Any, movable: base.Masks) -> Any:
        """Zeroes slots outside `movable` unless the method keeps them."""
        if self.method.slots == "zero":
            state = inner_slots.mask_slots(state, self.slots, self.params, movable)
        return self._frozen_slots(state)

    def _reset_slots(self, state: Any, reset: jax.typing.ArrayLike) -> Any:
        keep = jax.tree.map(
            lambda m: jnp.broadcast_to(~jnp.asarray(reset, bool), m.shape),
            self.context.masks,
        )
        state = inner_slots.mask_slots(state, self.slots, self.params, keep)
        return self._frozen_slots(state)

    def _unless_frozen(self, new: Any, old: Any) -> Any:
        """`new`, but `old` in the leaves that the caller froze."""
        frozen = self.context.frozen
        if frozen is None:
            return new
        flags = masks_lib.broadcast(frozen, self.params)
        return jax.tree.map(_pick_frozen, flags, old, new)

    def _frozen_slots(self, state: Any) -> Any:
        frozen = self.context.frozen
        if frozen is None:
            return state
        flags = jax.tree.leaves(masks_lib.broadcast(frozen, self.params))
        old, structure = jax.tree.flatten(self.inner_state)
        return structure.unflatten(
            _pick_frozen(flags[number], a, b) if number >= 0 else b
            for number, a, b in zip(
                self.slots, old, jax.tree.leaves(state), strict=True
            )
        )


def sparsify(params: base.Params, opt_state: Any) -> base.Params:
    """Prepares fresh parameters for training; once, right after `init`.

    Masks them, so that the first forward pass is already sparse; for a method that
    holds inactive values or reparameterizes, what that method asks for instead.

    Args:
      params: the parameters that `init` was called with.
      opt_state: what it returned (the sparse state may be nested in it).

    Returns:
      The parameters to train with.

    Raises:
      ValueError: if the state does not belong to such parameters.
    """
    return _by_state(params, opt_state, "sparsify", masks_lib.apply_masks)


def effective_params(params: base.Params, opt_state: Any) -> base.Params:
    """The weights the network computes with: for forward passes, evaluation, export.

    The identity for most methods. Differentiable: gradients pass straight through a
    mask, and a reparameterization has its true derivative.

    Args:
      params: parameter tree.
      opt_state: optimizer state (the sparse state may be nested in it).

    Returns:
      A tree like `params`.
    """
    return _by_state(params, opt_state, "effective_params", lambda p, masks: p)


def gradient_masks(opt_state: Any) -> base.Masks:
    """Which entries need a gradient in the coming call.

    The active ones; for a method that scores growth by dense gradients in that
    call, all; for one that trains more than it computes with, those it trains.

    Args:
      opt_state: optimizer state (the sparse state may be nested in it).

    Returns:
      A mask tree.
    """
    replaced = jax.tree.map(
        lambda state: state._replace(
            masks=getattr(state.method_state, "gradient_masks", lambda m: m)(
                state.masks
            )
        ),
        masks_lib.find_states(opt_state),
        is_leaf=lambda node: isinstance(node, base.SparseState),
    )
    return masks_lib.get_masks([s._replace(inner_state=()) for s in replaced])


def _by_state(params: base.Params, opt_state: Any, name: str, default: Any):
    """Applies a function of the method state, or the default, per sparse state."""
    states = masks_lib.find_states(opt_state)
    masks_lib.check_masks(params, masks_lib.get_masks(opt_state))
    for state in states:
        fn = getattr(state.method_state, name, None)
        params = masks_lib.apply_where_seen(fn or default, params, state.masks)
    return params


def _may_fire_first(schedule: base.Schedule) -> bool:
    """Whether call 1 ends with a topology update.

    Only then can an entry that grows have held anything but zero before: the first
    call leaves all inactive entries at zero, whatever it was given.
    """
    with jax.ensure_compile_time_eval():
        fires = jnp.any(jnp.asarray(schedule(jnp.int32(1)), bool))
    return isinstance(fires, Tracer) or bool(fires)


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


def _draw(params: base.Params, targets: base.Targets, key: jax.Array) -> base.Masks:
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


def _target_tree(params: base.Params, masks: base.Masks, targets: base.Targets):
    leaves, structure = paths_lib.flatten_with_paths(params)
    return structure.unflatten(
        jnp.asarray(targets.counts.get(path, 0) if m.ndim else 0, jnp.int32)
        for (path, _), m in zip(leaves, jax.tree.leaves(masks), strict=True)
    )


def _where(masks: base.Masks, tree: base.Params) -> base.Params:
    return masks_lib.tree_map(
        lambda x, m: jnp.where(m, x, jnp.zeros_like(x)) if m.ndim else x, tree, masks
    )


def _pick_frozen(frozen: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    if isinstance(frozen, bool):
        return old if frozen else new
    return jnp.where(frozen, old, new)
