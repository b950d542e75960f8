"""How much: numbers between 0 and 1 that may change over training."""

import bisect
import dataclasses
import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from neurrev_jax._src import base


@dataclasses.dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        del t
        return jnp.float32(self.value)


def constant(value: float) -> base.Ratio:
    """The same ratio at every call.

    Args:
      value: in [0, 1].

    Returns:
      A function of the call number t.

    Raises:
      ValueError: if `value` lies outside [0, 1].

    >>> float(constant(0.25)(1000))
    0.25
    """
    return _Constant(_in_unit_interval("value", value))


@dataclasses.dataclass(frozen=True)
class _Cosine:
    value: float
    until: int
    final: float

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        progress = jnp.minimum(jnp.asarray(t, jnp.float32) / self.until, 1.0)
        fall = (1 + jnp.cos(jnp.float32(math.pi) * progress)) / 2
        return self.final + (self.value - self.final) * fall


def cosine(value: float, until: int, final: float = 0.0) -> base.Ratio:
    """From `value` to `final` along half a cosine.

    f(t) = final + (value - final)/2 (1 + cos(pi t/until)), then constant: with
    final 0 the schedule of RigL's update ratio (Evci et al., 2020, section 3).

    Args:
      value: ratio at t = 0, in [0, 1].
      until: call number at which `final` is reached, at least 1.
      final: where it ends, in [0, value].

    Returns:
      A function of the call number t.

    Raises:
      ValueError: if an argument lies outside its range.

    >>> [round(float(cosine(0.3, 100)(t)), 3) for t in (0, 50, 100, 200)]
    [0.3, 0.15, 0.0, 0.0]
    """
    _in_unit_interval("value", value)
    if not 0 <= final <= value:
        raise ValueError(
            f"final={final!r} must lie between 0 and value={value!r}; "
            "choose a smaller final ratio."
        )
    return _Cosine(value, _positive("until", until), final)


@dataclasses.dataclass(frozen=True)
class _Cubic:
    initial: float
    final: float
    begin: int
    until: int

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        elapsed = jnp.asarray(t, jnp.float32) - self.begin
        progress = jnp.clip(elapsed / (self.until - self.begin), 0.0, 1.0)
        return self.final + (self.initial - self.final) * (1 - progress) ** 3


def cubic(initial: float, final: float, begin: int, until: int) -> base.Ratio:
    """From `initial` to `final`, fast at first: the sparsity of gradual pruning.

    s(t) = final + (initial - final) (1 - (t - begin)/(until - begin))^3, constant
    before and after.

    Args:
      initial: ratio up to call `begin`, in [0, 1].
      final: ratio from call `until`, in [0, 1].
      begin: call number at which it starts to change.
      until: call number at which it arrives, greater than `begin`.

    Returns:
      A function of the call number t.

    Raises:
      ValueError: if an argument lies outside its range.

    >>> [round(float(cubic(0.5, 0.9, 0, 100)(t)), 3) for t in (0, 50, 100)]
    [0.5, 0.85, 0.9]
    """
    if not begin < until:
        raise ValueError(
            f"until={until!r} must be greater than begin={begin!r}; "
            "give the change at least one step."
        )
    return _Cubic(
        _in_unit_interval("initial", initial),
        _in_unit_interval("final", final),
        begin,
        until,
    )


@dataclasses.dataclass(frozen=True)
class _Piecewise:
    values: tuple[float, ...]
    boundaries: tuple[int, ...]

    def __call__(self, t: jax.typing.ArrayLike) -> jax.Array:
        boundaries = jnp.array(self.boundaries, jnp.int32)
        index = jnp.sum(jnp.asarray(t, jnp.int32) >= boundaries)
        return jnp.array(self.values, jnp.float32)[index]


def piecewise(values: Sequence[float], boundaries: Sequence[int]) -> base.Ratio:
    """Constant pieces: `values[i]` from call `boundaries[i - 1]` on.

    Args:
      values: ratios in [0, 1], one more than `boundaries`.
      boundaries: increasing call numbers.

    Returns:
      A function of the call number t.

    Raises:
      ValueError: if the lengths do not fit, the boundaries do not increase or a
        value lies outside [0, 1].

    >>> ratio = piecewise([0.02, 0.01, 0.0], [90, 120])
    >>> [round(float(ratio(t)), 2) for t in (89, 90, 120)]
    [0.02, 0.01, 0.0]
    """
    values, boundaries = tuple(values), tuple(boundaries)
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"{len(values)} values and {len(boundaries)} boundaries do not fit: "
            "give exactly one value more than boundaries."
        )
    if any(
        bisect.bisect_right(boundaries, b) != i + 1 for i, b in enumerate(boundaries)
    ):
        raise ValueError(f"boundaries={boundaries!r} must increase; sort them.")
    for value in values:
        _in_unit_interval("values", value)
    return _Piecewise(values, boundaries)


def as_ratio(name: str, value: float | base.Ratio) -> base.Ratio:
    """A ratio from a number in [0, 1] or from what is a function of t already."""
    if callable(value):
        return value
    return _Constant(_in_unit_interval(name, value))


def highest(ratio: base.Ratio) -> float | None:
    """The highest value a ratio of this module takes; None for any other function."""
    match ratio:
        case _Constant(value) | _Cosine(value):
            return value
        case _Cubic(initial, final):
            return max(initial, final)
        case _Piecewise(values):
            return max(values)
    return None


def is_constant(ratio: base.Ratio) -> bool:
    """Whether it is what `constant` returns."""
    return isinstance(ratio, _Constant)


def fraction_of(ratio: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    """K = floor(float32(ratio) * count), an int32 between 0 and `count`."""
    product = jnp.asarray(ratio, jnp.float32) * count.astype(jnp.float32)
    return jnp.clip(jnp.floor(product).astype(jnp.int32), 0, count)


def _in_unit_interval(name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(
            f"{name}={value!r} must be a number in [0, 1]; "
            "a ratio is a fraction, not a percentage."
        )
    return float(value)


def _positive(name: str, value: int) -> int:
    if not value >= 1:
        raise ValueError(f"{name}={value!r} must be at least 1 step.")
    return value
