"""MEST: memory-economic sparse training, random growth under a hard or soft bound."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from neurrev_jax._src import base, ratios, schedules, topology
from neurrev_jax._src.methods import exchange, static


@base.Card(prunes="smallest |w| + weight * |gradient|", grows="at random")
def mest(
    update_ratio: float | base.Ratio = 0.02,
    schedule: base.Schedule | None = None,
    *,
    memory: Literal["hard", "soft"] = "hard",
    gradient_weight: float = 0.0,
    slots: Literal["zero", "keep"] = "keep",
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """MEST with elastic mutation (Yuan et al., 2021, section 3.2).

    With s the sparsity and p the update ratio, a topology update

    - of EM (`memory="hard"`) prunes every leaf to sparsity s + p and grows it back
      to s at random;
    - of EM&S (`memory="soft"`) prunes it to s and grows it to s - p, so that between
      updates the network trains with more weights than the target. The first update
      at ratio 0 prunes it to s for good.

    Weights are pruned by |w| + `gradient_weight` |dL/dw|, lowest first.

    Args:
      update_ratio: p as a fraction of ALL entries of a leaf, or a ratio over time,
        such as `piecewise([0.02, 0.01, 0.0], [...])` with steps at epochs 90 and 120
        of 160 (the original's EM at 90 %; its EM&S runs from 0.05). Let a schedule
        of EM&S end at 0 before its last topology update, or training ends at s - p.
      schedule: when; `periodic(1000)` by default (the original: every 5 epochs).
      memory: `"hard"` or `"soft"` bound.
      gradient_weight: lambda, not negative (the paper: 0.01; its code: 0). The
        gradient is the one of the call.
      slots: `"keep"` leaves the inner optimizer's slots of pruned entries to decay,
        as the original does; `"zero"` zeroes them.
      init_mask: how the first mask is drawn, `"random"`, or `"magnitude"` as in the
        original's code.

    Returns:
      A `Method`. Its training cost follows the masks: with a soft bound, count
      `f_sparse` with those that train.

    Raises:
      ValueError: for a ratio outside [0, 1], an unknown option, a negative
        `gradient_weight`, or (from the transformation's `init`) a ratio that exceeds
        the density of a leaf (hard) or its sparsity (soft). A leaf without an inactive
        entry stays as it is under a soft bound.

    >>> mest(ratios.piecewise([0.05, 0.025, 0.0], [900, 1200]), memory="soft").name
    'mest'
    """
    ratio = ratios.as_ratio("update_ratio", update_ratio)
    draw = static.draw_by(init_mask)
    if memory not in ("hard", "soft"):
        raise ValueError(f"memory={memory!r} is unknown; choose 'hard' or 'soft'.")
    if slots not in ("zero", "keep"):
        raise ValueError(f"slots={slots!r} is unknown; choose 'zero' or 'keep'.")
    if not gradient_weight >= 0:
        raise ValueError(
            f"gradient_weight={gradient_weight!r} must not be negative; 0 prunes by "
            "magnitude alone."
        )

    def start(targets: base.Targets) -> base.Targets:
        _require_feasible(targets, ratios.highest(ratio), memory)
        return draw(targets)

    def rewire(context: base.Context) -> base.Rewired:
        sizes = exchange.sizes(context.masks)
        active = topology.count_active(context.masks)
        target = exchange.per_leaf(context.targets, context.masks)
        p = ratios.fraction_of(ratio(context.t), sizes)
        if memory == "hard":
            pruned, grown = jnp.maximum(target - p, 0), target
        else:
            pruned, grown = target, jnp.minimum(target + p, sizes)
        scores = jax.tree.map(_score, context.params, context.grads)
        new = exchange.drop_and_grow(
            context, active - pruned, grown - pruned, drop_by=scores
        )
        return base.Rewired(new, context.method_state)

    def _score(w: jax.Array, g: jax.Array) -> jax.Array:
        if not gradient_weight:
            return jnp.abs(w)
        return jnp.abs(w) + gradient_weight * jnp.abs(g).astype(w.dtype)

    return base.Method(
        name="mest",
        schedule=schedule or schedules.periodic(1000),
        rewire=rewire,
        start=start,
        slots=slots,
    )


def _require_feasible(
    targets: base.Targets, highest: float | None, memory: str
) -> None:
    """Raises where the ratio asks for more than a leaf has to lose or to gain."""
    if highest is None:
        return
    for path, size in targets.sizes.items():
        active = targets.counts[path]
        if isinstance(active, Tracer):
            continue
        limit = int(active) if memory == "hard" else size - int(active)
        if memory == "soft" and not limit:
            continue  # Full, as ERK leaves the smallest layers: nothing to gain.
        if int(highest * size) > limit:
            what = "active" if memory == "hard" else "inactive"
            raise ValueError(
                f"update_ratio={highest} of all {size} entries of {path} is more than "
                f"the {limit} {what} ones; it is a fraction of all entries, not of "
                f"the active ones: choose at most {limit / size:.4g}."
            )
