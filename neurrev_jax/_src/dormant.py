"""Dormant neurons: channels of a ReLU that no example switches on.

Feature maps are folded batch by batch into per-channel statistics, so memory is
O(C) per layer; which channels count as dormant is decided from those afterwards
(NeurRev, Figure 3).

Shape letters: B examples, C channels; the channel axis is the last one.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import paths as paths_lib

__all__ = [
    "ActivationStats",
    "DormantRates",
    "all_reduce_activations",
    "dormant",
    "dormant_rate",
    "init_activation_stats",
    "observe_activations",
]

Tree = Any
Criterion = Literal["zero", "apoz", "score"]

_THRESHOLDS = {"apoz": 0.99, "score": 0.025}


class ActivationStats(NamedTuple):
    """What is known of each channel's activations h; trees with a leaf per layer.

    Attributes:
      maximum: largest |h| seen, float32[C].
      magnitude: sum of |h|, float32[C].
      zeros: how many values were exactly 0, int32[C].
      count: values seen per channel (examples times positions), int32[]; at most
        2**31 - 1, which is 170,000 maps of 112x112.
    """

    maximum: Tree
    magnitude: Tree
    zeros: Tree
    count: Tree


class DormantRates(NamedTuple):
    """Fractions of dormant channels.

    Attributes:
      layers: by path of the layer, float32[] in [0, 1].
      overall: dormant channels of all layers over all channels, float32[].
    """

    layers: dict[str, jax.Array]
    overall: jax.Array


def init_activation_stats(activations: Tree) -> ActivationStats:
    """Statistics of no examples yet.

    Args:
      activations: tree of arrays (or of their shapes) [B, ..., C].

    Returns:
      Empty statistics for the layers of this tree.

    Raises:
      ValueError: if a leaf has no channel axis beside the examples.

    >>> import jax.numpy as jnp
    >>> init_activation_stats({"relu": jnp.ones((8, 4, 4, 3))}).zeros["relu"]
    Array([0, 0, 0], dtype=int32)
    """
    leaves, _ = paths_lib.flatten_with_paths(activations)
    for path, leaf in leaves:
        if len(leaf.shape) < 2:
            raise ValueError(
                f"{path}: an activation of shape {tuple(leaf.shape)} has no channels; "
                "pass arrays [B, ..., C]."
            )

    def zeros(dtype):
        return jax.tree.map(lambda h: jnp.zeros(h.shape[-1], dtype), activations)

    return ActivationStats(
        maximum=zeros(jnp.float32),
        magnitude=zeros(jnp.float32),
        zeros=zeros(jnp.int32),
        count=jax.tree.map(lambda h: jnp.zeros((), jnp.int32), activations),
    )


def observe_activations(
    stats: ActivationStats | None,
    activations: Tree,
    include: jax.Array | None = None,
) -> ActivationStats:
    """Folds one batch of post-activation feature maps into the statistics.

    Args:
      stats: what was seen before, or None at the start.
      activations: tree of arrays [B, ..., C], floating.
      include: bool[B], False for examples to leave out (the padding of a last
        batch); None takes all of them.

    Returns:
      The new statistics; pure, so it may be scanned.

    >>> import jax.numpy as jnp
    >>> maps = {"relu": jnp.array([[[[0.0, 2.0]]], [[[0.0, 0.0]]]])}
    >>> stats = observe_activations(None, maps)
    >>> stats.maximum["relu"].tolist(), stats.zeros["relu"].tolist()
    ([0.0, 2.0], [2, 1])
    """
    if stats is None:
        stats = init_activation_stats(activations)

    def seen(h):
        # Broadcast over everything but the examples.
        if include is None:
            return jnp.ones(h.shape, bool)
        shape = (h.shape[0],) + (1,) * (h.ndim - 1)
        return jnp.broadcast_to(jnp.reshape(include, shape), h.shape)

    def over_positions(reduce, values):
        return reduce(values, axis=tuple(range(values.ndim - 1)))

    def size(h):
        return jnp.where(seen(h), jnp.abs(h).astype(jnp.float32), 0.0)

    tree_map = jax.tree.map
    return ActivationStats(
        maximum=tree_map(
            lambda old, h: jnp.maximum(old, over_positions(jnp.max, size(h))),
            stats.maximum,
            activations,
        ),
        magnitude=tree_map(
            lambda old, h: old + over_positions(jnp.sum, size(h)),
            stats.magnitude,
            activations,
        ),
        zeros=tree_map(
            lambda old, h: (
                old + over_positions(jnp.sum, (seen(h) & (h == 0)).astype(jnp.int32))
            ),
            stats.zeros,
            activations,
        ),
        count=tree_map(
            lambda old, h: old + jnp.sum(seen(h)[..., 0].astype(jnp.int32)),
            stats.count,
            activations,
        ),
    )


def all_reduce_activations(stats: ActivationStats, axis_name: str) -> ActivationStats:
    """Statistics of all replicas together, each of which saw its own examples.

    Args:
      stats: statistics of this replica.
      axis_name: the mapped axis.

    Returns:
      The same on every replica.

    >>> import jax, jax.numpy as jnp
    >>> def total(h):
    ...     return all_reduce_activations(observe_activations(None, h), "batch")
    >>> jax.vmap(total, axis_name="batch")(jnp.ones((2, 4, 3))).count.tolist()
    [8, 8]
    """
    total = jax.lax.psum(stats, axis_name)
    return total._replace(maximum=jax.lax.pmax(stats.maximum, axis_name))


def dormant(
    stats: ActivationStats,
    criterion: Criterion = "zero",
    threshold: float | None = None,
) -> Tree:
    """Which channels are dormant.

    Args:
      stats: statistics of at least one example.
      criterion: `"zero"`: the output was 0 for all examples and positions, the
        definition; `"apoz"`: the fraction of zeros is at least `threshold` (0.99
        by default), for Figure 3's "all or most"; `"score"`: the mean of |h| is at
        most `threshold` (0.025 by default) times its mean over the layer's
        channels (Sokar et al., 2023).
      threshold: in [0, 1]; has no meaning for `"zero"`.

    Returns:
      Tree of bool[C], True = dormant. A channel that produced NaN is not.

    Raises:
      ValueError: for an unknown criterion or a threshold that does not fit it.

    >>> import jax.numpy as jnp
    >>> h = jnp.zeros((100, 3)).at[:, 1].set(5.0).at[0, 2].set(1.0)
    >>> stats = observe_activations(None, {"relu": h})
    >>> dormant(stats)["relu"].tolist()
    [True, False, False]
    >>> dormant(stats, "apoz")["relu"].tolist()
    [True, False, True]
    """
    if criterion not in ("zero", "apoz", "score"):
        raise ValueError(
            f"criterion={criterion!r} is unknown; choose 'zero', 'apoz' or 'score'."
        )
    if criterion == "zero":
        if threshold is not None:
            raise ValueError(
                f"threshold={threshold!r} has no meaning for criterion='zero'; leave "
                "it out, or choose 'apoz' or 'score'."
            )
        return jax.tree.map(lambda largest: largest == 0, stats.maximum)
    threshold = _THRESHOLDS[criterion] if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold!r} must lie in [0, 1]; it is a fraction of the "
            "values (apoz) or of the layer's mean (score)."
        )
    if criterion == "apoz":
        return jax.tree.map(
            lambda zeros, n: (
                zeros.astype(jnp.float32) >= threshold * n.astype(jnp.float32)
            ),
            stats.zeros,
            stats.count,
        )
    # Multiplied out, so that a layer which is silent altogether is dormant.
    return jax.tree.map(lambda h: h <= threshold * jnp.mean(h), stats.magnitude)


def dormant_rate(
    stats: ActivationStats,
    criterion: Criterion = "zero",
    threshold: float | None = None,
    *,
    where: Callable[[str], bool] | None = None,
) -> DormantRates:
    """The fraction of dormant channels, per layer and overall.

    Args:
      stats: statistics of at least one example.
      criterion: see `dormant`.
      threshold: see `dormant`.
      where: `where(path) -> bool`, which layers count; all by default.

    Returns:
      The rates; jit-able.

    Raises:
      ValueError: as `dormant` does, and if `where` leaves nothing.

    >>> import jax, jax.numpy as jnp
    >>> relu = jax.nn.relu(jnp.zeros((8, 2)) + jnp.array([[1.0, -1.0]]))
    >>> float(dormant_rate(observe_activations(None, {"relu": relu})).overall)
    0.5
    """
    leaves, _ = paths_lib.flatten_with_paths(dormant(stats, criterion, threshold))
    chosen = {path: leaf for path, leaf in leaves if where is None or where(path)}
    if not chosen:
        raise ValueError(
            "where= leaves no layer to measure; the layers are "
            f"{', '.join(path for path, _ in leaves)}."
        )
    number = {p: jnp.sum(leaf.astype(jnp.float32)) for p, leaf in chosen.items()}
    channels = sum(leaf.size for leaf in chosen.values())
    return DormantRates(
        layers={path: number[path] / chosen[path].size for path in chosen},
        overall=sum(number.values(), jnp.float32(0)) / channels,
    )
