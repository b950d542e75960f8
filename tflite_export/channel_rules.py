"""What each operation does with the channels of its inputs.

Most operations keep channels apart: elementwise functions, pools, depthwise
convolutions. What goes in and what comes out then has the same `Channels`, and loses
one together. Convolutions and matrix products mix them, and what comes out has channels
of its own.

Shape letters: C channels that go in, O channels that come out.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tflite_export.channel_places import Channels, Effect, Mixing, Place
from tflite_export.recording import Operation, Value, shrink

# Each entry of the output is computed from the same entries of the inputs.
_ELEMENTWISE = (
    "abs", "add", "add_any", "and", "cbrt", "ceil", "clamp", "convert_element_type",
    "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh", "xor",
)  # fmt: skip


def effect(operation: Operation, places: Sequence[Place | None]) -> Effect:
    """What an operation does with the channels of its inputs.

    Args:
      operation: any.
      places: of its inputs; None for constants and values without channels.

    Returns:
      What it does; an operation that is not known holds all channels.
    """
    rule = _RULES.get(operation.name)
    if operation.name in _ELEMENTWISE:
        rule = _elementwise
    found = rule(operation, places) if rule else None
    if found is not None:
        return found
    held = tuple(place for place in places if place is not None)
    nowhere = (None,) * len(operation.outputs)
    return Effect(nowhere, held=held, why=f"read by {operation.name}")


# --- operations that keep channels apart --------------------------------------


def _elementwise(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    shape = operation.outputs[0].shape
    full = [
        place
        for x, place in zip(operation.inputs, places, strict=True)
        if place is not None and x.shape[place.axis] == shape[place.axis]
    ]
    if not full:
        return None
    main, constants, held = full[0], [], []
    vectors, known = [], []
    for i, (x, place) in enumerate(zip(operation.inputs, places, strict=True)):
        # What has one channel, or none, is the same for all of them.
        is_single = not x.shape or x.shape[main.axis] == 1 < shape[main.axis]
        if place is not None and _is_alike(place, main):
            place.channels.join(main.channels)
        elif not isinstance(x, Value):
            place = _of_constant(x, main)
            if not is_single:
                constants.append((i, main.axis, place))
        elif is_single and (place is None or place.width == 1):
            held += [] if place is None else [place]
            ones = np.ones(main.width, x.dtype)
            place = dataclasses.replace(
                main, values=ones, known=np.zeros_like(main.known)
            )
        else:
            return None
        vectors.append(place.values)
        known.append(place.known)
    with jax.ensure_compile_time_eval():
        values = np.asarray(operation.primitive.bind(*vectors, **operation.settings))
    is_known = np.logical_and.reduce(known)
    if operation.name == "mul":
        # Zero times anything.
        is_zero = known[0] & (vectors[0] == 0) | known[1] & (vectors[1] == 0)
        is_known = is_known | is_zero
        values = np.where(is_zero, np.zeros_like(values), values)
    output = dataclasses.replace(main, values=values, known=is_known)
    return Effect(
        (output,), tuple(constants), held=tuple(held), why="spread over all channels"
    )


def _is_alike(place: Place, other: Place) -> bool:
    return (place.axis, place.repeat, place.width) == (
        other.axis,
        other.repeat,
        other.width,
    )


def _of_constant(array: Any, like: Place) -> Place:
    """The place of a constant that is computed with a value."""
    small = shrink(array)
    if not small.ndim:
        rows = np.full((1, like.width), small)
    elif small.shape[like.axis] == 1:
        rows = np.repeat(small.reshape(-1, 1), like.width, axis=1)
    else:
        rows = np.moveaxis(small, like.axis, -1).reshape(-1, like.width)
    known = (rows == rows[:1]).all(axis=0)
    return dataclasses.replace(like, values=rows[0], known=known)


def _barrier(operation: Operation, places: Sequence[Place | None]) -> Effect:
    return Effect(tuple(places))


def _broadcast(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place = places[0]
    if place is None:
        return None
    settings = operation.settings
    axis = settings["broadcast_dimensions"][place.axis]
    if settings["shape"][axis] != operation.inputs[0].shape[place.axis]:
        return None
    return Effect((place.moved(axis),))


def _reshape(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place, before = places[0], operation.inputs[0].shape
    after = operation.outputs[0].shape
    if place is None or operation.settings.get("dimensions") is not None:
        return None
    # Entries in their order: the channel is the same where as many follow.
    following = math.prod(before[place.axis + 1 :])
    for axis, size in enumerate(after):
        behind = math.prod(after[axis + 1 :])
        if behind == following and size % place.width == 0:
            repeat = size // place.width
            return Effect((dataclasses.replace(place, axis=axis, repeat=repeat),))
    return None


def _squeeze(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    removed = operation.settings["dimensions"]
    return _without_axes(places[0], removed)


def _transpose(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place = places[0]
    if place is None:
        return None
    axis = tuple(operation.settings["permutation"]).index(place.axis)
    return Effect((place.moved(axis),))


def _slice(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place = places[0]
    if place is None:
        return None
    is_whole = (
        operation.inputs[0].shape[place.axis] == operation.outputs[0].shape[place.axis]
    )
    return Effect((place,)) if is_whole else None


def _pad(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place, (_, padding) = places[0], operation.inputs
    if place is None or isinstance(padding, Value):
        return None
    if tuple(operation.settings["padding_config"][place.axis]) != (0, 0, 0):
        return None
    return Effect((place.knowing(place.values == padding),))


def _pool(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place, settings = places[0], operation.settings
    if place is None:
        return None
    window, pads = settings["window_dimensions"], settings["padding"]
    is_dilated = {*settings["base_dilation"], *settings["window_dilation"]} != {1}
    at = place.axis
    if is_dilated or (window[at], tuple(pads[at])) != (1, (0, 0)):
        return None
    if settings["window_strides"][at] != 1:
        return None
    if operation.name == "reduce_window_sum":
        return Effect((place.knowing(place.values == 0),))
    # A window that lies in the padding as a whole holds something else.
    is_filled = all(max(pad) < size for pad, size in zip(pads, window, strict=True))
    return Effect((place.knowing(np.full(place.width, is_filled)),))


def _reduce(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    place = places[0]
    if place is not None and operation.name == "reduce_sum":
        place = place.knowing(place.values == 0)
    return _without_axes(place, operation.settings["axes"])


def _without_axes(place: Place | None, axes: Sequence[int]) -> Effect | None:
    if place is None or place.axis in axes:
        return None
    return Effect((place.moved(place.axis - sum(axis < place.axis for axis in axes)),))


def _look_up(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    """A table of numbers read at each entry, as piecewise linear activations do."""
    table, place = operation.inputs[0], places[1]
    numbers = operation.settings["dimension_numbers"]
    if place is None or isinstance(table, Value) or table.ndim != 1:
        return None
    is_by_entry = not numbers.offset_dims and not numbers.operand_batching_dims
    if not is_by_entry or place.axis == len(operation.outputs[0].shape):
        return None
    with jax.ensure_compile_time_eval():
        read = operation.primitive.bind(
            table, place.values.reshape(-1, 1), **operation.settings
        )
    return Effect((dataclasses.replace(place, values=np.asarray(read)),))


# --- operations that mix channels ---------------------------------------------


def _convolution(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    (source, kernel), place = operation.inputs, places[0]
    settings = operation.settings
    if isinstance(kernel, Value) or settings["batch_group_count"] != 1:
        return None
    numbers = settings["dimension_numbers"]
    into, out = numbers.lhs_spec[1], numbers.out_spec[1]
    kernel_out, kernel_in = numbers.rhs_spec[:2]
    groups = settings["feature_group_count"]
    if groups == 1:
        return _mix(operation, 0, place, into, out, kernel_in, kernel_out)
    rest = tuple(axis for axis in range(kernel.ndim) if axis != kernel_out)
    silent = ~(np.asarray(kernel) != 0).any(axis=rest)
    is_depthwise = groups == source.shape[into] == kernel.shape[kernel_out]
    if not is_depthwise or place is None or (place.axis, place.repeat) != (into, 1):
        held = (_unknown(operation, out), *(() if place is None else (place,)))
        return Effect(
            held[:1], silent=silent, held=held, why="in a convolution of groups"
        )
    output = _zero_where(silent | place.zero, operation, place.channels, out)
    return Effect((output,), ((1, kernel_out, output),), silent=silent)


def _dot(operation: Operation, places: Sequence[Place | None]) -> Effect | None:
    contracted, batched = operation.settings["dimension_numbers"]
    constants = [i for i, x in enumerate(operation.inputs) if not isinstance(x, Value)]
    if len(constants) != 1 or batched[0] or len(contracted[0]) != 1:
        return None
    [weights] = constants
    if operation.inputs[weights].ndim != 2:
        return None
    source = 1 - weights
    [kernel_in], [into] = contracted[weights], contracted[source]
    # The axes of the left one come first, those of the right one last.
    out = 0 if weights == 0 else len(operation.outputs[0].shape) - 1
    place = places[source]
    return _mix(operation, source, place, into, out, kernel_in, 1 - kernel_in)


def _mix(
    operation: Operation,
    source: int,
    place: Place | None,
    into: int,
    out: int,
    kernel_in: int,
    kernel_out: int,
) -> Effect:
    """A sum of products with constant weights over the channels that go in.

    Args:
      operation: a convolution or matrix product.
      source: which input is no constant.
      place: of that input.
      into: its axis that the sum goes over.
      out: the axis of the output that holds the sums.
      kernel_in: the axis of the weights that the sum goes over.
      kernel_out: the axis of the weights that stays.
    """
    index = 1 - source
    weights = np.asarray(operation.inputs[index]) != 0
    rest = tuple(i for i in range(weights.ndim) if i not in (kernel_in, kernel_out))
    nonzero = weights.any(axis=rest)
    if kernel_in > kernel_out:
        nonzero = nonzero.T
    silent = ~nonzero.any(axis=0)
    held: tuple[Place, ...] = ()
    if place is not None and place.axis != into:
        held, place = (place,), None
    constants = []
    if place is not None:
        nonzero = nonzero.reshape(place.repeat, place.width, -1).any(axis=0)
        nonzero &= ~place.zero[:, None]
        constants.append((index, kernel_in, place))
    channels = Channels(nonzero.shape[1])
    output = _zero_where(~nonzero.any(axis=0), operation, channels, out)
    constants.append((index, kernel_out, output))
    return Effect(
        (output,),
        tuple(constants),
        mixing=None if place is None else Mixing(place, output, nonzero),
        silent=silent,
        held=held,
        why=f"read by {operation.name} along another axis",
    )


def _zero_where(
    is_zero: np.ndarray, operation: Operation, channels: Channels, axis: int
) -> Place:
    values = np.zeros(len(is_zero), operation.outputs[0].dtype)
    return Place(channels, axis, 1, values, is_zero)


def _unknown(operation: Operation, axis: int) -> Place:
    width = operation.outputs[0].shape[axis]
    return _zero_where(np.zeros(width, bool), operation, Channels(width), axis)


_Rule = Callable[[Operation, Sequence[Place | None]], Effect | None]
_RULES: dict[str, _Rule] = {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "gather": _look_up,
    "optimization_barrier": _barrier,
    "pad": _pad,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_sum": _reduce,
    "reduce_window_max": _pool,
    "reduce_window_min": _pool,
    "reduce_window_sum": _pool,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
