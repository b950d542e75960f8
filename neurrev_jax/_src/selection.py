"""Exactly k of these entries, by score, ties at random, k being data.

Nothing here sorts. The k-th lowest score is found digit by digit on the bit
pattern of the number, two bits a pass, by counting how many entries lie below
each of three trial thresholds; a pass reads the scores once and moves nothing.
Entries that tie with the threshold are settled by a second such search over a
random permutation of their positions, so a selection is exact and fair whatever
the scores. Random growth is that second search alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neurrev_jax._src import rows as rows_lib

_DIGIT_BITS = 2


@functools.partial(jax.jit, inline=True)
def select(
    scores: jax.Array, candidates: jax.Array, k: jax.typing.ArrayLike, key: jax.Array
) -> jax.Array:
    """Selects exactly k of the candidates, those with the lowest scores.

    Entries with equal scores are told apart at random by the key. NaN counts as
    higher than every number, and -0 equals +0.

    Args:
      scores: real numbers of any shape.
      candidates: bool, the shape of `scores`; only these may be selected.
      k: int32 scalar, may be traced. Below 0 counts as 0; more than there are
        candidates selects them all.
      key: a PRNG key (typed or raw).

    Returns:
      bool, the shape of `scores`, with min(k, number of candidates) True entries.

    Raises:
      ValueError: if the shapes of `scores` and `candidates` differ.

    >>> import jax, jax.numpy as jnp
    >>> scores = jnp.array([0.3, 0.1, 0.2, 0.0])
    >>> candidates = jnp.array([True, True, True, False])
    >>> select(scores, candidates, 2, jax.random.key(0))
    Array([False,  True,  True, False], dtype=bool)
    """
    scores, candidates = jnp.asarray(scores), jnp.asarray(candidates)
    if scores.shape != candidates.shape:
        raise ValueError(
            f"scores of shape {scores.shape} and candidates of shape "
            f"{candidates.shape} must have the same shape; broadcast one of them."
        )
    (chosen,) = select_each([[scores]], [candidates], [k], key)
    return chosen


@functools.partial(jax.jit, inline=True)
def select_global(
    scores: Any, candidates: Any, k: jax.typing.ArrayLike, key: jax.Array, floor=0
) -> Any:
    """Selects exactly k of the candidates over all leaves of a tree at once.

    Args:
      scores: tree of real arrays.
      candidates: tree of bool arrays of the same structure and shapes.
      k: int32 scalar, may be traced; capped at what `floor` leaves selectable.
      key: a PRNG key.
      floor: how many candidates of each leaf must stay unselected, an int for
        every leaf or a tree of ints. A leaf with fewer candidates keeps them all.

    Returns:
      Tree of bool arrays: the k candidates with the lowest scores among those
      that the floors leave free.

    Raises:
      ValueError: if the shapes of a leaf of `scores` and `candidates` differ.

    >>> import jax, jax.numpy as jnp
    >>> scores = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
    >>> every = jax.tree.map(lambda s: s == s, scores)
    >>> select_global(scores, every, 2, jax.random.key(0), floor=1)
    {'a': Array([ True, False], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    leaves, structure = jax.tree.flatten(scores)
    allowed = structure.flatten_up_to(candidates)
    for score, candidate in zip(leaves, allowed, strict=True):
        if jnp.shape(score) != jnp.shape(candidate):
            raise ValueError(
                f"scores of shape {jnp.shape(score)} and candidates of shape "
                f"{jnp.shape(candidate)} must have the same shape in every leaf."
            )
    if not leaves:
        return scores
    same_for_all = jax.tree_util.all_leaves([floor])
    floors = [floor] * len(leaves) if same_for_all else structure.flatten_up_to(floor)
    key_floor, key_global = jax.random.split(as_key(key))
    limits = [
        jnp.maximum(jnp.sum(free, dtype=jnp.int32) - kept, 0)
        for free, kept in zip(allowed, floors, strict=True)
    ]
    allowed = jax.lax.cond(
        jnp.any(stack_counts(floors) > 0),
        lambda: select_each([leaves], allowed, limits, key_floor),
        lambda: allowed,
    )
    return structure.unflatten(select_among([leaves], allowed, k, key_global))


def select_among(
    scores: Sequence[Sequence[jax.Array]],
    candidates: Sequence[jax.Array],
    count: jax.typing.ArrayLike,
    key: jax.Array,
) -> list[jax.Array]:
    """As `select_each`, but `count` entries over all leaves together."""
    layout = rows_lib.Rows(tuple(tuple(jnp.shape(leaf)) for leaf in candidates))
    levels = [functools.partial(layout.pack, level, 0) for level in scores]
    allowed = layout.pack(list(candidates), False)
    chosen = select_rows(levels, allowed, stack_counts([count]), key, layout.join())
    return layout.unpack(chosen)


@functools.partial(jax.jit, inline=True)
def select_each(
    scores: Sequence[Sequence[jax.Array]] | None,
    candidates: Sequence[jax.Array],
    counts: Sequence[jax.typing.ArrayLike] | jax.Array,
    key: jax.Array,
) -> list[jax.Array]:
    """Selects `counts[l]` of the candidates in each of L leaves, in one go.

    Args:
      scores: levels of scores, each a list of L arrays: the first level decides,
        the next one among entries that tie in those before; None for a uniformly
        random choice.
      candidates: L bool arrays.
      counts: L int32 scalars (or int32[L]), may be traced.
      key: a PRNG key.

    Returns:
      L bool arrays.
    """
    layout = rows_lib.Rows(tuple(tuple(jnp.shape(leaf)) for leaf in candidates))
    levels = [functools.partial(layout.pack, level, 0) for level in scores or ()]
    allowed = layout.pack(list(candidates), False)
    chosen = select_rows(levels, allowed, stack_counts(counts), key, layout)
    return layout.unpack(chosen)


@functools.partial(jax.jit, inline=True)
def apportion(
    total: jax.typing.ArrayLike, weights: jax.Array, caps: jax.Array
) -> jax.Array:
    """Divides `total` in proportion to weights, in integers, within caps.

    Largest remainder: every share is rounded down, what is left goes to the
    largest fractions (equal ones: the earlier entry). Shares over their cap are
    cut to it and the rest is divided again among the others.

    Args:
      total: int32 scalar, may be traced; capped at the sum of `caps`.
      weights: float[L], not negative; those that are not finite count as zero. Where
        all weights still open are zero they count as equal.
      caps: int32[L], not negative.

    Returns:
      int32[L] that sums to min(total, sum(caps)).

    >>> import jax.numpy as jnp
    >>> apportion(8, jnp.array([30.0, 10.0]), jnp.array([100, 100]))
    Array([6, 2], dtype=int32)
    >>> apportion(8, jnp.array([30.0, 10.0]), jnp.array([4, 100]))
    Array([4, 4], dtype=int32)
    """
    weights = jnp.asarray(weights, jnp.float32)
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
    total = jnp.asarray(total, jnp.int32)
    caps = jnp.minimum(jnp.asarray(caps, jnp.int32), total)
    # Caps may each be as large as the total, and their sum beyond an int32: then it is
    # beyond the total too. In halves of 16 bits nothing overflows.
    carried = jnp.sum(caps & 0xFFFF) >> 16
    is_ample = jnp.sum(caps >> 16) + carried >= 2**15
    total = jnp.where(is_ample, total, jnp.minimum(total, jnp.sum(caps)))
    order = jnp.arange(weights.size, dtype=jnp.int32)

    def divide(shares):
        left = total - jnp.sum(shares)
        open_ = shares < caps
        share = jnp.where(open_, weights, 0.0)
        share = jnp.where(jnp.sum(share) > 0, share, open_.astype(jnp.float32))
        ideal = share / jnp.maximum(jnp.sum(share), jnp.float32(1e-38))
        ideal = ideal * left.astype(jnp.float32)
        base = jnp.floor(ideal).astype(jnp.int32)
        # Rounding may put the floors one over in sum; take it off the last ones.
        over = jnp.maximum(jnp.cumsum(base) - left, 0)
        base = jnp.maximum(base - over, 0)
        fraction = jnp.where(open_, ideal - base.astype(jnp.float32), -1.0)
        ahead = (fraction[None, :] > fraction[:, None]) | (
            (fraction[None, :] == fraction[:, None]) & (order[None, :] < order[:, None])
        )
        rank = jnp.sum(ahead, axis=1, dtype=jnp.int32)
        extra = (rank < left - jnp.sum(base)) & open_
        return jnp.minimum(shares + base + extra.astype(jnp.int32), caps)

    return jax.lax.while_loop(
        lambda shares: jnp.sum(shares) < total, divide, jnp.zeros_like(caps)
    )


def as_key(key: Any) -> jax.Array:
    """A typed threefry key from an int, a typed key or raw key data.

    Args:
      key: an int, a typed key of any implementation, or raw data uint32[2].

    Returns:
      A typed key whose data is uint32[2].

    Raises:
      ValueError: for raw data of another shape.
    """
    if isinstance(key, (int, np.integer)):
        return jax.random.key(int(key), impl="threefry2x32")
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if jax.random.key_data(key).shape[-1] == 2:
            return key
        # Another implementation: two words drawn with it seed threefry.
        key = jax.random.bits(key, (2,), jnp.uint32)
    elif key.shape == () and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key, impl="threefry2x32")
    if key.shape != (2,):
        raise ValueError(
            f"key: raw key data of shape {key.shape} is no threefry key, which has "
            "shape (2,); pass an int or a typed key (jax.random.key)."
        )
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def stack_counts(counts: Sequence[jax.typing.ArrayLike] | jax.Array) -> jax.Array:
    """int32[L] from L scalars, or from that already."""
    if isinstance(counts, jax.Array) and counts.ndim == 1:
        return counts.astype(jnp.int32)
    return jnp.stack([jnp.asarray(count, jnp.int32) for count in counts])


def _ordered(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the order of `scores`; NaN last, -0 equal to +0."""
    if scores.dtype == jnp.bool_ or jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return _at_least_32_bits(scores, jnp.uint32)
    if jnp.issubdtype(scores.dtype, jnp.signedinteger):
        scores = _at_least_32_bits(scores, jnp.int32)
        bits = 8 * scores.dtype.itemsize
        unsigned = jax.lax.bitcast_convert_type(scores, f"uint{bits}")
        return unsigned ^ jnp.array(1 << (bits - 1), f"uint{bits}")
    # Narrower floats are exact in 32 bits, and one width keeps leaves together.
    scores = _at_least_32_bits(scores, jnp.float32)
    bits = 8 * scores.dtype.itemsize
    sign = jnp.array(1 << (bits - 1), f"uint{bits}")
    scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)
    pattern = jax.lax.bitcast_convert_type(scores, f"uint{bits}")
    ordered = jnp.where((pattern & sign) != 0, ~pattern, pattern | sign)
    return jnp.where(jnp.isnan(scores), jnp.array(2**bits - 1, ordered.dtype), ordered)


def select_rows(
    levels: Sequence[Callable[[], jax.Array]],
    candidates: jax.Array,
    counts: jax.Array,
    key: jax.Array,
    layout: rows_lib.Rows,
) -> jax.Array:
    """Selects `counts[l]` candidates of each leaf, in rows.

    Args:
      levels: functions that return scores [R, W]; the first level decides, the
        next one among entries that tie in those before, chance at the last.
      candidates: bool[R, W].
      counts: int32[L].
      key: a PRNG key.
      layout: which rows belong to which leaf.

    Returns:
      bool[R, W].
    """
    # Where all candidates are known while tracing, XLA would fold the counting into
    # a constant, entry by entry, for minutes. It cannot see through a barrier.
    candidates = jax.lax.optimization_barrier(candidates)
    available = layout.count(candidates, candidates)[:, 0]
    counts = jnp.clip(counts, 0, available)

    def settle(levels, candidates, counts):
        numbers = _ordered(levels[0]()) if levels else _permutation(key, candidates)
        # Nothing is lower than the highest number, so what is no candidate is
        # never counted below a threshold.
        highest = jnp.array(jnp.iinfo(numbers.dtype).max, numbers.dtype)
        numbers = jnp.where(candidates, numbers, highest)
        limit = layout.spread(_kth_lowest(numbers, counts, layout))[:, None]
        below = numbers < limit
        tied = candidates & (numbers == limit)
        if not levels:
            # No two positions share a number: the only tie is the k-th itself.
            return below | (tied & layout.spread(counts > 0)[:, None])
        found = layout.count(below, tied)
        needed = counts - found[:, 0]
        return jax.lax.cond(
            jnp.any((needed > 0) & (needed < found[:, 1])),
            lambda: below | settle(levels[1:], tied, needed),
            lambda: below | (tied & layout.spread(needed > 0)[:, None]),
        )

    return settle(tuple(levels), candidates, counts)


def _at_least_32_bits(x: jax.Array, dtype: Any) -> jax.Array:
    is_narrow = x.dtype == jnp.bool_ or x.dtype.itemsize < 4
    return x.astype(dtype) if is_narrow else x


def _kth_lowest(
    numbers: jax.Array, counts: jax.Array, layout: rows_lib.Rows
) -> jax.Array:
    """The `counts[l]`-th lowest number of each leaf, uint[L].

    The largest t such that fewer than `counts[l]` numbers lie below t: exactly
    the order statistic for counts from 1 up, and 0 for 0.
    """
    dtype = numbers.dtype
    bits = 8 * dtype.itemsize
    digits = jnp.arange(1, 2**_DIGIT_BITS, dtype=dtype)

    def next_digit(i, prefix):
        shift = (bits - _DIGIT_BITS * (i + 1)).astype(dtype)
        trial = layout.spread(prefix[:, None] + (digits << shift)[None, :])
        below = layout.count(*(numbers < trial[:, d, None] for d in range(digits.size)))
        digit = jnp.sum(below < counts[:, None], axis=1, dtype=jnp.int32)
        return prefix + (digit.astype(dtype) << shift)

    start = jnp.zeros((layout.number,), dtype)
    return jax.lax.fori_loop(0, bits // _DIGIT_BITS, next_digit, start)


def _permutation(key: jax.Array, like: jax.Array) -> jax.Array:
    """A random permutation of the positions of `like`, as uint32 of its shape.

    A few rounds of a keyed invertible mix of the position (the finalizer of
    MurmurHash3): no two positions meet, so no ties are left, and it costs a
    fraction of a threefry draw of the same size.
    """
    row = jax.lax.broadcasted_iota(jnp.uint32, like.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, like.shape, 1)
    x = row * jnp.uint32(like.shape[1]) + column
    words = jax.random.bits(as_key(key), (4,), jnp.uint32)
    words = jax.lax.optimization_barrier(words)
    for word in words:
        x = x ^ word
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        x = x ^ (x >> 16)
    return x
