"""Static sparse training: the mask that was drawn first, to the end."""

import dataclasses
from typing import Literal, NamedTuple

from neurrev_jax._src import base, schedules


class HeldState(NamedTuple):
    """No arrays; says that inactive entries are held where they are."""

    def sparsify(self, params: base.Params, masks: base.Masks) -> base.Params:
        """The identity: inactive entries keep their values."""
        del masks
        return params

    def gradient_masks(self, masks: base.Masks) -> base.Masks:
        """The active entries: only they move."""
        return masks


@base.Card(prunes="nothing")
def static(
    *,
    init_mask: Literal["random", "magnitude"] = "random",
    inactive: Literal["zero", "hold"] = "zero",
) -> base.Method:
    """Trains under one fixed mask (Liu et al., 2022, on random pruning).

    Args:
      init_mask: how the mask is drawn: `"random"`, or `"magnitude"` for the
        largest initial weights of each leaf.
      inactive: inactive entries are `"zero"`; or they are held at the values they
        have (`"hold"`): a mask of what to update, as FISH uses it (Sung et al., 2021).
        The network is dense then, and only the change of it is sparse.

    Returns:
      A `Method`.

    Raises:
      ValueError: for another `init_mask` or `inactive`.

    >>> static().name
    'static'
    """
    draw = draw_by(init_mask)
    if inactive not in ("zero", "hold"):
        raise ValueError(f"inactive={inactive!r} is unknown; choose 'zero' or 'hold'.")
    held = inactive == "hold"
    return base.Method(
        name="static",
        schedule=schedules.Never(),
        rewire=lambda context: base.Rewired(context.masks, context.method_state),
        cost=base.Cost(sparse=0.0, dense=3.0) if held else base.Cost(),
        start=draw,
        init=lambda context: HeldState() if held else base.EmptyState(),
        inactive=inactive,
        grows="nothing",
    )


def draw_by(init_mask: str):
    """The `start` of a method that only chooses how the first mask is drawn."""
    if init_mask not in ("random", "magnitude"):
        raise ValueError(
            f"init_mask={init_mask!r} is unknown; choose 'random' or 'magnitude'."
        )
    return lambda targets: dataclasses.replace(targets, draw=init_mask)
