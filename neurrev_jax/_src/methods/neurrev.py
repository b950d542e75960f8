"""NeurRev: prune by magnitude, grow at random, awake dormant neurons."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from neurrev_jax._src import base, ratios, rows, schedules, selection, topology
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src.methods import exchange, static

_OPTIONS = {
    "ratio_of": ("nonzero", "total"),
    "eligible": ("survivors", "active"),
    "too_few": ("fewer", "magnitude", "drift"),
    "scope": ("layer", "global"),
    "first_update": ("skip", "include"),
    "order_by": ("change", "magnitude"),
    "slots": ("zero", "keep"),
}


class NeurRevState(NamedTuple):
    """What NeurRev remembers between topology updates.

    Attributes:
      reference: the parameters right after the last topology update (at first: the
        initial ones), 0 where inactive; the structure and types of the parameters,
        shape () for dense leaves.
      shortfall: how many weights fewer than asked for the last topology update
        awoke, for want of negative ones or, in leaves that are nearly dense, of room
        to grow as many; frozen leaves are not counted; int32[].
    """

    reference: base.Params
    shortfall: jax.Array


@dataclasses.dataclass(frozen=True)
class _FirstToo:
    """A schedule that also fires on the very first call."""

    schedule: base.Schedule

    def __call__(self, t: jax.Array) -> jax.Array:
        return jnp.asarray(self.schedule(t)) | (jnp.asarray(t) == 1)


@base.Card(
    prunes="smallest |w|, and negative weights that changed least", grows="at random"
)
def neurrev(
    update_ratio: float | base.Ratio = 0.1,
    schedule: base.Schedule | None = None,
    *,
    prune_ratio: float | base.Ratio | None = None,
    ratio_of: Literal["nonzero", "total"] = "nonzero",
    eligible: Literal["survivors", "active"] = "survivors",
    too_few: Literal["fewer", "magnitude", "drift"] = "fewer",
    scope: Literal["layer", "global"] = "layer",
    first_update: Literal["skip", "include"] = "skip",
    order_by: Literal["change", "magnitude"] = "change",
    decay_factor: float = 1.0,
    slots: Literal["zero", "keep"] = "zero",
    init_mask: Literal["random", "magnitude"] = "random",
) -> base.Method:
    """Neuron revitalization (NeurRev; Li et al., 2024, Algorithms 1 and 2).

    A topology update prunes k weights of each leaf by magnitude, grows k + a at
    random, and awakes: of the negative weights it prunes the a that changed least
    since the last topology update. Nothing in it reads activations, so the network
    may use any. Where the paper leaves a choice open, it is an argument here.

    Args:
      update_ratio: a as a fraction in [0, 1], or a ratio over time (Table A.1:
        0.03 to 0.15).
      schedule: when; `periodic(1000)` by default.
      prune_ratio: k as a fraction in [0, 1]; None takes `update_ratio`; 0 awakes
        only.
      ratio_of: both are fractions of the active weights of the leaf (`"nonzero"`)
        or of all its entries (`"total"`).
      eligible: candidates of the awake step were active before and survived the
        magnitude prune (`"survivors"`), or are active after growth, those dropped
        and regrown included (`"active"`).
      too_few: with fewer than a eligible negative weights, awake only those there
        are and grow accordingly less (`"fewer"`), prune the rest by magnitude
        (`"magnitude"`), or let the density rise (`"drift"`).
      scope: awake per leaf, or the least changed over all leaves (`"global"`; keeps
        the total number of active weights, not the number per leaf, but for the
        largest weight of each leaf: an empty one could not grow again).
      first_update: `"include"` also updates at the end of the first call, as
        Algorithm 1 does at step 0 if read literally.
      order_by: awake by least change, or by largest magnitude (`"magnitude"`).
      decay_factor: what weight decay alone leaves of a weight over one update
        interval, in (0, 1]; the reference is multiplied by it before weights are
        compared with it. 1 takes the change as it is.
      slots: `"keep"` leaves the inner optimizer's slots of pruned entries to decay
        (MEST) instead of zeroing them.
      init_mask: how the first mask is drawn, `"random"` or `"magnitude"`.

    Returns:
      A `Method`; its state is a `NeurRevState`.

    Raises:
      ValueError: for a ratio outside [0, 1], an unknown option, or (from the
        transformation's `init`) ratios that cannot be met.

    >>> neurrev(0.1, schedules.periodic(every=3905, until=93750)).name
    'neurrev'
    """
    chosen = {
        "ratio_of": ratio_of,
        "eligible": eligible,
        "too_few": too_few,
        "scope": scope,
        "first_update": first_update,
        "order_by": order_by,
        "slots": slots,
    }
    for name, value in chosen.items():
        if value not in _OPTIONS[name]:
            options = " or ".join(map(repr, _OPTIONS[name]))
            raise ValueError(f"{name}={value!r} is unknown; choose {options}.")
    if not 0 < decay_factor <= 1:
        raise ValueError(
            f"decay_factor={decay_factor!r} must lie in (0, 1]; 1 switches the "
            "correction off."
        )
    if scope == "global" and too_few != "fewer":
        raise ValueError(
            f"scope='global' cannot be combined with too_few={too_few!r}: over all "
            "leaves the awake step takes what there is; use too_few='fewer'."
        )
    draw = static.draw_by(init_mask)
    awake_ratio = ratios.as_ratio("update_ratio", update_ratio)
    if prune_ratio is None:
        magnitude_ratio = awake_ratio
    else:
        magnitude_ratio = ratios.as_ratio("prune_ratio", prune_ratio)
    schedule = schedule or schedules.periodic(1000)

    def start(targets: base.Targets) -> base.Targets:
        _require_feasible(targets, awake_ratio, magnitude_ratio, ratio_of)
        return draw(targets)

    def init(context: base.Context) -> NeurRevState:
        return NeurRevState(_masked(context.params, context.masks), jnp.int32(0))

    def rewire(context: base.Context) -> base.Rewired:
        keys = jax.random.split(context.key, 4)
        weights = rows.stack(context.params, context.masks)
        old = rows.stack(context.masks, context.masks)
        sizes = jnp.array(old.layout.sizes, jnp.int32)
        active = topology.count_active(old)
        whole = active if ratio_of == "nonzero" else sizes

        k = ratios.fraction_of(magnitude_ratio(context.t), whole)
        wanted = ratios.fraction_of(awake_ratio(context.t), whole)
        k, wanted = jnp.minimum(k, active), jnp.minimum(wanted, active)
        size = jax.tree.map(jnp.abs, weights)
        pruned, survivors = topology.prune(weights, old, k, size, keys[0])
        open_ = survivors
        movable = exchange.may_change(context)
        if scope == "global":
            open_ = _but_largest(size, survivors, movable, keys[3])
        negative = topology.count_active(topology.awake_candidates(weights, open_))
        # Growth cannot exceed what the leaf has room for.
        room = jnp.minimum(wanted, sizes - active)
        awoken = jnp.minimum(room, negative)
        if scope == "global":
            # In frozen leaves nothing can be awoken or grown in exchange.
            room = jnp.where(movable, room, 0)
            total = jnp.minimum(jnp.sum(room), jnp.sum(negative))
            awoken = selection.apportion(total, room, room)
        added = {
            "fewer": awoken,
            "magnitude": jnp.minimum(room, active - k),
            "drift": room,
        }[too_few]
        _, grown = topology.grow(pruned, survivors, k + added, None, keys[1])

        # The awake step sees the weights as they were before pruning: one dropped
        # and regrown was never away.
        before = rows.stack(context.method_state.reference, context.masks)
        reference = weights
        if order_by == "change":
            reference = jax.tree.map(
                lambda r: r * jnp.array(decay_factor, r.dtype), before
            )
        candidates = survivors if eligible == "survivors" else grown
        search = topology.awake
        if scope == "global":
            search = _awake_globally
            closed = (survivors.rows & ~open_.rows) | ~old.layout.spread(movable)[
                :, None
            ]
            candidates = rows.Stack(candidates.rows & ~closed, candidates.layout)
        _, masks = search(weights, grown, reference, awoken, keys[2], candidates)
        if too_few == "magnitude":
            size = jax.tree.map(
                lambda s, m, c: jnp.where(m & c, s, jnp.inf), size, masks, candidates
            )
            _, masks = topology.prune(weights, masks, added - awoken, size, keys[3])

        # Newly grown weights are zero here too: they were zero while inactive.
        reference = jax.tree.map(
            lambda w, m: jnp.where(m, w, jnp.zeros_like(w)), weights, masks
        )
        reference = rows.choose(movable, reference, before)
        state = NeurRevState(
            rows.unstack(reference, context.method_state.reference, context.masks),
            jnp.sum(jnp.where(movable, wanted - awoken, 0)),
        )
        new = rows.unstack(masks, context.masks, context.masks)
        return base.Rewired(new, state)

    return base.Method(
        name="neurrev",
        schedule=_FirstToo(schedule) if first_update == "include" else schedule,
        rewire=rewire,
        start=start,
        init=init,
        slots=slots,
    )


def _masked(params: base.Params, masks: base.Masks) -> base.Params:
    """Parameters under their masks; nothing is kept of dense leaves."""
    return masks_lib.tree_map(
        lambda p, m: (
            jnp.where(m, p, jnp.zeros_like(p))
            if jnp.ndim(m)
            else jnp.zeros((), p.dtype)
        ),
        params,
        masks,
    )


def _but_largest(
    size: rows.Stack, masks: rows.Stack, movable: jax.Array, key: jax.Array
) -> rows.Stack:
    """The active entries of movable leaves but for the largest of each."""
    others = jnp.maximum(topology.count_active(masks) - 1, 0)
    _, largest = topology.prune(size, masks, others, size, key)
    open_ = masks.rows & ~largest.rows & masks.layout.spread(movable)[:, None]
    return rows.Stack(open_, masks.layout)


def _awake_globally(
    weights: rows.Stack,
    masks: rows.Stack,
    reference: rows.Stack,
    counts: jax.Array,
    key: jax.Array,
    eligible: rows.Stack,
) -> tuple[rows.Stack, rows.Stack]:
    """As `awake`, but the least changed over all leaves together."""
    joined = (stack.join() for stack in (weights, masks, reference, eligible))
    all_weights, all_masks, reference, eligible = joined
    total = jnp.sum(counts)
    _, new = topology.awake(all_weights, all_masks, reference, total, key, eligible)
    return weights, new.split()


def _require_feasible(
    targets: base.Targets, awake: Any, magnitude: Any, ratio_of: str
) -> None:
    """Raises where the ratios ask for more weights than a leaf can have.

    Two that change over time, each in its own way, may never be high at once.
    """
    a, q = ratios.highest(awake), ratios.highest(magnitude)
    apart = awake is not magnitude and not (
        ratios.is_constant(awake) or ratios.is_constant(magnitude)
    )
    if a is None or q is None or apart:
        return
    if ratio_of == "nonzero":
        if a + q > 1:
            raise ValueError(
                f"update_ratio={a} and prune_ratio={q} cannot both be met: together "
                "they take more than all active weights; make their sum at most 1."
            )
        return
    for path, size in targets.sizes.items():
        active = targets.counts[path]
        if isinstance(active, Tracer):
            continue
        active = int(active)
        awoken, pruned = int(a * size), int(q * size)
        # About half of the weights are negative, and newly grown ones are not.
        if min(awoken, size - active) > (active - pruned) / 2:
            raise ValueError(
                f"update_ratio={a} of the total cannot be met in {path}: pruning "
                f"{pruned} of its {active} active weights leaves about "
                f"{max(active - pruned, 0) // 2} negative ones and {awoken} are to "
                "be awoken; lower the ratios, or use ratio_of='nonzero'."
            )
