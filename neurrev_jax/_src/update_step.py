"""One call of `update`: inner optimizer, topology update, masked updates.

Here are the switches of a `Method` (what the inner optimizer sees, what happens to
slots and inactive entries), once for all methods.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from neurrev_jax._src import base, branching, inner_slots, inner_step
from neurrev_jax._src import masks as masks_lib


class _Carry(NamedTuple):
    """What a topology update changes, in place."""

    masks: base.Masks
    inner_state: Any
    method_state: Any
    grown: base.Params | None
    restarted: base.Masks | None


class UpdateStep:
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
        grows, resets, restarts = self._outline() if is_traced else (True,) * 3
        # The cases in which the update may be derived from masked slots; see
        # `inner_step`. Without tracing there is nothing to fuse.
        started = resets or grows or restarts
        record = is_traced and not started and self._is_plain()

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
            if rewired.restarted is not None:
                others = jax.tree.map(jnp.logical_not, rewired.restarted)
                kept = self._mask_slots(kept, others)
            grown = rewired.grown if carry.grown is not None else None
            restarted = rewired.restarted if carry.restarted is not None else None
            return _Carry(masks, kept, rewired.method_state, grown, restarted)

        zeros = jax.tree.map(jnp.zeros_like, self.params) if grows else None
        none = jax.tree.map(jnp.zeros_like, context.masks) if restarts else None
        start = _Carry(context.masks, state, method_state, zeros, none)
        end = branching.run_if(fires, rewire, start, (context.grads,))
        updates = self._final_updates(raw, end)
        return updates, end.masks, end.inner_state, end.method_state

    def _outline(self) -> tuple[bool, bool, bool]:
        """Whether the method gives growth values, resets slots, restarts entries."""
        found: list[tuple[bool, bool, bool]] = []

        def rewire():
            rewired = self.method.rewire(self.context)
            grows, restarts = (
                x is not None for x in (rewired.grown, rewired.restarted)
            )
            found.append((grows, rewired.reset_slots is not False, restarts))
            return rewired.masks, rewired.method_state, rewired.grown

        *new, grown = jax.eval_shape(rewire)
        old = [self.context.masks, self.context.method_state]
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
        if grown is not None and (
            jax.tree.map(jnp.shape, grown) != jax.tree.map(jnp.shape, self.params)
        ):
            raise ValueError(
                f"method {self.method.name!r}: Rewired.grown must have the structure "
                "and shapes of the parameters, dense leaves included; compare it with "
                "context.params."
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
        if end.restarted is not None:
            before = jax.tree.map(lambda b, r: b & ~r, before, end.restarted)
        restarts = end.restarted is not None
        return self._mask_updates(raw, before, end.masks, end.grown, restarts)

    def _mask_updates(
        self,
        raw: base.Params,
        old: base.Masks,
        new: base.Masks,
        grown: base.Params | None,
        restarts: bool = False,
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
                if restarts:
                    # Beside an old value a tiny one is lost in rounding. The smallest
                    # step off zero that an update can leave is taken instead.
                    least = -jnp.nextafter(p, jnp.zeros_like(p)).astype(u.dtype)
                    lost = (start != 0) & (begin == -p.astype(u.dtype))
                    begin = jnp.where(lost, least, begin)
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
        leaves, structure = jax.tree.flatten(state)
        fresh = structure.unflatten(
            jnp.where(reset, jnp.zeros_like(leaf), leaf) if number >= 0 else leaf
            for leaf, number in zip(leaves, self.slots, strict=True)
        )
        return self._frozen_slots(fresh)

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


def _may_fire_first(schedule: base.Schedule) -> bool:
    """Whether call 1 ends with a topology update.

    Only then can an entry that grows have held anything but zero before: the first
    call leaves all inactive entries at zero, whatever it was given.
    """
    with jax.ensure_compile_time_eval():
        fires = jnp.any(jnp.asarray(schedule(jnp.int32(1)), bool))
    return isinstance(fires, Tracer) or bool(fires)


def _where(masks: base.Masks, tree: base.Params) -> base.Params:
    return masks_lib.tree_map(
        lambda x, m: jnp.where(m, x, jnp.zeros_like(x)) if m.ndim else x, tree, masks
    )


def _pick_frozen(frozen: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    if isinstance(frozen, bool):
        return old if frozen else new
    return jnp.where(frozen, old, new)
