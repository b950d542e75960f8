"""The per-parameter arrays ("slots") in an inner optimizer's state.

They are found by structure, never by the class of the state: `optax.tree.map_params`
knows which parts of a state mirror the parameters. Slots of another shape than
their leaf (Adafactor's factored moments) are left alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from neurrev_jax._src import base
from neurrev_jax._src import masks as masks_lib


class _Index:
    """Number of a parameter leaf; not a pytree, so it survives `tree.map`."""

    def __init__(self, number: int):
        self.number = number


def leaf_numbers(
    inner: optax.GradientTransformation, inner_state: Any, params: base.Params
) -> list[int]:
    """For each leaf of the state, the parameter leaf it is a slot of, or -1.

    Args:
      inner: the inner optimizer.
      inner_state: its state.
      params: the parameters.

    Returns:
      One int per leaf of `inner_state`; -1 also where the shapes differ.
    """
    leaves, structure = jax.tree.flatten(params)
    numbers = structure.unflatten([_Index(i) for i in range(len(leaves))])

    def number(slot, index):
        fits = isinstance(index, _Index) and (
            jnp.shape(slot) == jnp.shape(leaves[index.number])
        )
        # A hole (`optax.MaskedNode`) has no leaves, so it has no number either.
        return (
            slot
            if isinstance(slot, optax.MaskedNode)
            else (index if fits else _Index(-1))
        )

    numbered = optax.tree.map_params(
        inner,
        number,
        inner_state,
        numbers,
        transform_non_params=lambda _: _Index(-1),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    found = [
        leaf.number if isinstance(leaf, _Index) else -1
        for leaf in jax.tree.leaves(numbered)
    ]
    if len(found) != len(jax.tree.leaves(inner_state)):
        raise ValueError(
            "the inner optimizer's state does not have the structure that its init "
            "makes for these parameters; pass the state of this very transformation."
        )
    return found


def mask_slots(
    inner_state: Any,
    numbers: list[int],
    params: base.Params,
    keep: base.Masks,
) -> Any:
    """Zeroes slots where `keep` is False; state leaves that are no slots pass.

    Args:
      inner_state: state of the inner optimizer.
      numbers: what `leaf_numbers` returned for it.
      params: the parameters.
      keep: mask tree.

    Returns:
      A state of the same structure and types.
    """
    keeps = jax.tree.leaves(masks_lib.broadcast(keep, params))
    leaves, structure = jax.tree.flatten(inner_state)
    leaves = [
        jnp.where(keeps[number], leaf, jnp.zeros_like(leaf))
        if number >= 0 and jnp.ndim(keeps[number])
        else leaf
        for leaf, number in zip(leaves, numbers, strict=True)
    ]
    return structure.unflatten(leaves)
