"""What a convolution takes into itself before it is computed.

Operations per channel, such as batch norm, go into its weights; ReLU and the like wait
behind it, so that channels which are zero can still be left out.

Shape letters: B examples, H and W pixels, C channels of the input, O of the output, K
kernel size.
"""

import dataclasses
from typing import Any

import numpy as np

# Of one value, or of one and a constant: what makes zero of zero.
_ZERO_STAYS_ZERO = ("max", "min", "mul", "neg", "tanh", "abs")


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that does not depend on the inputs."""

    array: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """A value that does.

    Attributes:
      array: its value.
      inside: whether it lies in the sparse part.
      live: the channels that it holds; None for all of them.
    """

    array: Any
    inside: bool
    live: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Convolved:
    """A convolution that nobody has read yet, so that it can still absorb a scale.

    Attributes:
      source: what it is a convolution of, [B, H, W, C].
      kernel: float64 [K, K, C, O].
      bias: float64 [O].
      settings: as recorded.
      scope: the names of the modules it stands in.
      after: elementwise operations that leave zero as it is, done to it since: the
        recorded operation, its arguments (None for the value itself), its scope.
      readers: how many operations read it.
      memory: where its array is kept once it has been computed.
    """

    source: Computed
    kernel: np.ndarray
    bias: np.ndarray
    settings: dict[str, Any]
    scope: str
    after: tuple[tuple[Any, tuple[Any, ...], str], ...] = ()
    readers: int = 0
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)


def follow(equation: Any, arguments: list[Any], scope: str) -> Convolved | None:
    """The convolution with ReLU or the like behind it.

    Args:
      equation: the recorded operation.
      arguments: its arguments.
      scope: the names of the modules it stands in.

    Returns:
      The convolution, or None if this is no such operation or somebody else reads it.
    """
    if equation.primitive.name not in _ZERO_STAYS_ZERO:
        return None
    convs = [a for a in arguments if isinstance(a, Convolved)]
    others = [a for a in arguments if not isinstance(a, Convolved)]
    is_alone = len(convs) == 1 and convs[0].readers == 1 and not convs[0].memory
    if not is_alone or not all(
        # A number fits whatever channels there are; zero has to stay zero.
        isinstance(a, Known)
        and np.ndim(a.array) == 0
        and (equation.primitive.name == "mul" or float(a.array) == 0)
        for a in others
    ):
        return None
    conv = convs[0]
    blanks = tuple(None if a is conv else a for a in arguments)
    step = (equation, blanks, scope)
    return dataclasses.replace(conv, after=(*conv.after, step), memory={})


def absorb(name: str, arguments: list[Any]) -> Convolved | None:
    """The convolution with a per-channel operation in it.

    Args:
      name: of the operation.
      arguments: its arguments.

    Returns:
      The convolution, or None if that cannot be.
    """
    if name not in ("add", "sub", "mul", "div") or len(arguments) != 2:
        return None
    left, right = arguments
    if isinstance(left, Convolved) and isinstance(right, Known):
        conv, other = left, _per_channel(right, left)
    elif isinstance(right, Convolved) and isinstance(left, Known):
        conv, other = right, _per_channel(left, right)
    else:
        return None
    if other is None or conv.memory or conv.after:
        return None
    kernel, bias = conv.kernel, conv.bias
    if name == "add":
        bias = bias + other
    elif name == "mul":
        kernel, bias = kernel * other, bias * other
    elif conv is right:
        # A constant minus it; one divided by it is no convolution any more.
        if name == "div":
            return None
        kernel, bias = -kernel, other - bias
    elif name == "sub":
        bias = bias - other
    else:
        kernel, bias = kernel / other, bias / other
    return dataclasses.replace(conv, kernel=kernel, bias=bias, memory={})


def _per_channel(known: Known, conv: Convolved) -> np.ndarray | None:
    """A constant as one number per output channel, or None if it is not that."""
    array = np.asarray(known.array, np.float64)
    channels = conv.bias.shape[0]
    if array.ndim == 0:
        return np.full(channels, array)
    if array.shape[-1] not in (1, channels):
        return None
    rows = array.reshape(-1, array.shape[-1])
    if not (rows == rows[:1]).all():
        return None
    return np.broadcast_to(rows[0], (channels,))
