"""Which entries of which leaves make up a channel, and what removing it takes along.

Shapes in this module: C channels of a group.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import masks as masks_lib
from neurrev_jax._src import paths as paths_lib


class ChannelAxis(NamedTuple):
    """The axis of a leaf along which channels lie.

    Attributes:
      path: of the leaf.
      axis: 0 <= axis < number of axes.
      shape: of the leaf.
    """

    path: str
    axis: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """The channels between one layer and the next; make it with `channel_group`.

    Attributes:
      filters: the kernels that compute the channels; they say how large a channel is.
      others: what else goes with a channel: norm entries, biases, a depthwise kernel
        on the way, the inputs of the next layer.
    """

    filters: tuple[ChannelAxis, ...]
    others: tuple[ChannelAxis, ...]

    @property
    def width(self) -> int:
        """C, the number of channels."""
        return self.filters[0].shape[self.filters[0].axis]

    @property
    def axes(self) -> tuple[ChannelAxis, ...]:
        """All that goes with a channel."""
        return self.filters + self.others


def channel_group(
    params: base.Params, filters: Mapping[str, int], others: Mapping[str, int]
) -> ChannelGroup:
    """Names the channels between one layer and the next, for `chase(groups=...)`.

    A channel can be removed only where nothing else reads or adds to it: not where it
    is part of a residual sum. Without its filter, norm entries and bias it is 0, if
    the activation maps 0 to 0, so that the next layer does not miss it.

    Args:
      params: parameter tree (only its shapes are read).
      filters: kernels that compute the channels: the axis of the channels by path.
      others: the same for the leaves that go with them: norm scale and bias, bias, a
        depthwise kernel on the way, and the inputs of the next layer.

    Returns:
      The group.

    Raises:
      ValueError: for a path or an axis that does not exist, axes of different
        lengths, or no filter.

    >>> import jax.numpy as jnp
    >>> params = {"a": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    ...           "b": {"kernel": jnp.ones((3, 3, 4, 8))}}
    >>> channel_group(params, {"a/kernel": 3}, {"a/bias": 0, "b/kernel": 2}).width
    4
    """
    shapes = _shapes(params)

    def axis_of(path: str, axis: int) -> ChannelAxis:
        if path not in shapes:
            raise ValueError(
                f"{path!r} is no leaf of the parameters; the paths are "
                f"{', '.join(list(shapes)[:12])}."
            )
        rank = len(shapes[path])
        if not -rank <= axis < rank:
            raise ValueError(
                f"{path}: axis {axis} does not exist in a leaf of shape {shapes[path]}."
            )
        return ChannelAxis(path, axis % rank, shapes[path])

    group = ChannelGroup(
        tuple(axis_of(path, axis) for path, axis in filters.items()),
        tuple(axis_of(path, axis) for path, axis in others.items()),
    )
    if not group.filters:
        raise ValueError("filters={}: name at least one kernel that computes channels.")
    for member in group.axes:
        if member.shape[member.axis] != group.width:
            raise ValueError(
                f"{member.path}: axis {member.axis} of shape {member.shape} does not "
                f"have the {group.width} channels of {group.filters[0].path}; both "
                "must be axes of the same channels."
            )
    return group


def check_groups(params: base.Params, groups: Sequence[ChannelGroup]) -> None:
    """Raises unless the groups were made for such parameters."""
    shapes = _shapes(params)
    for member in (member for group in groups for member in group.axes):
        if shapes.get(member.path) != member.shape:
            raise ValueError(
                f"groups: {member.path} of shape {member.shape} is no leaf of the "
                "parameters; make the groups from the tree that init is called with."
            )


def cover(targets: base.Targets, groups: Sequence[ChannelGroup]) -> base.Targets:
    """Targets with every leaf of the groups in them, at first with all its entries."""
    sizes, counts = dict(targets.sizes), dict(targets.counts)
    for member in (member for group in groups for member in group.axes):
        size = math.prod(member.shape)
        counts.setdefault(member.path, size)
        sizes.setdefault(member.path, size)
    return dataclasses.replace(targets, sizes=sizes, counts=counts)


def mean_magnitudes(
    params: base.Params, groups: Sequence[ChannelGroup]
) -> list[jax.Array]:
    """The unmasked mean magnitude of every channel, float32[C] for each group.

    The mean of |w| over all positions of its filter, those that are 0 included (Chase,
    section 3): a filter with few weights left scores low however large they are.
    """
    leaves = dict(paths_lib.flatten_with_paths(params)[0])

    def score(group: ChannelGroup) -> jax.Array:
        totals = [
            jnp.sum(jnp.abs(leaves[path].astype(jnp.float32)), _but(axis, shape))
            for path, axis, shape in group.filters
        ]
        size = sum(math.prod(shape) for _, _, shape in group.filters) // group.width
        return sum(totals[1:], totals[0]) / jnp.float32(size)

    return [score(group) for group in groups]


def entries_of(
    removed: Sequence[jax.Array], groups: Sequence[ChannelGroup], masks: base.Masks
) -> base.Tree:
    """The entries that belong to the removed channels.

    Args:
      removed: bool[C] for each group.
      groups: the groups.
      masks: mask tree.

    Returns:
      Tree of bool of the masks' shapes.
    """
    leaves, structure = paths_lib.flatten_with_paths(masks)
    found = {path: jnp.zeros_like(mask) for path, mask in leaves}
    for gone, group in zip(removed, groups, strict=True):
        for path, axis, shape in group.axes:
            along = [size if i == axis else 1 for i, size in enumerate(shape)]
            found[path] |= jnp.broadcast_to(jnp.reshape(gone, along), shape)
    return structure.unflatten(found[path] for path, _ in leaves)


def may_lose_channels(
    context: base.Context, groups: Sequence[ChannelGroup]
) -> list[jax.Array]:
    """Whether the caller has frozen no leaf of a group, bool[] for each group."""
    if context.frozen is None:
        return [jnp.ones((), bool) for _ in groups]
    full = masks_lib.broadcast(context.frozen, context.masks)
    frozen = dict(paths_lib.flatten_with_paths(full)[0])
    return [
        ~jnp.any(jnp.stack([jnp.asarray(frozen[m.path], bool) for m in group.axes]))
        for group in groups
    ]


def _shapes(params: base.Params) -> dict[str, tuple[int, ...]]:
    leaves = paths_lib.flatten_with_paths(params)[0]
    return {path: tuple(jnp.shape(leaf)) for path, leaf in leaves}


def _but(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in range(len(shape)) if i != axis)
