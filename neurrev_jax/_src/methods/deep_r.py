"""Deep-R: every connection keeps its sign; one that crosses zero moves elsewhere."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, schedules, topology
from neurrev_jax._src.methods import exchange, static

_NOISE_KEY = 0x6E6F6973


class DeepRState(NamedTuple):
    """The sign of every connection, active or not.

    Attributes:
      positive: bool of the leaf's shape for rewirable leaves, shape () for dense
        ones; never changes.
    """

    positive: base.Masks


@base.Card(prunes="weights that crossed zero", grows="at random, the sign given")
def deep_r(
    temperature: float | base.Ratio = 1e-5,
    schedule: base.Schedule | None = None,
    *,
    l1: float = 1e-5,
    step_size: float | base.Ratio = 0.01,
    grown_start: float = 1e-12,
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Deep rewiring (Deep-R; Bellec et al., 2018, Algorithm 1).

    An active weight is w = s v with a fixed sign s and v > 0. After the inner
    optimizer's step, v moves by - eta alpha + sqrt(2 eta T) noise, with eta =
    `step_size`, alpha = `l1`, T = `temperature` and standard normal noise. A
    connection whose v has become zero or less is dropped, and as many are grown per
    leaf, uniformly at random among all inactive ones, at v = `grown_start` and with
    the sign that belongs to the position. Signs are those of the initial weights
    (where these are zero, drawn at random).

    One that has just been dropped may be drawn again; in a leaf without inactive
    entries all of them are. It starts anew then, with its sign and zero slots, at
    `grown_start` or, where that would be lost in rounding beside the value it had, as
    near to zero as an update can take it.

    Args:
      temperature: T, in [0, 1], or a function of the call number such as
        `piecewise([1e-5, 1e-8, 1e-12, 1e-15], boundaries)`, from epochs 0, 25, 80
        and 140 in a port to convolutions (Mostafa and Wang, 2019).
      schedule: when crossings are looked for; `periodic(1)` by default, every call,
        as the algorithm says. Until they are looked for, a weight may have the
        wrong sign.
      l1: alpha, not negative.
      step_size: eta, in [0, 1], or a function of the call number; the learning rate
        of the algorithm, which the inner optimizer does not tell.
      grown_start: |w| of a connection that is grown, positive.
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`; its state is a `DeepRState`.

    Raises:
      ValueError: for a number outside its range or an unknown option.

    >>> deep_r(ratios.piecewise([1e-5, 1e-8], [10_000])).name
    'deep_r'
    """
    heat = ratios.as_ratio("temperature", temperature)
    eta = ratios.as_ratio("step_size", step_size)
    if not l1 >= 0:
        raise ValueError(f"l1={l1!r} must not be negative; 0 switches the drift off.")
    if not 0 < grown_start < float("inf"):
        raise ValueError(
            f"grown_start={grown_start!r} must be positive and finite: at 0 a "
            "connection has no sign and is dropped at once."
        )

    def init(context: base.Context) -> DeepRState:
        coins = exchange.draw(
            lambda key, shape: jax.random.bernoulli(key, shape=shape),
            context.key,
            context.masks,
        )
        return DeepRState(
            jax.tree.map(
                lambda p, m, coin: jnp.where(p == 0, coin, p > 0) if m.ndim else coin,
                context.params,
                context.masks,
                coins,
            )
        )

    def drift_and_noise(context: base.Context) -> base.Params:
        step = jnp.asarray(eta(context.t), jnp.float32)
        spread = jnp.sqrt(2 * step * jnp.asarray(heat(context.t), jnp.float32))
        # Far from the keys that the topology update splits this one into: `split` and
        # `fold_in` of a small number are the same draw.
        key = jax.random.fold_in(context.key, _NOISE_KEY)
        noise = exchange.draw(jax.random.normal, key, context.masks)

        def move(p, m, positive, nu):
            if not m.ndim:
                return jnp.zeros_like(p)
            drift = jnp.where(positive, -step * l1, step * l1)
            return (drift + spread * nu.astype(jnp.float32)).astype(p.dtype)

        positive = context.method_state.positive
        return jax.tree.map(move, context.params, context.masks, positive, noise)

    def rewire(context: base.Context) -> base.Rewired:
        positive = context.method_state.positive
        lengths = jax.tree.map(
            lambda w, s: jnp.where(s, w, -w), context.params, positive
        )
        crossed = jax.tree.map(
            lambda v, m: m & (v <= 0) if m.ndim else m, lengths, context.masks
        )
        gone = topology.count_active(crossed)
        target = exchange.per_leaf(context.targets, context.masks)
        missing = target - (topology.count_active(context.masks) - gone)
        # The `gone` shortest are those that have crossed zero. They are dormant then
        # like all others, and may be drawn again: with their sign, and from the start.
        new = exchange.drop_and_grow(context, gone, missing, drop_by=lengths)
        again = jax.tree.map(lambda c, m: c & m if m.ndim else ~m, crossed, new)
        grown = jax.tree.map(
            lambda w, s: (
                jnp.where(s, grown_start, -grown_start).astype(w.dtype)
                * jnp.ones_like(w)
            ),
            context.params,
            positive,
        )
        return base.Rewired(new, context.method_state, grown, restarted=again)

    return base.Method(
        name="deep_r",
        schedule=schedule or schedules.periodic(1),
        rewire=rewire,
        start=static.draw_by(init_mask),
        init=init,
        after_step=drift_and_noise,
        grows="nonzero",
    )
