"""NeurRev: prune by magnitude, grow at random, awake dormant neurons."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src import ratios
from neurrev_jax._src import schedules
from neurrev_jax._src import selection
from neurrev_jax._src import topology
from neurrev_jax._src.methods import static

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
        awoke, for want of negative ones, int32[].
    """

    reference: base.Params
    shortfall: jax.Array


@dataclasses.dataclass(frozen=True)
class _FirstToo:
    """A schedule that also fires on the very first call."""

    schedule: base.Schedule

    def __call__(self, t: jax.Array) -> jax.Array:
        return jnp.asarray(self.schedule(t)) | (jnp.asarray(t) == 1)


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
    """Neuron revitalization (NeurRev, section 2.2, Algorithms 1 and 2).

    A topology update prunes k weights of each leaf by magnitude, grows k + a at
    random, and awakes: of the negative weights it prunes the a that changed least
    since the last topology update. Nothing in it reads activations, so the network
    may use any. Where the paper leaves a choice open (methods.md section 3.2), it
    is an argument here.

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
        the total number of active weights, not the number per leaf).
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

    >>> neurrev(0.1, periodic(every=3905, until=93750)).name
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
    awake_ratio = ratios.as_ratio("update_ratio", update_ratio)
    if prune_ratio is None:
        magnitude_ratio = awake_ratio
    else:
        magnitude_ratio = ratios.as_ratio("prune_ratio", prune_ratio)
    schedule = schedule or schedules.periodic(1000)

    def start(targets: base.Targets) -> base.Targets:
        _require_feasible(targets, awake_ratio, magnitude_ratio, ratio_of)
        return static.draw_by(init_mask)(targets)

    def init(context: base.Context) -> NeurRevState:
        return NeurRevState(_masked(context.params, context.masks), jnp.int32(0))

    def rewire(context: base.Context) -> base.Rewired:
        params, old = context.params, context.masks
        key_prune, key_grow, key_awake, key_fill = jax.random.split(context.key, 4)
        active = topology.count_active(old)
        sizes = jax.tree.map(lambda m: jnp.int32(m.size if m.ndim else 0), old)
        base_count = active if ratio_of == "nonzero" else sizes

        def counts(ratio):
            r = ratio(context.t)
            return jax.tree.map(
                lambda n, limit: jnp.minimum(ratios.fraction_of(r, n), limit),
                base_count,
                active,
            )

        k, wanted = counts(magnitude_ratio), counts(awake_ratio)
        magnitude = jax.tree.map(jnp.abs, params)
        pruned, survivors = topology.prune(params, old, k, magnitude, key_prune)
        negative = topology.count_active(topology.awake_candidates(params, survivors))
        # Growth cannot exceed what the leaf has room for.
        room = jax.tree.map(
            lambda a, size, n: jnp.minimum(a, size - n), wanted, sizes, active
        )
        awoken = jax.tree.map(jnp.minimum, room, negative)
        if scope == "global":
            awoken = _share_out(room, negative)
        if too_few == "magnitude":
            left = jax.tree.map(jnp.subtract, active, k)
            added = jax.tree.map(jnp.minimum, room, left)
        else:
            added = room if too_few == "drift" else awoken
        grow_by = jax.tree.map(jnp.add, k, added)
        _, grown = topology.grow(pruned, survivors, grow_by, None, key_grow)

        # A weight dropped and regrown was never away: the awake step sees its value.
        if order_by == "magnitude":
            reference = params
        else:
            reference = jax.tree.map(
                lambda r, p: jnp.broadcast_to(r * jnp.array(decay_factor, r.dtype), p.shape),
                context.method_state.reference,
                params,
            )
        candidates = survivors if eligible == "survivors" else grown
        if scope == "global":
            masks = _awake_globally(
                params, grown, reference, awoken, key_awake, candidates
            )
        else:
            _, masks = topology.awake(
                params, grown, reference, awoken, key_awake, candidates
            )
        if too_few == "magnitude":
            missing = jax.tree.map(jnp.subtract, added, awoken)
            protected = jax.tree.map(
                lambda p, m, s: jnp.where(m & s, p, jnp.inf) if m.ndim else p,
                magnitude,
                masks,
                survivors,
            )
            _, masks = topology.prune(params, masks, missing, protected, key_fill)
        kept = jax.tree.map(lambda a, b: a & b, old, masks)
        shortfall = sum(
            jnp.sum(a - b)
            for a, b in zip(
                jax.tree.leaves(wanted), jax.tree.leaves(awoken), strict=True
            )
        )
        state = NeurRevState(_masked(params, kept), jnp.int32(shortfall))
        return base.Rewired(masks, state)

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
            jnp.where(m, p, jnp.zeros_like(p)) if jnp.ndim(m) else jnp.zeros((), p.dtype)
        ),
        params,
        masks,
    )


def _share_out(room: base.Tree, negative: base.Tree) -> base.Tree:
    """The global awake count min(sum room, sum negative), as growth per leaf."""
    leaves, structure = jax.tree.flatten(room)
    wanted = jnp.stack(leaves)
    total = jnp.minimum(jnp.sum(wanted), sum(jax.tree.leaves(negative)))
    shares = selection.apportion(total, wanted, wanted)
    return structure.unflatten([shares[i] for i in range(len(leaves))])


def _awake_globally(
    params: base.Params,
    masks: base.Masks,
    reference: base.Params,
    counts: base.Tree,
    key: jax.Array,
    eligible: base.Masks,
) -> base.Masks:
    """As `awake`, but the least changed over all leaves together."""
    candidates = topology.awake_candidates(params, masks, eligible)
    leaves, structure = jax.tree.flatten(masks)
    sparse = [i for i, mask in enumerate(leaves) if mask.ndim]
    if not sparse:
        return masks
    p, r, c = (
        [structure.flatten_up_to(tree)[i] for i in sparse]
        for tree in (params, reference, candidates)
    )
    change = [jnp.abs(a - b) for a, b in zip(p, r, strict=True)]
    size = [-jnp.abs(a) for a in p]
    total = sum(jax.tree.leaves(counts))
    chosen = selection.select_among([change, size], c, total, key)
    for i, taken in zip(sparse, chosen, strict=True):
        leaves[i] = leaves[i] & ~taken
    return structure.unflatten(leaves)


def _require_feasible(
    targets: base.Targets, awake: Any, magnitude: Any, ratio_of: str
) -> None:
    """Raises where constant ratios ask for more weights than a leaf can have."""
    a, q = getattr(awake, "value", None), getattr(magnitude, "value", None)
    if a is None or q is None:
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
        awoken, pruned = int(a * size), int(q * size)
        # About half of the weights are negative, and newly grown ones are not.
        if min(awoken, size - active) > (active - pruned) / 2:
            raise ValueError(
                f"update_ratio={a} of the total cannot be met in {path}: pruning "
                f"{pruned} of its {active} active weights leaves about "
                f"{max(active - pruned, 0) // 2} negative ones and {awoken} are to "
                "be awoken; lower the ratios, or use ratio_of='nonzero'."
            )
