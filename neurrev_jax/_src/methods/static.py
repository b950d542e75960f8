"""Static sparse training: the mask that was drawn first, to the end."""

import dataclasses
from typing import Literal

from neurrev_jax._src import base, schedules


def static(*, init_mask: Literal["random", "magnitude"] = "random") -> base.Method:
    """Trains under one fixed mask (Liu et al., 2022, on random pruning).

    Args:
      init_mask: how the mask is drawn: `"random"`, or `"magnitude"` for the
        largest initial weights of each leaf.

    Returns:
      A `Method`.

    Raises:
      ValueError: for another `init_mask`.

    >>> static().name
    'static'
    """
    draw = draw_by(init_mask)
    return base.Method(
        name="static",
        schedule=schedules.Never(),
        rewire=lambda context: base.Rewired(context.masks, context.method_state),
        start=draw,
    )


def draw_by(init_mask: str):
    """The `start` of a method that only chooses how the first mask is drawn."""
    if init_mask not in ("random", "magnitude"):
        raise ValueError(
            f"init_mask={init_mask!r} is unknown; choose 'random' or 'magnitude'."
        )
    return lambda targets: dataclasses.replace(targets, draw=init_mask)
