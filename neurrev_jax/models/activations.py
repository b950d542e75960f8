"""Activation functions by name, as computed exactly and as computed by hardware.

NeurRev compares ReLU with other activation functions (Li et al., ICLR 2024, sections
2.3 and 3.3, Figure 6). Phone hardware computes the ones that need an exponential by a
piecewise-linear table; that is what the hardware versions here do, in training too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Activation = Callable[[jax.Array], jax.Array]
"""An elementwise function."""

_DEFAULT_SEGMENTS = 16

# GELU by the error function, which is its definition, not by a tanh.
_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)

_FUNCTIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "selu": nn.selu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "swish": nn.swish,
    "hard_swish": nn.hard_swish,
    "hard_sigmoid": nn.hard_sigmoid,
    "gelu": _exact_gelu,
}

ACTIVATION_NAMES = (
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "selu",
    "sigmoid",
    "tanh",
    "swish",
    "hard_swish",
    "hard_sigmoid",
    "gelu",
)
"""The names that `make_activation` and the networks know."""


def make_activation(
    name: str, hardware: bool = False, segments: int | None = None
) -> Activation:
    """The elementwise function of a name, or what phone hardware makes of it.

    `hardware` replaces elu, selu, sigmoid, tanh, swish and gelu by a table of
    equally wide linear segments: exact at the breakpoints (to float32 rounding),
    linear between them, the function's asymptote beyond them. Its derivative is the
    slope of the segment, at an inner breakpoint that of the segment to the right.
    The others are what hardware computes anyway and stay as they are.

    The largest error with 16 segments, where the table lies, and the largest step at
    the ends of it, where the asymptotes take over:

    =======  =====  =======  ======
    name     error  range    step
    =======  =====  =======  ======
    elu      0.025  [-8, 0]  0.0004
    selu     0.044  [-8, 0]  0.0006
    sigmoid  0.012  [-8, 8]  0.0004
    tanh     0.024  [-4, 4]  0.0007
    swish    0.055  [-8, 8]  0.0027
    gelu     0.024  [-4, 4]  0.0002
    =======  =====  =======  ======

    Twice as many segments have about a quarter of the error, down to the step.

    The slope of leaky_relu is 0.01, alpha of elu 1; gelu is x times the normal
    distribution function, hard_sigmoid(x) is relu6(x + 3) / 6.

    Args:
      name: one of `ACTIVATION_NAMES` but prelu, which has parameters: give that name
        to a network, or use `PReLU`.
      hardware: whether to approximate.
      segments: how many segments the table has, at least 1; 16 by default. Only for
        a function that is approximated.

    Returns:
      A function of an array of any shape, which keeps its floating dtype.

    Raises:
      ValueError: for an unknown name, for prelu, for `segments` out of range or
        where there is no table.

    Example:
      >>> import jax.numpy as jnp
      >>> from neurrev_jax.models import make_activation
      >>> x = jnp.array([-1.5, 0.0, 1.5, 9.0])
      >>> make_activation("sigmoid")(x).round(3).tolist()
      [0.18..., 0.5, 0.81..., 1.0]
      >>> make_activation("sigmoid", hardware=True)(x).round(3).tolist()
      [0.19..., 0.5, 0.80..., 1.0]
    """
    _check_name(name)
    if name == "prelu":
        raise ValueError(
            "name='prelu' has a learned slope and is no plain function; give "
            "activation='prelu' to a network or use models.PReLU in your own."
        )
    is_table = hardware and name in _TABLES
    if segments is not None and not is_table:
        raise ValueError(
            f"segments={segments} has no effect on {name!r} with hardware={hardware}: "
            f"only {', '.join(_TABLES)} become a table, with hardware=True; leave "
            "segments out."
        )
    if not is_table:
        return _FUNCTIONS[name]
    segments = _DEFAULT_SEGMENTS if segments is None else segments
    is_count = isinstance(segments, (int, np.integer)) and segments >= 1
    if not is_count or isinstance(segments, bool):
        raise ValueError(
            f"segments={segments!r} must be an integer of at least 1; leave it out "
            f"for {_DEFAULT_SEGMENTS}."
        )
    return functools.partial(_interpolate, table=_TABLES[name].tabulate(int(segments)))


class PReLU(nn.Module):
    """max(x, 0) + slope min(x, 0) with one learned slope per channel.

    The slopes, [C], start at 0.25 (He et al. 2015, section 2.1). They are named
    `slope`, so that nothing takes them for a kernel and masks them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from neurrev_jax.models import PReLU
      >>> PReLU().init_with_output(jax.random.key(0), jnp.array([[-4.0, 4.0]]))[0]
      Array([[-1.,  4.]], dtype=float32)
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        init = nn.initializers.constant(0.25)
        slope = self.param("slope", init, (x.shape[-1],), jnp.float32)
        slope = jnp.broadcast_to(slope.astype(x.dtype), x.shape)
        return jnp.where(x >= 0, x, slope * x)


