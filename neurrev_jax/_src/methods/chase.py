"""Chase: global exploration under a soft bound, and channels removed for good."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import (
    base,
    channels,
    ratios,
    rows,
    schedules,
    selection,
    topology,
)
from neurrev_jax._src.methods import exchange, globally, rigl
from neurrev_jax._src.methods import ramp as ramp_lib


class ChaseState(NamedTuple):
    """What Chase remembers.

    Attributes:
      dense_next: whether the coming call scores growth by dense gradients, bool[].
      channels: which channels of each group are still there, bool[C] each.
    """

    dense_next: jax.Array
    channels: tuple[jax.Array, ...]

    def gradient_masks(self, masks: base.Masks) -> Any:
        """Every entry where the coming call needs dense gradients."""
        return rigl.GradientGrowthState(self.dense_next).gradient_masks(masks)


@base.Card(
    prunes="smallest |w|, and channels of the smallest mean |w|",
    grows="largest |gradient|",
    scope="global",
)
def chase(
    update_ratio: float | base.Ratio = 0.05,
    schedule: base.Schedule | None = None,
    *,
    ratio_of: Literal["total", "nonzero"] = "total",
    soft_until: int = 100_000,
    final_ratio: float | base.Ratio = 0.05,
    groups: Sequence[channels.ChannelGroup] = (),
    channel_sparsity: float = 0.0,
    channel_window: tuple[int, int] = (0, 80_000),
    channel_floor: float = 0.5,
) -> base.Method:
    """Channel-aware sparse training (Chase; Yin et al., 2023).

    A topology update removes channels, prunes the smallest |w| of all leaves together
    back to the budget (the sum of the counts the transformation asks for), and grows a
    further `update_ratio` where |gradient| is largest over all leaves: until the next
    one the network trains above its budget, which is a soft bound. After `soft_until`
    it prunes `final_ratio` below the budget and grows back to it.

    Channels are scored by their unmasked mean magnitude: the mean of |w| over all
    positions of the filter, zeros included. The lowest of all groups go, along a cubic
    from 0 to `channel_sparsity`, and never come back: the filter, the norm entries and
    the next layer's inputs are masked, so that the channel can be cut out when the
    network is exported. The weights that go with them grow elsewhere: the total does
    not change. Leaves of the groups that the distribution leaves dense (norm
    parameters, a depthwise kernel, the classifier), or `masks=` with a mask of shape
    `()`, get masks of their shape and lose nothing but removed channels; they do not
    count toward the budget.

    Args:
      update_ratio: how far above the budget the network trains, in [0, 1], or a ratio
        over time; the original decays it along a cosine.
      schedule: when; `periodic(1000)` by default.
      ratio_of: `update_ratio` is a fraction of all weights of the sparse leaves
        (`"total"`, as the published code counts, which grows to a given density) or of
        the budget (`"nonzero"`).
      soft_until: the last call whose topology update may exceed the budget (the
        original: 30 epochs of 160 before the end, 20 of 100).
      final_ratio: fraction of the budget that is pruned and grown after that, or a
        ratio over time; the published code uses `cosine(0.5, calls, 0.005)`, which is
        below 0.05 by then.
      groups: which leaves form channels, from `models.channel_groups(params)` or
        `channel_group`; needed where `channel_sparsity` is positive and without effect
        where it is 0.
      channel_sparsity: fraction of the channels of all groups to remove in the end, in
        [0, 1) (the original: 0, 0.3, 0.4, 0.5).
      channel_window: calls (begin, until) between which channels are removed (the
        original: up to epoch 130 of 160, or 80 of 100), if any are.
      channel_floor: each group keeps at least this fraction of its channels, in
        (0, 1] (the paper's beta: 0.2 for VGG, 0.5 for ResNet-50). The published code
        keeps beta (1 - channel_sparsity) of them, with a beta of 0.2 in its scripts,
        which leaves more to the scores: with a floor of 0.5 and half the channels to
        remove, every group loses half.

    Returns:
      A `Method`; its state is a `ChaseState`. The gradients passed to `update` must be
      dense on scheduled calls. Where there is no room for the total (the network being
      nearly dense), all there is grows.

    Raises:
      ValueError: for a ratio outside its range, an unknown option, missing groups, a
        `channel_sparsity` that the floors do not allow, a window or `soft_until` that
        the schedule does not reach; from the transformation's `init`, for groups or
        masks that do not fit the parameters.

    >>> chase(ratios.cosine(0.05, 125_000), soft_until=101_000).name
    'chase'
    """
    over = ratios.as_ratio("update_ratio", update_ratio)
    exchanged = ratios.as_ratio("final_ratio", final_ratio)
    schedule = schedule or schedules.periodic(1000)
    if ratio_of not in ("total", "nonzero"):
        raise ValueError(
            f"ratio_of={ratio_of!r} is unknown; choose 'total' or 'nonzero'."
        )
    ramp_lib.require_reached("(0, soft_until)", (0, soft_until + 1), schedule)
    if channel_sparsity:
        ramp_lib.require_reached("channel_window", channel_window, schedule)
    removing = _Removal(groups, channel_sparsity, channel_window, channel_floor)

    def start(targets: base.Targets) -> base.Targets:
        return channels.cover(targets, removing.groups)

    def init(context: base.Context) -> ChaseState:
        channels.check_groups(context.params, removing.groups)
        every = tuple(jnp.ones((g.width,), bool) for g in removing.groups)
        return ChaseState(_dense_next(context), every)

    def observe(context: base.Context) -> ChaseState:
        return context.method_state._replace(dense_next=_dense_next(context))

    def _dense_next(context: base.Context) -> jax.Array:
        return jnp.asarray(schedule(context.t + 1), bool)

    def rewire(context: base.Context) -> base.Rewired:
        key_channels, key_prune, key_grow = jax.random.split(context.key, 3)
        left = removing.remove(context, context.method_state.channels, key_channels)
        removed = channels.entries_of(
            [~there for there in left], removing.groups, context.masks
        )
        removed = rows.stack(removed, context.masks)
        weights = rows.stack(context.params, context.masks)
        masks = rows.stack(context.masks, context.masks)
        masks = jax.tree.map(lambda m, gone: m & ~gone, masks, removed)

        counted = exchange.per_leaf(context.counted, context.masks)
        movable = counted & exchange.may_change(context)
        budget = jnp.sum(exchange.per_leaf(context.targets, context.masks))
        sizes = jnp.where(counted, exchange.sizes(context.masks), 0)
        whole = jnp.sum(sizes) if ratio_of == "total" else budget
        soft = context.t <= soft_until
        above = jnp.where(soft, ratios.fraction_of(over(context.t), whole), 0)
        below = jnp.where(soft, 0, ratios.fraction_of(exchanged(context.t), budget))

        def active(masks):
            return jnp.sum(jnp.where(counted, topology.count_active(masks), 0))

        excess = jnp.maximum(active(masks) - (budget - below), 0)
        masks = globally.prune_smallest(weights, masks, excess, key_prune, movable)
        growth = jax.tree.map(jnp.abs, rows.stack(context.grads, context.masks))
        lack = jnp.maximum(budget + above - active(masks), 0)
        masks = globally.grow_largest(masks, lack, growth, key_grow, movable, removed)
        new = rows.unstack(masks, context.masks, context.masks)
        return base.Rewired(new, context.method_state._replace(channels=left))

    return base.Method(
        name="chase",
        schedule=schedule,
        rewire=rewire,
        cost=base.Cost(update=(2.0, 1.0)),
        start=start,
        init=init,
        observe=observe,
        dense_gradients=schedule,
    )


class _Removal:
    """Which channels go, and when."""

    def __init__(
        self,
        groups: Sequence[channels.ChannelGroup],
        sparsity: float,
        window: tuple[int, int],
        floor: float,
    ):
        if not 0 <= sparsity < 1:
            raise ValueError(
                f"channel_sparsity={sparsity!r} must lie in [0, 1): it is the fraction "
                "of channels that are removed, 0 removes none."
            )
        if not 0 < floor <= 1:
            raise ValueError(
                f"channel_floor={floor!r} must lie in (0, 1]: it is the fraction of "
                "its channels that every group keeps."
            )
        if sparsity and not groups:
            raise ValueError(
                f"channel_sparsity={sparsity!r} needs groups=, which say what forms a "
                "channel; pass models.channel_groups(params), or build them with "
                "channel_group."
            )
        self.groups = tuple(groups) if sparsity else ()
        self.kept = [math.ceil(floor * group.width) for group in self.groups]
        self.number = sum(group.width for group in self.groups)
        self.share = ratios.cubic(0.0, sparsity, *window) if sparsity else None
        if math.floor(sparsity * self.number) > self.number - sum(self.kept):
            raise ValueError(
                f"channel_sparsity={sparsity!r} cannot be met with channel_floor="
                f"{floor!r}: of {self.number} channels {sum(self.kept)} stay; lower "
                "one of them."
            )

    def remove(
        self, context: base.Context, left: tuple[jax.Array, ...], key: jax.Array
    ) -> tuple[jax.Array, ...]:
        """The channels that are left after this call, bool[C] for each group."""
        if self.share is None:
            return left
        wanted = ratios.fraction_of(self.share(context.t), jnp.int32(self.number))
        gone = self.number - sum(jnp.sum(there, dtype=jnp.int32) for there in left)
        thawed = channels.may_lose_channels(context, self.groups)
        lowest = selection.select_global(
            channels.mean_magnitudes(context.params, self.groups),
            [there & free for there, free in zip(left, thawed, strict=True)],
            wanted - gone,
            key,
            floor=self.kept,
        )
        return tuple(t & ~low for t, low in zip(left, lowest, strict=True))
