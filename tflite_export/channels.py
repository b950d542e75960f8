"""A network without the channels that make no difference.

A channel makes none where it is zero, because a method removed it or no weight of it
survived, or where no weight reads it. It is followed from the convolution that computes
it through all that keeps channels apart (`tflite_export.channel_rules`) to the
convolutions and matrix products that read it, and cut out of all of them. That is
exact: what is left out are products with zero.

A channel stays if one value on the way cannot lose it: an output of the network, an
operation that is not known, a sum whose other side is not zero.

Shape letters: C channels that go in, O channels that come out.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from tflite_export.channel_places import Channels, Effect, Place
from tflite_export.channel_rules import effect
from tflite_export.recording import Operation, Recording, Value, shrink

_OUTPUT = "an output of the network"
_CONSTANT = "a constant other than zero, by a bias"
_SUMMED = "part of a sum that is not zero"
_LAST = "the last one of its layer"


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """What `cut` did.

    Attributes:
      recording: the function without these channels.
      removed: how many they are. A channel counts once, however many operations it
        goes through.
      kept: how many channels of a layer without any weight for them had to stay, by
        the reason.
    """

    recording: Recording
    removed: int
    kept: dict[str, int]


def cut(recording: Recording) -> Cut:
    """Cuts out the channels that make no difference.

    Args:
      recording: of a function whose weights are constants.

    Returns:
      The same function with fewer channels, up to rounding.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from tflite_export.recording import record
      >>> first = jnp.ones((3, 4)).at[:, 1].set(0.0)
      >>> second = jnp.ones((4, 2))
      >>> f = lambda x: jax.nn.relu(x @ first) @ second
      >>> found = cut(record(f, [jax.ShapeDtypeStruct((1, 3), "float32")]))
      >>> found.removed
      1
      >>> [operation.outputs[0].shape for operation in found.recording.operations]
      [(1, 3), (1, 3), (1, 2)]
      >>> found.recording(jnp.ones((1, 3)))
      Array([[9., 9.]], dtype=float32)
    """
    places, effects = _follow(recording)
    held = [(p.channels, e.why) for e in effects for p in e.held]
    held += [
        (places[x].channels, _OUTPUT)
        for x in recording.outputs
        if isinstance(x, Value) and x in places
    ]
    needed = _needed(places, effects, held)
    stays = {
        channels: _at_least_one(channels, mask) for channels, mask in needed.items()
    }
    return Cut(
        _without(recording, places, effects, stays),
        sum(int(np.sum(~mask)) for mask in stays.values()),
        _reasons(effects, held, needed, stays),
    )


def _follow(recording: Recording) -> tuple[dict[Value, Place], list[Effect]]:
    """Where the channels of each value lie, and what each operation does with them."""
    places: dict[Value, Place] = {}
    effects = []
    for operation in recording.operations:
        given = [
            places.get(x) if isinstance(x, Value) else None for x in operation.inputs
        ]
        found = effect(operation, given)
        effects.append(found)
        for value, place in zip(operation.outputs, found.outputs, strict=True):
            if place is not None:
                places[value] = place
    return places, effects


def _needed(
    places: dict[Value, Place],
    effects: list[Effect],
    held: list[tuple[Channels, str]],
) -> dict[Channels, np.ndarray]:
    """Which channels make a difference to what is held, bool [C] each."""
    roots = [place.channels.root for place in places.values()]
    needed = {root: np.zeros(root.width, bool) for root in roots}
    for channels, _ in held:
        needed[channels.root][:] = True
    mixings = [e.mixing for e in effects if e.mixing is not None]
    changed = True
    while changed:
        changed = False
        for mixing in reversed(mixings):
            here = needed[mixing.source.channels.root]
            there = needed[mixing.output.channels.root]
            more = (mixing.matters & there).any(axis=1) & ~here
            here |= more
            changed |= bool(more.any())
    return needed


def _at_least_one(channels: Channels, mask: np.ndarray) -> np.ndarray:
    """The first channel of a layer of which nothing is needed stays."""
    return mask if mask.any() else np.arange(channels.width) == 0


def _reasons(
    effects: list[Effect],
    held: list[tuple[Channels, str]],
    needed: dict[Channels, np.ndarray],
    stays: dict[Channels, np.ndarray],
) -> dict[str, int]:
    """Why channels that no weight computes stay, and how many of them."""
    silent: dict[Channels, np.ndarray] = {}
    constant = {root: np.zeros(root.width, bool) for root in needed}
    for found in effects:
        output = found.outputs[0]
        if found.silent is not None and output is not None:
            root = output.channels.root
            silent[root] = silent.get(root, np.zeros(root.width, bool)) | found.silent
        if found.mixing is not None:
            source = found.mixing.source
            constant[source.channels.root] |= source.known & ~source.zero
    why = {channels.root: reason for channels, reason in reversed(held)}
    counts: collections.Counter[str] = collections.Counter()
    for root, mask in silent.items():
        for i in np.flatnonzero(mask & stays[root]):
            if root in why:
                counts[why[root]] += 1
            elif not needed[root][i]:
                counts[_LAST] += 1
            else:
                counts[_CONSTANT if constant[root][i] else _SUMMED] += 1
    return dict(counts.most_common())


def _without(
    recording: Recording,
    places: dict[Value, Place],
    effects: list[Effect],
    stays: dict[Channels, np.ndarray],
) -> Recording:
    """The function with only the channels that stay."""
    fewer = {x: x for x in recording.inputs}
    operations = []
    for operation, found in zip(recording.operations, effects, strict=True):
        inputs = [fewer[x] if isinstance(x, Value) else x for x in operation.inputs]
        for i, axis, place in found.constants:
            inputs[i] = _take(inputs[i], axis, place, stays[place.channels.root])
        for value in operation.outputs:
            fewer[value] = value
            if value in places:
                place = places[value]
                shape = list(value.shape)
                shape[place.axis] = place.repeat * int(stays[place.channels.root].sum())
                fewer[value] = Value(tuple(shape), value.dtype)
        outputs = tuple(fewer[value] for value in operation.outputs)
        settings = _fit(operation, inputs, outputs)
        operations.append(
            dataclasses.replace(
                operation, settings=settings, inputs=tuple(inputs), outputs=outputs
            )
        )
    outputs = tuple(fewer[x] if isinstance(x, Value) else x for x in recording.outputs)
    return dataclasses.replace(recording, operations=tuple(operations), outputs=outputs)


def _take(array: Any, axis: int, place: Place, stays: np.ndarray) -> np.ndarray:
    """A constant without the entries of the channels that go."""
    small = shrink(array)
    shape = list(np.shape(array))
    shape[axis] = place.repeat * int(stays.sum())
    if small.shape[axis] > 1:
        small = np.compress(np.tile(stays, place.repeat), small, axis)
    return np.broadcast_to(small, shape)


def _fit(
    operation: Operation, inputs: list[Any], outputs: tuple[Value, ...]
) -> dict[str, Any]:
    """The settings that say how many channels there are."""
    settings, shape = operation.settings, outputs[0].shape
    if operation.name == "broadcast_in_dim":
        return settings | {"shape": shape}
    if operation.name == "reshape":
        return settings | {"new_sizes": shape}
    if operation.name == "slice":
        # Along the channels it is whole.
        limits = [
            after if before != after else limit
            for before, after, limit in zip(
                operation.outputs[0].shape,
                shape,
                settings["limit_indices"],
                strict=True,
            )
        ]
        return settings | {"limit_indices": tuple(limits)}
    if operation.name == "conv_general_dilated" and settings["feature_group_count"] > 1:
        axis = settings["dimension_numbers"].lhs_spec[1]
        before, after = operation.inputs[0].shape[axis], inputs[0].shape[axis]
        groups = settings["feature_group_count"] * after // before
        return settings | {"feature_group_count": groups}
    return settings
