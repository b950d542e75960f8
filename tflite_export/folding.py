"""What a convolution takes into itself before it is computed.

Operations per channel, such as batch norm, go into its weights.

Shape letters: B examples, H and W pixels, C channels of the input, O of the output, K
kernel size.
"""

import dataclasses
from typing import Any

import numpy as np

from tflite_export.recording import shrink


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """A value that depends on the inputs.

    Attributes:
      array: its value.
      inside: whether it lies in the sparse part.
    """

    array: Any
    inside: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Convolved:
    """A convolution that nobody has read yet, so that it can still absorb a scale.

    Attributes:
      source: what it is a convolution of, [B, H, W, C].
      kernel: float64 [K, K, C, O].
      bias: float64 [O].
      settings: as recorded.
      scope: the names of the modules it stands in.
      readers: how many operations read it.
      memory: where its array is kept once it has been computed.
    """

    source: Computed
    kernel: np.ndarray
    bias: np.ndarray
    settings: dict[str, Any]
    scope: str
    readers: int
    memory: dict[str, Computed] = dataclasses.field(default_factory=dict)


def absorb(name: str, arguments: list[Any], readers: int) -> Convolved | None:
    """The convolution with a per-channel operation in it.

    Args:
      name: of the operation.
      arguments: its arguments; constants are arrays.
      readers: how many operations read its output.

    Returns:
      The convolution, or None if that cannot be.
    """
    if name not in ("add", "sub", "mul", "div") or len(arguments) != 2:
        return None
    left, right = arguments
    conv, known = (left, right) if isinstance(left, Convolved) else (right, left)
    is_alone = isinstance(conv, Convolved) and conv.readers == 1
    if not is_alone or isinstance(known, Computed | Convolved):
        return None
    other = _per_channel(known, conv)
    if other is None:
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
    return dataclasses.replace(
        conv, kernel=kernel, bias=bias, readers=readers, memory={}
    )


def _per_channel(array: Any, conv: Convolved) -> np.ndarray | None:
    """A constant as one number per output channel, or None if it is not that."""
    array = shrink(array).astype(np.float64)
    channels = conv.bias.shape[0]
    if array.ndim == 0:
        return np.full(channels, array)
    if array.shape[-1] not in (1, channels):
        return None
    rows = array.reshape(-1, array.shape[-1])
    if not (rows == rows[:1]).all():
        return None
    return np.broadcast_to(rows[0], (channels,))
