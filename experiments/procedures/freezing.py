"""Layer freezing (SpFDE; Yuan et al. 2022, *Layer Freezing & Data Sieving*).

Late in training the first blocks of the network are frozen, one after the other:
their weights, masks and batch statistics stay as they are, and no gradient is computed
through them. A tree of which frozen leaves are missing holds None in their place.
"""

import dataclasses
import re
from typing import Any

import jax

_CLASSIFIER = "classifier"


@dataclasses.dataclass(frozen=True)
class Freezing:
    """When blocks are frozen.

    Attributes:
      blocks: blocks of the network; the last one is never frozen.
      first_epoch: from its beginning on the first block is frozen.
      epochs: of training.

    >>> freezing = Freezing(blocks=4, first_epoch=6, epochs=12)
    >>> [freezing.frozen_blocks(epoch) for epoch in range(12)]
    [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    """

    blocks: int
    first_epoch: int
    epochs: int

    def frozen_blocks(self, epoch: int) -> int:
        """Blocks that are frozen in an epoch, at equal distances until the end."""
        if epoch < self.first_epoch:
            return 0
        since, span = epoch - self.first_epoch, self.epochs - self.first_epoch
        most = self.blocks - 1
        return min(most, 1 + since * most // span)


def blocks(tree: Any) -> tuple[str, ...]:
    """The blocks of a network of `neurrev_jax.models`, from input to output.

    Args:
      tree: its parameters.

    Returns:
      Paths such as ``stem`` and ``stage_1/block_1``; the classifier is none.
    """
    found = {_block_of(path) for path in _paths(tree)} - {_CLASSIFIER}
    return tuple(sorted(found, key=depth))


def is_frozen(tree: Any, frozen_blocks: int) -> Any:
    """Which leaves belong to the first blocks.

    Args:
      tree: parameters, or batch statistics, of a network of `neurrev_jax.models`.
      frozen_blocks: how many blocks are frozen.

    Returns:
      A tree of bool.

    >>> layer = {"conv": {"kernel": 0.0}}
    >>> tree = {"stage_1": {"layer_1": layer, "layer_2": layer}, "classifier": layer}
    >>> is_frozen(tree, 1)["stage_1"]
    {'layer_1': {'conv': {'kernel': True}}, 'layer_2': {'conv': {'kernel': False}}}
    """
    first = blocks(tree)[:frozen_blocks]
    structure = jax.tree.structure(tree)
    return structure.unflatten(_block_of(path) in first for path in _paths(tree))


def unfrozen(tree: Any, frozen: Any) -> Any:
    """The tree without its frozen leaves.

    >>> unfrozen({"a": 1, "b": 2}, {"a": True, "b": False})
    {'a': None, 'b': 2}
    """
    return jax.tree.map(lambda flag, x: None if flag else x, frozen, tree)


def merge(part: Any, whole: Any, frozen: Any) -> Any:
    """The leaves of `part` where they are not frozen, those of `whole` where they are.

    >>> merge({"a": None, "b": 3}, {"a": 1, "b": 2}, {"a": True, "b": False})
    {'a': 1, 'b': 3}
    """
    return jax.tree.map(
        lambda flag, old, new: old if flag else new, frozen, whole, part
    )


def depth(path: str) -> tuple[int, list[str | int]]:
    """Sorts the layers of a network roughly from input to output.

    >>> sorted(["classifier", "stage_1/block_10", "stage_1/block_9", "stem"], key=depth)
    ['stem', 'stage_1/block_9', 'stage_1/block_10', 'classifier']
    """
    place = {"stem": 0, "layer_1": 0, _CLASSIFIER: 2}.get(path.split("/")[0], 1)
    # Numbers by value: block_10 comes after block_9.
    pieces = re.split(r"(\d+)", path)
    return place, [int(piece) if piece.isdigit() else piece for piece in pieces]


def _paths(tree: Any) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _block_of(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[: 2 if parts[0].startswith("stage_") else 1])
