"""Top-KAST: compute with the largest weights, train a larger set, hold the rest."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, rows, schedules, topology
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src.methods import exchange, static


class TopKastState(NamedTuple):
    """The set B of what is trained; the masks are the set A of what is computed with.

    Attributes:
      backward: mask tree, A and more.
    """

    backward: base.Masks

    def sparsify(self, params: base.Params, masks: base.Masks) -> base.Params:
        """The identity: entries outside A keep their values."""
        del masks
        return params

    def effective_params(self, params: base.Params, masks: base.Masks) -> base.Params:
        """Zero outside A; gradients pass straight through, so that B gets them."""
        masked = masks_lib.apply_masks(params, masks)
        return jax.tree.map(
            lambda p, a: p + jax.lax.stop_gradient(a - p), params, masked
        )

    def gradient_masks(self, masks: base.Masks) -> base.Masks:
        """The set B."""
        del masks
        return self.backward


@base.Card(prunes="what others overtook in |w|", grows="largest |w| held")
def top_kast(
    exploration_ratio: float | base.Ratio = 0.1,
    schedule: base.Schedule | None = None,
    *,
    penalty: float = 1e-4,
    backward: Literal["magnitude", "random"] = "magnitude",
    slots: Literal["zero", "keep"] = "zero",
) -> base.Method:
    """Top-K always sparse training (Top-KAST; Jayakumar et al., 2020, section 2).

    All parameters are stored. The network computes with A, the D largest |w| of each
    leaf, D being the density that `sparse_transform` is asked for; gradients reach
    B, the D + M largest; all others stay as they are. There is no dropping and
    growing: a weight of B that has overtaken one of A takes its place when the sets
    are drawn anew. An exploration loss shrinks what is trained, weights of A with
    strength `penalty` and those of B outside A with `penalty` / D, so that there is
    movement between the sets.

    Compute and differentiate through `effective_params(params, opt_state)`.

    Args:
      exploration_ratio: M as a fraction in [0, 1] of ALL entries of a leaf, or a
        ratio over time. With 0 the mask is that of the largest initial weights, and
        stays so unless an active one shrinks below one that is held.
      schedule: when the sets are drawn anew; `periodic(100)` by default. They stay
        as they are after its end.
      penalty: strength of the exploration loss, not negative. It takes the place of
        weight decay.
      backward: what B holds besides A: the next largest |w|, or others drawn at
        random (`"random"`, an ablation of the paper).
      slots: `"zero"` zeroes the inner optimizer's slots outside B; `"keep"` leaves
        them to decay.

    Returns:
      A `Method`; its state is a `TopKastState`. The first A is the largest |w| of
      the initial weights.

    Raises:
      ValueError: for a ratio outside [0, 1], an unknown option or a negative
        penalty.

    >>> top_kast(0.1).cost.per_example(f_sparse=0.1, f_dense=1.0, f_backward=0.2)
    0.5
    """
    ratio = ratios.as_ratio("exploration_ratio", exploration_ratio)
    for name, value, options in (
        ("backward", backward, ("magnitude", "random")),
        ("slots", slots, ("zero", "keep")),
    ):
        if value not in options:
            choice = " or ".join(map(repr, options))
            raise ValueError(f"{name}={value!r} is unknown; choose {choice}.")
    if not penalty >= 0:
        raise ValueError(
            f"penalty={penalty!r} must not be negative; 0 switches the exploration "
            "loss off."
        )

    def widen(context: base.Context, forward: rows.Stack, key: jax.Array) -> rows.Stack:
        """B: the set A and M more."""
        more = ratios.fraction_of(ratio(context.t), exchange.sizes(context.masks))
        weights = rows.stack(context.params, context.masks)
        size = jax.tree.map(jnp.abs, weights) if backward == "magnitude" else None
        _, wider = topology.grow(weights, forward, more, size, key)
        return wider

    def init(context: base.Context) -> TopKastState:
        forward = rows.stack(context.masks, context.masks)
        _, key = jax.random.split(context.key)
        wider = widen(context, forward, key)
        wider = rows.unstack(wider, context.masks, context.masks)
        # A copy of the masks of dense leaves, so that a state may be donated.
        return TopKastState(jax.tree.map(lambda m: jnp.array(m, copy=True), wider))

    def rewire(context: base.Context) -> base.Rewired:
        key_forward, key_backward = jax.random.split(context.key)
        weights = rows.stack(context.params, context.masks)
        none = jax.tree.map(jnp.zeros_like, rows.stack(context.masks, context.masks))
        size = jax.tree.map(jnp.abs, weights)
        target = exchange.per_leaf(context.targets, context.masks)
        _, forward = topology.grow(weights, none, target, size, key_forward)
        # Frozen leaves keep both sets, which go together.
        free = exchange.may_change(context)
        old = rows.stack(context.masks, context.masks)
        forward = rows.choose(free, forward, old)
        old = rows.stack(context.method_state.backward, context.masks)
        wider = rows.choose(free, widen(context, forward, key_backward), old)
        sets = [rows.unstack(s, context.masks, context.masks) for s in (forward, wider)]
        return base.Rewired(sets[0], TopKastState(sets[1]))

    def exploration_loss_gradient(context: base.Context) -> base.Params:
        def gradient(w, in_a, in_b, target):
            if not in_a.ndim:
                return jnp.zeros_like(w)
            # An empty set A has no density to divide by; it counts as one entry.
            count = jnp.maximum(target, 1).astype(jnp.float32)
            inverse = (w.size / count).astype(w.dtype)
            strength = jnp.where(in_a, jnp.ones_like(w), inverse)
            return jnp.where(in_b, penalty * strength * w, jnp.zeros_like(w))

        wider = context.method_state.backward
        return jax.tree.map(
            gradient, context.params, context.masks, wider, context.targets
        )

    return base.Method(
        name="top_kast",
        schedule=schedule or schedules.periodic(100),
        rewire=rewire,
        cost=base.Cost(sparse=1.0, backward=2.0),
        start=static.draw_by("magnitude"),
        init=init,
        add_gradient=exploration_loss_gradient if penalty else None,
        inner_gradients="backward",
        slots=slots,
        inactive="hold",
        grows="nonzero",
    )
