"""Powerpropagation: train the roots of the weights, so that the small stay small."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src.methods import exchange
from neurrev_jax._src.methods import top_kast as top_kast_lib


class PowerpropState(NamedTuple):
    """The hosted method's state and the power.

    Attributes:
      host: state of the hosted method.
      alpha: the power, float32[].
    """

    host: Any
    alpha: jax.Array

    def sparsify(self, params: base.Params, masks: base.Masks) -> base.Params:
        """From fresh weights w to parameters phi = sign(w) |w|^(1/alpha)."""
        prepare = getattr(self.host, "sparsify", masks_lib.apply_masks)
        return _of_rewirable(_root, prepare(params, masks), masks, self.alpha)

    def effective_params(self, params: base.Params, masks: base.Masks) -> base.Params:
        """The weights w = phi |phi|^(alpha - 1), as the hosted method shows them."""
        weights = _of_rewirable(_power, params, masks, self.alpha)
        show = getattr(self.host, "effective_params", None)
        return show(weights, masks) if show else weights

    def gradient_masks(self, masks: base.Masks) -> base.Masks:
        """Those of the hosted method."""
        needed = getattr(self.host, "gradient_masks", None)
        return needed(masks) if needed else masks


@base.Card(prunes="as its host", grows="as its host", scope="as its host")
def powerprop(
    host: base.Method | None = None,
    alpha: float = 2.0,
    *,
    growth_start: float | None = None,
    weight_decay: float = 0.0,
) -> base.Method:
    """Powerpropagation around another method (Schwarz et al., 2021, section 2).

    The weights of rewirable leaves are w = phi |phi|^(alpha - 1), and phi is what is
    trained: dL/dphi = dL/dw alpha |phi|^(alpha - 1), so that large weights move
    faster than small ones. When and what to prune and grow is up to the host, which
    sees w and the gradients with respect to w.

    `sparsify` turns fresh weights into phi. Compute and differentiate through
    `effective_params(params, opt_state)`.

    Args:
      host: the method that rewires; `top_kast()` by default. It must not score
        growth by gradients where alpha > 1: the gradient of an inactive weight is
        zero through its power.
      alpha: the power, at least 1; 1 is the host alone. The paper tries 1 to 5.
      growth_start: |w| of newly active weights, with random sign. Needed where
        alpha > 1 and the host grows weights at zero, which would never move.
      weight_decay: adds the gradient of weight_decay/2 w^2 in rewirable leaves, so
        that decay acts on w as without the power. Decay inside the inner optimizer
        acts on phi instead; give it to one of the two.

    Returns:
      A `Method`; its state is a `PowerpropState`.

    Raises:
      ValueError: for numbers outside their range, or a host that cannot work with
        such a power.

    >>> import neurrev_jax
    >>> powerprop(neurrev_jax.set_(), alpha=2.0, growth_start=1e-3).name
    'powerprop'
    """
    host = top_kast_lib.top_kast() if host is None else host
    _require_numbers(alpha, growth_start, weight_decay)
    _require_fitting(host, alpha, growth_start)

    def for_host(context: base.Context) -> base.Context:
        """The same call as the host would see it without the power."""
        state: PowerpropState = context.method_state

        def without_power(g, m, phi):
            if not m.ndim:
                return g
            slope = _slope(phi, state.alpha).astype(g.dtype)
            return jnp.where(slope > 0, g / jnp.where(slope > 0, slope, 1), 0)

        return dataclasses.replace(
            context,
            params=_of_rewirable(_power, context.params, context.masks, state.alpha),
            grads=masks_lib.tree_map(
                without_power, context.grads, context.masks, context.params
            ),
            method_state=state.host,
        )

    def init(context: base.Context) -> PowerpropState:
        return PowerpropState(host.init(context), jnp.float32(alpha))

    def observe(context: base.Context) -> PowerpropState:
        assert host.observe is not None
        return context.method_state._replace(host=host.observe(for_host(context)))

    def rewire(context: base.Context) -> base.Rewired:
        state: PowerpropState = context.method_state
        rewired = host.rewire(for_host(context))
        grown = rewired.grown
        if growth_start is not None:
            # Far from the keys that a host splits this one into: `split` and
            # `fold_in` of a small number are the same draw.
            key = jax.random.fold_in(context.key, _SIGN_KEY)
            signs = exchange.draw(jax.random.rademacher, key, context.masks)
            grown = jax.tree.map(
                lambda p, sign: jnp.ones_like(p) * sign.astype(p.dtype) * growth_start,
                context.params,
                signs,
            )
        if grown is not None:
            grown = _of_rewirable(_root, grown, context.masks, state.alpha)
        new = state._replace(host=rewired.method_state)
        return rewired._replace(method_state=new, grown=grown)

    def add_gradient(context: base.Context) -> base.Params:
        state: PowerpropState = context.method_state
        seen = for_host(context)
        added = jax.tree.map(jnp.zeros_like, seen.params)
        if host.add_gradient is not None:
            added = host.add_gradient(seen)

        def through_power(a, m, w, phi, trained):
            if not m.ndim:
                return a
            decay = jnp.where(trained, weight_decay * w, jnp.zeros_like(w))
            return (a.astype(w.dtype) + decay) * _slope(phi, state.alpha)

        trained = state.gradient_masks(context.masks)
        return masks_lib.tree_map(
            through_power, added, context.masks, seen.params, context.params, trained
        )

    adds = host.add_gradient is not None or weight_decay
    return dataclasses.replace(
        host,
        name="powerprop",
        init=init,
        observe=None if host.observe is None else observe,
        rewire=rewire,
        add_gradient=add_gradient if adds else None,
        grows="nonzero" if growth_start is not None else host.grows,
    )


def _require_numbers(
    alpha: float, growth_start: float | None, weight_decay: float
) -> None:
    if not 1 <= alpha < float("inf"):
        raise ValueError(
            f"alpha={alpha!r} must be at least 1; below it the derivative at zero is "
            "infinite."
        )
    if growth_start is not None and not 0 < growth_start < float("inf"):
        raise ValueError(
            f"growth_start={growth_start!r} must be positive and finite: a weight "
            "that starts at zero has no gradient."
        )
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay!r} must not be negative.")


def _require_fitting(
    host: base.Method, alpha: float, growth_start: float | None
) -> None:
    """Raises for hosts that would silently fail behind a power."""
    if host.after_step is not None:
        raise ValueError(
            f"powerprop cannot host {host.name!r}, which moves the weights after the "
            "optimizer's step, past the change of variables; choose another host."
        )
    if alpha > 1 and host.dense_gradients is not base.never:
        raise ValueError(
            f"powerprop with alpha={alpha} cannot host {host.name!r}, which uses the "
            "gradients of inactive weights: through the power these are zero. Choose "
            "a host that grows at random, or alpha=1."
        )
    if alpha > 1 and host.grows == "zero" and growth_start is None:
        raise ValueError(
            f"powerprop with alpha={alpha} cannot host {host.name!r} as it is: a "
            "weight grown at zero has no gradient through the power and never moves; "
            "pass growth_start, such as growth_start=1e-3."
        )
    if growth_start is not None and host.grows != "zero":
        what = "nothing" if host.grows == "nothing" else "weights at their own values"
        raise ValueError(
            f"growth_start={growth_start!r} has no effect on {host.name!r}, which "
            f"grows {what}; leave it out."
        )


_SIGN_KEY = 0x7369676E


@jax.custom_jvp
def _power(phi: jax.Array, alpha: jax.Array) -> jax.Array:
    """The weight phi |phi|^(alpha - 1); differentiable at zero too."""
    return phi * jnp.abs(phi) ** (alpha - 1)


@_power.defjvp
def _power_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    phi, alpha = primals
    # The power itself is no variable.
    return _power(phi, alpha), _slope(phi, alpha) * tangents[0]


def _slope(phi: jax.Array, alpha: jax.Array) -> jax.Array:
    alpha = alpha.astype(phi.dtype)
    return alpha * jnp.abs(phi) ** (alpha - 1)


def _root(w: jax.Array, alpha: jax.Array) -> jax.Array:
    return jnp.sign(w) * jnp.abs(w) ** (1 / alpha)


def _of_rewirable(
    fn: Any, params: base.Params, masks: base.Masks, alpha: jax.Array
) -> base.Params:
    """`fn(leaf, alpha)` of the rewirable leaves; the others as they are."""
    return masks_lib.tree_map(
        lambda p, m: fn(p, alpha.astype(p.dtype)) if jnp.ndim(m) else p, params, masks
    )
