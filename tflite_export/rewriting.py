"""The same network in 1x1 convolutions, for sparse inference on Arm.

XNNPACK, LiteRT's CPU backend, computes sparsely with 1x1 convolutions only, inside one
connected part of a network: entered through a 3x3 convolution of stride 2 from three
channels, left through a global average pool, with depthwise convolutions and additions
in between (`tflite_export.cluster` has the rules). A 3x3 convolution is a sum over its
nine taps of a 1x1 convolution of a shifted input, and a shift is a depthwise
convolution with a kernel of one 1. Written so, a CIFAR ResNet is such a part as a
whole. A tap whose weights are all zero is left out.

The function is recorded and gone through operation by operation. Batch norm is folded
into the weights of the convolution in front of it.

Shape letters: B examples, H and W pixels, C channels of the input, O of the output.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tflite_export import folding
from tflite_export.recording import Operation, Recording, Value, compute, record, spread

_NHWC = ("NHWC", "HWIO", "NHWC")
_ENTRY_CHANNELS = 3
# Operations that a sparse part goes through unharmed.
_ELEMENTWISE = ("add", "mul", "max", "min", "neg", "logistic", "tanh", "exp", "abs")


def rewrite(
    function: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]
) -> Callable[..., Any]:
    """Turns convolutions into shifts and 1x1 convolutions, and folds batch norm.

    Those convolutions are rewritten that a sparse part of the network can hold. These
    are, where their input is in such a part, 3x3 convolutions of stride 1 or 2 padded
    by 1, and 1x1 convolutions of stride 2. A part begins at a 3x3 convolution of stride
    2 from three channels, or, for the first convolution of images of at most three
    channels, by an entry that is put in: the image spread to twice its size and read
    back by a convolution of stride 2.

    Args:
      function: from the inputs to any outputs, its weights constant.
      specs: shape and type of each input.

    Returns:
      A function equal to it up to rounding.

    Example:
      >>> def f(x):
      ...     kernel = jnp.zeros((3, 3, 2, 4)).at[1, 1].set(1.0)
      ...     return lax.conv_general_dilated(
      ...         x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> spec = jax.ShapeDtypeStruct((1, 4, 4, 2), "float32")
      >>> x = jnp.arange(32.0).reshape(1, 4, 4, 2)
      >>> bool((rewrite(f, [spec])(x) == f(x)).all())
      True
    """
    recording = record(function, specs)

    def rewritten(*inputs: Any) -> Any:
        return _Walk().run(recording, inputs)

    return rewritten


class _Walk:
    """Goes through recorded operations and computes them, convolutions in their way."""

    def __init__(self) -> None:
        self._shifted: dict[tuple[int, int, int, int], Any] = {}
        self._kept: list[Any] = []

    def run(self, recording: Recording, inputs: Sequence[Any]) -> Any:
        """Computes the outputs."""
        readers = collections.Counter(
            x
            for read in (*(o.inputs for o in recording.operations), recording.outputs)
            for x in read
            if isinstance(x, Value)
        )
        values: dict[Value, Any] = {
            x: folding.Computed(jnp.asarray(array), inside=False)
            for x, array in zip(recording.inputs, inputs, strict=True)
        }
        for operation in recording.operations:
            given = [values[x] if isinstance(x, Value) else x for x in operation.inputs]
            results = self._apply(operation, given, readers[operation.outputs[0]])
            values.update(zip(operation.outputs, results, strict=True))
        return recording.structure.unflatten(
            self._computed(values[x]).array if isinstance(x, Value) else spread(x)
            for x in recording.outputs
        )

    def _apply(
        self, operation: Operation, arguments: list[Any], readers: int
    ) -> list[Any]:
        name = operation.name
        if name == "conv_general_dilated":
            conv = self._convolve(operation, arguments, readers)
        else:
            conv = folding.absorb(name, arguments, readers)
        if conv is not None:
            return [conv]
        # First, so that a convolution is computed in its own scope.
        given = [
            self._computed(x) if isinstance(x, folding.Convolved) else x
            for x in arguments
        ]
        dynamic = [x for x in given if isinstance(x, folding.Computed)]
        inside = name in _ELEMENTWISE and all(value.inside for value in dynamic)
        arrays = [x.array if isinstance(x, folding.Computed) else x for x in given]
        return [folding.Computed(x, inside) for x in compute(operation, arrays)]

    def _convolve(
        self, operation: Operation, arguments: list[Any], readers: int
    ) -> folding.Convolved | None:
        """The convolution, not computed yet; None for one of a foreign kind."""
        (source, kernel), settings = arguments, operation.settings
        is_value = isinstance(source, folding.Computed | folding.Convolved)
        if not is_value or isinstance(kernel, folding.Computed | folding.Convolved):
            return None
        if not _is_channels_last(settings) or settings["batch_group_count"] != 1:
            return None
        weights = np.asarray(kernel, np.float64)
        return folding.Convolved(
            self._computed(source),
            weights,
            np.zeros(weights.shape[-1]),
            settings,
            operation.scope,
            readers,
        )

    def _computed(self, value: Any) -> folding.Computed:
        if isinstance(value, folding.Computed):
            return value
        if "value" not in value.memory:
            with jax.named_scope(value.scope):
                value.memory["value"] = self._compute(value)
        return value.memory["value"]

    def _compute(self, conv: folding.Convolved) -> folding.Computed:
        source, settings = conv.source, conv.settings
        size, stride = conv.kernel.shape[:2], tuple(settings["window_strides"])
        dtype = source.array.dtype
        kernel = conv.kernel.astype(dtype)
        bias = conv.bias.astype(dtype).reshape(1, 1, 1, -1)
        is_depthwise = settings["feature_group_count"] == source.array.shape[-1]
        is_plain = settings["feature_group_count"] == 1 and _is_undilated(settings)
        is_padded = _padding(settings) == ((size[0] // 2,) * 2, (size[1] // 2,) * 2)
        is_entry = (
            is_plain
            and (size, stride, is_padded) == ((3, 3), (2, 2), True)
            and source.array.shape[-1] == _ENTRY_CHANNELS
        )
        is_rewritable = (
            is_plain
            and is_padded
            and size in ((1, 1), (3, 3))
            and stride in ((1, 1), (2, 2))
        )
        if not source.inside and is_rewritable and size == (3, 3) and not is_entry:
            source = self._enter(source)
            missing = source.array.shape[-1] - kernel.shape[2]
            kernel = np.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
        if not (source.inside and is_rewritable):
            inside = is_entry or (source.inside and is_depthwise)
            return folding.Computed(
                _plain(source.array, kernel, bias, settings), inside
            )
        total = None
        taps = [
            (i, j) for i in range(size[0]) for j in range(size[1]) if kernel[i, j].any()
        ]
        # Of a layer without any weight one tap remains, which costs nothing.
        for i, j in taps or [(size[0] // 2, size[1] // 2)]:
            moved = self._shift(source, i - size[0] // 2, j - size[1] // 2, stride[0])
            term = lax.conv_general_dilated(
                moved, kernel[i, j][None, None], (1, 1), "VALID",
                dimension_numbers=_NHWC,
            )  # fmt: skip
            total = term + bias if total is None else total + term
        return folding.Computed(total, inside=True)

    def _enter(self, source: folding.Computed) -> folding.Computed:
        """Into the sparse part, if images of so many channels can be brought there."""
        x = source.array
        if x.ndim != 4 or x.shape[-1] > _ENTRY_CHANNELS:
            return source
        key = (id(x), 0, 0, 0)
        if key not in self._shifted:
            b, h, w, c = x.shape
            # Three channels whatever the image has: of a single one the converter
            # would make other operations.
            identity = np.zeros((3, 3, _ENTRY_CHANNELS, _ENTRY_CHANNELS), x.dtype)
            identity[1, 1] = np.eye(_ENTRY_CHANNELS)
            with jax.named_scope("entry"):
                # Zeros between the pixels, by reshaping: every row and column is
                # followed by one of zeros that the stride passes over.
                gap = ((0, 0), (0, 0), (0, 0), (0, 2 * _ENTRY_CHANNELS - c))
                rows = jnp.reshape(jnp.pad(x, gap), (b * h, 1, 1, -1))
                rows = jnp.pad(rows, ((0, 0), (0, 1), (0, 0), (0, 0)))
                spread = jnp.reshape(rows, (b, 2 * h, 2 * w, _ENTRY_CHANNELS))
                self._shifted[key] = lax.conv_general_dilated(
                    spread,
                    jnp.asarray(identity),
                    (2, 2),
                    ((1, 1), (1, 1)),
                    dimension_numbers=_NHWC,
                )
            self._kept.append(x)
        return folding.Computed(self._shifted[key], inside=True)

    def _shift(
        self, source: folding.Computed, down: int, right: int, stride: int
    ) -> Any:
        """What lies so many pixels down and right of every stride-th pixel."""
        x = source.array
        if (down, right, stride) == (0, 0, 1):
            return x
        # By identity: the same array shifted alike for two convolutions is one.
        key = (id(x), down, right, stride)
        if key not in self._shifted:
            channels = x.shape[-1]
            one = np.zeros((3, 3, 1, channels), x.dtype)
            one[1 + down, 1 + right] = 1
            with jax.named_scope("shift"):
                self._shifted[key] = lax.conv_general_dilated(
                    x, jnp.asarray(one), (stride, stride), ((1, 1), (1, 1)),
                    dimension_numbers=_NHWC, feature_group_count=channels,
                )  # fmt: skip
            self._kept.append(x)
        return self._shifted[key]


def _plain(x: Any, kernel: Any, bias: Any, settings: dict[str, Any]) -> Any:
    convolved = lax.conv_general_dilated(
        x,
        kernel,
        settings["window_strides"],
        _padding(settings),
        rhs_dilation=settings["rhs_dilation"],
        lhs_dilation=settings["lhs_dilation"],
        dimension_numbers=_NHWC,
        feature_group_count=settings["feature_group_count"],
    )
    return convolved + bias if bias.any() else convolved


def _is_channels_last(settings: dict[str, Any]) -> bool:
    numbers = settings["dimension_numbers"]
    shapes = (1,) * len(numbers.lhs_spec)
    return len(shapes) == 4 and numbers == lax.conv_dimension_numbers(
        shapes, shapes, _NHWC
    )


def _is_undilated(settings: dict[str, Any]) -> bool:
    return {*settings["lhs_dilation"], *settings["rhs_dilation"]} == {1}


def _padding(settings: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((int(low), int(high)) for low, high in settings["padding"])
