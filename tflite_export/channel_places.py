"""Where the channels of values lie, and what is known of them.

Shape letters: C channels that go in, O channels that come out.
"""

import dataclasses

import numpy as np


class Channels:
    """Channels that go together through several values.

    Args:
      width: how many there are.
    """

    def __init__(self, width: int):
        self.width = width
        self._one_with: Channels | None = None

    @property
    def root(self) -> "Channels":
        """The one that stands for all that were joined with this."""
        return self if self._one_with is None else self._one_with.root

    def join(self, other: "Channels") -> None:
        """Makes these and others of the same width the same channels."""
        if self.root is not other.root:
            self.root._one_with = other.root


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where the channels of a value lie, and what is known of them.

    Attributes:
      channels: which.
      axis: along which they lie.
      repeat: how often the axis goes through all of them, more than once after pixels
        and channels were reshaped into one axis.
      values: [C], what a channel is everywhere, where that is known.
      known: bool [C], whether it is.
    """

    channels: Channels
    axis: int
    repeat: int
    values: np.ndarray
    known: np.ndarray

    @property
    def width(self) -> int:
        """C."""
        return self.channels.width

    @property
    def zero(self) -> np.ndarray:
        """Which channels are zero everywhere, bool [C]."""
        return self.known & (self.values == 0)

    def moved(self, axis: int) -> "Place":
        """The same along another axis."""
        return dataclasses.replace(self, axis=axis)

    def knowing(self, known: np.ndarray) -> "Place":
        """The same with less known."""
        return dataclasses.replace(self, known=self.known & known)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixing:
    """Sums of products with constant weights over channels.

    Attributes:
      source: the channels that go in.
      output: those that come out.
      matters: bool [C, O], which make a difference to which: they are not zero, nor
        are all weights between the two.
    """

    source: Place
    output: Place
    matters: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """What an operation does with channels.

    Attributes:
      outputs: the place of each output; None where it has no channels.
      constants: (input, axis, place) of each axis of a constant input that loses the
        entries of the channels that a place loses.
      mixing: which channels it mixes, if it does.
      silent: bool [O], output channels of a convolution or matrix product without any
        weight.
      held: inputs whose channels all have to stay.
      why: they have to.
    """

    outputs: tuple[Place | None, ...]
    constants: tuple[tuple[int, int, Place], ...] = ()
    mixing: Mixing | None = None
    silent: np.ndarray | None = None
    held: tuple[Place, ...] = ()
    why: str = ""