def activation_maker(
    activation: str | Activation, hardware: bool
) -> Callable[[str], Activation]:
    """What a network's attributes `activation` and `hardware` stand for.

    Args:
      activation: one of `ACTIVATION_NAMES`, or an elementwise function.
      hardware: whether to approximate; needs a name, or a function that has one
        (such as `flax.linen.elu`).

    Returns:
      A function from the name of an activation (`relu_1`) to what computes it; call
      it in a compact method, because for prelu that is a submodule (`prelu_1`).

    Raises:
      ValueError: for an unknown name, something else than a name or a function, or
        `hardware` with a function that has no name.

    Example:
      >>> import jax.numpy as jnp
      >>> activation_maker("leaky_relu", hardware=False)("relu")(jnp.array(-2.0))
      Array(-0.02, dtype=float32, weak_type=True)
    """
    if isinstance(activation, str):
        name = activation
        _check_name(name)
    elif callable(activation):
        if not hardware:
            return lambda _: activation
        known = [key for key, value in _FUNCTIONS.items() if value is activation]
        if not known:
            raise ValueError(
                f"hardware=True with activation={activation!r}: how hardware computes "
                "a function is known by its name; give one of "
                f"{', '.join(map(repr, ACTIVATION_NAMES))}, or hardware=False."
            )
        name = known[0]
    else:
        raise ValueError(
            f"activation={activation!r} must be an elementwise function or one of "
            f"{', '.join(map(repr, ACTIVATION_NAMES))}."
        )
    if name == "prelu":
        return lambda place: PReLU(name=place.replace("relu", "prelu"))
    function = make_activation(name, hardware)
    return lambda _: function


def _check_name(name: Any) -> None:
    if name not in ACTIVATION_NAMES:
        raise ValueError(
            f"there is no activation {name!r}; choose one of "
            f"{', '.join(map(repr, ACTIVATION_NAMES))}."
        )


# --- piecewise-linear tables --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Table:
    """Segments of equal width on [low, high], and lines beyond it.

    Attributes:
      low: first breakpoint.
      high: last breakpoint.
      slopes: of the line left of `low`, the segments, the line right of `high`.
      intercepts: the values of these lines at 0.
    """

    low: float
    high: float
    slopes: np.ndarray
    intercepts: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A function with asymptotes.

    Attributes:
      function: from a float to a float.
      low: where its left asymptote takes over; a constant.
      high: where its right asymptote takes over.
      left: value of the left asymptote.
      right: slope and intercept of the right asymptote.
    """

    function: Callable[[float], float]
    low: float
    high: float
    left: float
    right: tuple[float, float]

    def tabulate(self, segments: int) -> _Table:
        at = np.linspace(self.low, self.high, segments + 1)
        values = np.array([self.function(x) for x in at])
        slopes = np.diff(values) / np.diff(at)
        intercepts = values[:-1] - slopes * at[:-1]
        slope, intercept = self.right
        return _Table(
            self.low,
            self.high,
            np.array([0.0, *slopes, slope], np.float32),
            np.array([self.left, *intercepts, intercept], np.float32),
        )


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

# Each range ends where the function is within 0.003 of its asymptote.
_TABLES = {
    "elu": _Curve(math.expm1, -8.0, 0.0, -1.0, (1.0, 0.0)),
    "selu": _Curve(
        lambda x: _SELU_SCALE * _SELU_ALPHA * math.expm1(x),
        -8.0,
        0.0,
        -_SELU_SCALE * _SELU_ALPHA,
        (_SELU_SCALE, 0.0),
    ),
    "sigmoid": _Curve(lambda x: 1 / (1 + math.exp(-x)), -8.0, 8.0, 0.0, (0.0, 1.0)),
    "tanh": _Curve(math.tanh, -4.0, 4.0, -1.0, (0.0, 1.0)),
    "swish": _Curve(lambda x: x / (1 + math.exp(-x)), -8.0, 8.0, 0.0, (1.0, 0.0)),
    "gelu": _Curve(
        lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2, -4.0, 4.0, 0.0, (1.0, 0.0)
    ),
}


def _interpolate(x: jax.Array, table: _Table) -> jax.Array:
    segments = len(table.slopes) - 2
    # In float32: the position of a bfloat16 in the table would be too coarse.
    wide = x.astype(np.promote_types(x.dtype, jnp.float32))
    position = jnp.floor((wide - table.low) * (segments / (table.high - table.low)))
    position = jnp.clip(position, -1, segments - 1)
    position = jnp.where(wide > table.high, segments, position)
    index = position.astype(jnp.int32) + 1
    slope = jnp.asarray(table.slopes, wide.dtype).at[index].get(mode="clip")
    intercept = jnp.asarray(table.intercepts, wide.dtype).at[index].get(mode="clip")
    # A constant also at infinity, where 0 times x would be NaN.
    finite = jnp.where((slope == 0) & jnp.isinf(wide), 0, wide)
    return (slope * finite + intercept).astype(x.dtype)
