"""Mask trees: what is active, how to apply, find, count and store it.

A mask tree has the structure of the parameters and only boolean leaves: shape `()`
and True where the leaf may never be rewired, otherwise the leaf's shape, True =
active.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neurrev_jax._src import base
from neurrev_jax._src import paths as paths_lib


def apply_masks(params: base.Params, masks: base.Masks) -> base.Params:
    """Sets inactive entries to zero.

    Args:
      params: parameter tree.
      masks: mask tree of the same structure.

    Returns:
      A tree like `params`; active entries and dense leaves bit for bit the same.

    Raises:
      ValueError: if the structures or shapes do not fit.

    >>> import jax.numpy as jnp
    >>> apply_masks({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})
    {'w': Array([1., 0.], dtype=float32)}
    """
    check_masks(params, masks)
    return tree_map(
        lambda p, m: p if jnp.ndim(m) == 0 else jnp.where(m, p, jnp.zeros_like(p)),
        params,
        masks,
    )


def tree_map(fn: Any, params: base.Params, masks: base.Masks, *rest: Any) -> Any:
    """Maps over parameters with their masks; a prefix in `masks` covers a subtree."""
    full = jax.tree.leaves(broadcast(masks, params))
    leaves, structure = jax.tree.flatten(params)
    others = [structure.flatten_up_to(tree) for tree in rest]
    return structure.unflatten(map(fn, leaves, full, *others))


def broadcast(prefix: Any, tree: Any) -> Any:
    """Repeats the leaves of a prefix tree over the subtrees of `tree` they cover."""
    if jax.tree.structure(prefix) == jax.tree.structure(tree):
        return prefix
    return jax.tree.map(
        lambda leaf, sub: jax.tree.map(lambda _: leaf, sub), prefix, tree
    )


def check_masks(params: base.Params, masks: base.Masks) -> None:
    """Raises unless the masks have the structure, shapes and type that fit.

    Args:
      params: parameter tree (arrays or `jax.ShapeDtypeStruct`).
      masks: mask tree.

    Raises:
      ValueError: naming the first leaf that does not fit, and how.
    """
    try:
        full = jax.tree.leaves(broadcast(masks, params))
    except ValueError as error:
        raise ValueError(
            "the masks do not have the structure of the parameters; build them with "
            f"jax.tree.map over these very parameters. ({error})"
        ) from error
    for (path, leaf), mask in zip(
        paths_lib.flatten_with_paths(params)[0], full, strict=True
    ):
        if jnp.result_type(mask) != jnp.bool_:
            raise ValueError(
                f"{path}: the mask has type {jnp.result_type(mask)} and must be "
                "boolean, True where active; convert it with `mask != 0`."
            )
        if jnp.ndim(mask) and jnp.shape(mask) != jnp.shape(leaf):
            raise ValueError(
                f"{path}: a mask of shape {jnp.shape(mask)} does not fit a leaf of "
                f"shape {jnp.shape(leaf)}; it must have that shape, or () where the "
                "leaf is dense."
            )


def apply_where_seen(fn: Any, params: base.Params, masks: base.Masks) -> base.Params:
    """`fn(params, masks)` on the leaves that the masks cover, holes untouched.

    Args:
      fn: maps a parameter tree and its masks to a parameter tree.
      params: the whole parameter tree.
      masks: masks of one sparse state, `optax.MaskedNode` where it sees nothing.

    Returns:
      A tree like `params`.
    """
    seen = jax.tree.map(
        lambda m, p: m if _is_hole(m) else p, masks, params, is_leaf=_is_hole
    )
    changed = fn(seen, masks)
    return jax.tree.map(
        lambda c, p: p if _is_hole(c) else c, changed, params, is_leaf=_is_hole
    )


def get_masks(opt_state: Any) -> base.Masks:
    """The masks in an optimizer state, wherever the sparse state is nested in it.

    States of several sparse transformations that share out one tree (as under
    `optax.partition` or `optax.masked`) are merged. A leaf that none of them sees
    counts as dense.

    Args:
      opt_state: the state of any Optax transformation.

    Returns:
      A mask tree.

    Raises:
      ValueError: if there is no sparse state, or two that both see one leaf.

    >>> import jax.numpy as jnp, neurrev_jax, optax
    >>> tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=0.5)
    >>> state = optax.chain(optax.identity(), tx).init({"w": jnp.ones((2, 4))})
    >>> int(get_masks(state)["w"].sum())
    4
    """
    masks = [state.masks for state in find_states(opt_state)]
    merged = masks[0]
    for other in masks[1:]:
        merged = _merge(merged, other)
    return jax.tree.map(
        lambda m: jnp.ones((), bool) if _is_hole(m) else m, merged, is_leaf=_is_hole
    )


def find_states(opt_state: Any) -> list[base.SparseState]:
    """All sparse states anywhere in an optimizer state.

    Args:
      opt_state: the state of any Optax transformation.

    Returns:
      At least one `SparseState`.

    Raises:
      ValueError: if there is none.
    """
    found: list[base.SparseState] = []

    def visit(tree):
        for leaf in jax.tree.leaves(
            tree, is_leaf=lambda x: isinstance(x, base.SparseState)
        ):
            if isinstance(leaf, base.SparseState):
                found.append(leaf)
                visit(leaf.inner_state)

    visit(opt_state)
    if not found:
        raise ValueError(
            f"the optimizer state of type {type(opt_state).__name__} holds no "
            "SparseState; it must come from neurrev_jax.sparse_transform(...).init."
        )
    return found


def _is_hole(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _merge(one: base.Masks, two: base.Masks) -> base.Masks:
    def join(a, b):
        if _is_hole(a):
            return b
        if _is_hole(b):
            return a
        raise ValueError(
            "two sparse transformations both hold masks for one leaf; let each leaf "
            "belong to one of them, with optax.partition or optax.masked."
        )

    # A hole may stand for a whole subtree on either side.
    def walk(a, b):
        if _is_hole(a) or _is_hole(b):
            return join(a, b)
        below_a, structure_a = jax.tree.flatten(a, is_leaf=lambda x: x is not a)
        below_b, structure_b = jax.tree.flatten(b, is_leaf=lambda x: x is not b)
        if structure_a != structure_b or jax.tree_util.all_leaves([a]):
            return join(a, b)
        return structure_a.unflatten(map(walk, below_a, below_b))

    return walk(one, two)


def density(masks: base.Masks) -> jax.Array:
    """Fraction of active entries among the leaves that may be rewired.

    Args:
      masks: mask tree.

    Returns:
      float32[]; 1 where no leaf may be rewired.

    >>> import jax.numpy as jnp
    >>> float(density({"w": jnp.array([True, False]), "b": jnp.array(True)}))
    0.5
    """
    sparse = [mask for mask in jax.tree.leaves(masks) if jnp.ndim(mask)]
    if not sparse:
        return jnp.float32(1)
    active = sum(jnp.sum(mask, dtype=jnp.int32) for mask in sparse)
    return jnp.float32(active) / jnp.float32(sum(mask.size for mask in sparse))


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One leaf, or a total over leaves.

    Attributes:
      path: path of the leaf, or "total".
      shape: its shape; () for a total.
      size: number of entries.
      active: number of active entries.
      rewirable: whether the method may rewire the leaf.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    active: int
    rewirable: bool

    @property
    def density(self) -> float:
        """Fraction of active entries."""
        return self.active / self.size

    @property
    def sparsity(self) -> float:
        """Fraction of inactive entries."""
        return 1 - self.active / self.size


@dataclasses.dataclass(frozen=True)
class Summary:
    """A mask tree leaf by leaf; iterate over it, or print it.

    Attributes:
      layers: the kernels (leaves of two or more axes) and all rewirable leaves.
      total: over the kernels; in a tree without any, over `layers`. So norm
        parameters that have masks (Chase's) are listed, but are not in the sparsity.
    """

    layers: tuple[LayerSummary, ...]
    total: LayerSummary

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        rows = [("path", "shape", "size", "active", "sparsity")]
        for layer in (*self.layers, self.total):
            shape = "x".join(map(str, layer.shape))
            sparsity = f"{layer.sparsity:.4f}" if layer.active < layer.size else "dense"
            rows.append(
                (layer.path, shape, f"{layer.size:,}", f"{layer.active:,}", sparsity)
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def summarize(params: base.Params, masks: base.Masks) -> Summary:
    """Counts active entries layer by layer; host side, not for use under jit.

    Args:
      params: parameter tree (only its shapes are read).
      masks: mask tree of the same structure.

    Returns:
      A `Summary` of the kernels (leaves of two or more axes) and all rewirable
      leaves. Biases and norm parameters that are dense are left out.

    Raises:
      ValueError: if the structures or shapes do not fit.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((2, 4)), "v": jnp.ones((4, 4)), "b": jnp.ones(4)}
    >>> masks = {"w": params["w"] > 2, "v": jnp.array(True), "b": jnp.array(True)}
    >>> print(summarize(params, masks))
    path   shape  size  active  sparsity
    v      4x4      16      16     dense
    w      2x4       8       0    1.0000
    total           24      16    0.3333
    """
    check_masks(params, masks)
    layers = []
    full = jax.tree.leaves(broadcast(masks, params))
    for (path, leaf), mask in zip(
        paths_lib.flatten_with_paths(params)[0], full, strict=True
    ):
        shape = tuple(jnp.shape(leaf))
        rewirable = jnp.ndim(mask) > 0
        if not rewirable and len(shape) < 2:
            continue
        size = math.prod(shape)
        active = int(np.sum(np.asarray(mask))) if rewirable else size
        layers.append(LayerSummary(path, shape, size, active, rewirable))
    kernels = [layer for layer in layers if len(layer.shape) > 1] or layers
    total = LayerSummary(
        "total",
        (),
        sum(layer.size for layer in kernels),
        sum(layer.active for layer in kernels),
        any(layer.rewirable for layer in kernels),
    )
    return Summary(tuple(layers), total)


def pack_masks(masks: base.Masks) -> Any:
    """Packs masks into one bit per weight, for storage.

    Args:
      masks: mask tree.

    Returns:
      A tree with uint8[ceil(size / 8)] for every rewirable leaf; the other leaves
      as they are.

    >>> import jax.numpy as jnp
    >>> pack_masks({"w": jnp.array([True, False, True]), "b": jnp.array(True)})
    {'b': Array(True, dtype=bool), 'w': Array([160], dtype=uint8)}
    """
    return jax.tree.map(
        lambda m: jnp.packbits(jnp.reshape(m, (-1,))) if jnp.ndim(m) else m, masks
    )


def unpack_masks(packed: Any, params: base.Params) -> base.Masks:
    """Undoes `pack_masks`.

    Args:
      packed: what `pack_masks` returned.
      params: parameter tree (only its shapes are read).

    Returns:
      The mask tree.

    Raises:
      ValueError: if the structures or sizes do not fit.
    """
    if jax.tree.structure(packed) != jax.tree.structure(params):
        raise ValueError(
            "the packed masks do not have the structure of the parameters; unpack "
            "them with the parameters they were packed for."
        )

    def unpack(path, leaf, bits):
        if jnp.ndim(bits) == 0:
            return jnp.asarray(bits)
        size = math.prod(jnp.shape(leaf))
        if bits.shape != (-(-size // 8),):
            raise ValueError(
                f"{paths_lib.path_string(path)}: {bits.size} bytes do not hold the "
                f"mask of a leaf of shape {jnp.shape(leaf)}, which takes "
                f"{-(-size // 8)}; unpack with the parameters it was packed for."
            )
        flat = jnp.unpackbits(jnp.asarray(bits), count=size)
        return jnp.reshape(flat, jnp.shape(leaf)).astype(bool)

    return jax.tree_util.tree_map_with_path(unpack, params, packed)
