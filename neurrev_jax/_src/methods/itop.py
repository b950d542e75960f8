"""ITOP: explore in time as many positions as possible; large, unhurried updates."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, ratios, schedules, topology
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src.methods import exchange, static


class ItopState(NamedTuple):
    """Where the network has been.

    Attributes:
      seen: mask tree, True at rewirable entries that were active before the last
        topology update; shape () and of no meaning for dense leaves.
      dense_next: whether the coming call scores growth by dense gradients, bool[].
    """

    seen: base.Masks
    dense_next: jax.Array

    def gradient_masks(self, masks: base.Masks) -> Any:
        """Every entry where the coming call needs dense gradients."""
        return jax.tree.map(lambda m: m | self.dense_next, masks)


@base.Card(prunes="smallest |w|", grows="largest |gradient|, or at random")
def itop(
    update_ratio: float | base.Ratio = 0.5,
    schedule: base.Schedule | None = None,
    *,
    growth: Literal["gradient", "random"] = "gradient",
    prefer_new: bool = False,
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """In-time over-parameterization (ITOP; Liu et al., 2021, sections 3 and 5).

    RigL, or SET by magnitude, with an update interval long enough for new weights to
    grow up, a large update ratio and no end: what counts is how many positions were
    ever active, `exploration_rate(opt_state)`. Per leaf, drops the fraction
    `update_ratio` of the active weights with the smallest |w| and grows the same
    number where |gradient| is largest, or at random.

    Args:
      update_ratio: fraction of the active weights in [0, 1], or a ratio over time;
        the original uses `cosine(0.5, steps, final=0.005)` over all of training.
      schedule: when; by default `periodic(4000)` for growth by gradient and
        `periodic(1500)` for random growth, without end.
      growth: `"gradient"` (RigL-ITOP) or `"random"` (SET-ITOP).
      prefer_new: random growth takes positions that were never active first.
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`; its state is an `ItopState`. With growth by gradient the gradients
      passed to `update` must be dense on scheduled calls.

    Raises:
      ValueError: for a ratio outside [0, 1], an unknown option, or `prefer_new`
        where growth is not random.

    >>> itop(ratios.cosine(0.5, 125_000, final=0.005)).name
    'itop'
    """
    if growth not in ("gradient", "random"):
        raise ValueError(
            f"growth={growth!r} is unknown; choose 'gradient' or 'random'."
        )
    if prefer_new and growth == "gradient":
        raise ValueError(
            "prefer_new=True has no effect on growth='gradient', which orders "
            "positions by gradient; use growth='random'."
        )
    ratio = ratios.as_ratio("update_ratio", update_ratio)
    draw = static.draw_by(init_mask)
    by_gradient = growth == "gradient"
    schedule = schedule or schedules.periodic(4000 if by_gradient else 1500)
    dense_gradients = schedule if by_gradient else base.never

    def dense_in_next_call(context: base.Context) -> jax.Array:
        return jnp.asarray(dense_gradients(context.t + 1), bool)

    def init(context: base.Context) -> ItopState:
        nowhere = jax.tree.map(jnp.zeros_like, context.masks)
        return ItopState(nowhere, dense_in_next_call(context))

    def observe(context: base.Context) -> ItopState:
        return context.method_state._replace(dense_next=dense_in_next_call(context))

    def rewire(context: base.Context) -> base.Rewired:
        k = ratios.fraction_of(ratio(context.t), topology.count_active(context.masks))
        seen = _so_far(context.method_state, context.masks)
        scores = None
        if by_gradient:
            scores = jax.tree.map(jnp.abs, context.grads)
        elif prefer_new:
            scores = jax.tree.map(lambda s: (~s).astype(jnp.int32), seen)
        new = exchange.drop_and_grow(context, k, k, grow_by=scores)
        return base.Rewired(new, context.method_state._replace(seen=seen))

    return base.Method(
        name="itop",
        schedule=schedule,
        rewire=rewire,
        cost=base.Cost(update=(2.0, 1.0)) if by_gradient else base.Cost(),
        start=draw,
        init=init,
        observe=observe,
        dense_gradients=dense_gradients,
    )


def exploration_rate(opt_state: Any) -> jax.Array:
    """Fraction of the rewirable weights that were active at any time so far (R_s).

    ITOP's measure of exploration (Liu et al., 2021, section 3.1): it starts at the
    density and never falls.

    Args:
      opt_state: optimizer state of `itop`, also as a host of `powerprop` (the sparse
        state may be nested in it).

    Returns:
      float32[] in [0, 1].

    Raises:
      ValueError: if the state belongs to another method.

    >>> import jax.numpy as jnp, neurrev_jax, optax
    >>> tx = neurrev_jax.sparse_transform(optax.sgd(0.1), itop(), sparsity=0.75)
    >>> float(exploration_rate(tx.init({"kernel": jnp.ones((4, 5))})))
    0.25
    """
    seen = []
    for state in masks_lib.find_states(opt_state):
        of_method = getattr(state.method_state, "host", state.method_state)
        if not isinstance(of_method, ItopState):
            raise ValueError(
                f"the sparse state holds a {type(of_method).__name__}, which does not "
                "remember where the network has been; train with neurrev_jax.itop."
            )
        seen.append(_so_far(of_method, state.masks))
    return masks_lib.density(seen)


def _so_far(state: ItopState, masks: base.Masks) -> base.Masks:
    # The masks of now are added here and not on every step, which would cost a pass
    # over all weights; and a topology update may not reach frozen leaves.
    return jax.tree.map(jnp.logical_or, state.seen, masks)
