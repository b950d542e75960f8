"""Names of leaves, and which leaves are sparsifiable."""

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

Where = Callable[[str, Any], bool]


def flatten_with_paths(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves of a tree, each with its path such as `block_1/conv/kernel`.

    The trailing `value` of an nnx variable is left out.

    Args:
      tree: any pytree.

    Returns:
      (list of (path, leaf) in the order of `jax.tree.leaves`, tree structure).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [(path_string(path), leaf) for path, leaf in leaves], structure


def path_string(path: tuple[Any, ...]) -> str:
    """The name of a leaf from its key path."""
    is_nnx_value = (
        len(path) > 1
        and isinstance(path[-1], jax.tree_util.GetAttrKey)
        and path[-1].name == "value"
    )
    path = path[:-1] if is_nnx_value else path
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(pattern: str, path: str) -> bool:
    """Whether a glob such as `*/conv_1/kernel` matches a path (case matters)."""
    return fnmatch.fnmatchcase(path, pattern)


def require_match(patterns: Iterable[str], paths: Iterable[str], argument: str) -> None:
    """Raises unless every pattern matches some path.

    Args:
      patterns: globs.
      paths: the paths there are.
      argument: name of the argument the patterns came in, for the message.

    Raises:
      ValueError: if a pattern matches nothing.
    """
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            raise ValueError(
                f"{argument}: pattern {pattern!r} matches no sparsifiable leaf; "
                f"the paths are {_some(paths)}."
            )


def sparsifiable(params: Any, where: Where | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the leaves that may be sparse, by path.

    Args:
      params: parameter tree.
      where: `where(path, leaf) -> bool`. By default floating leaves with at least
        two axes longer than one whose last path entry is `kernel`; in a tree with
        no leaf of that name, any floating leaf with at least two such axes.

    Returns:
      Shapes by path, in the order of the tree.

    Raises:
      ValueError: if there is none, or two leaves have the same path.
    """
    leaves, _ = flatten_with_paths(params)
    where = where or default_where([path for path, _ in leaves])
    chosen = [(path, leaf) for path, leaf in leaves if where(path, leaf)]
    if not chosen:
        raise ValueError(
            "no leaf of the parameters is sparsifiable: by default that takes a "
            "floating leaf with at least two axes longer than 1 (named 'kernel' where "
            "that name is used); say which ones with where=. The paths are "
            f"{_some(path for path, _ in leaves)}."
        )
    shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in chosen}
    if len(shapes) < len(chosen):
        raise ValueError(
            f"two sparsifiable leaves have the same path, among {_some(shapes)}; "
            "rename one of them."
        )
    for path, leaf in chosen:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{path}: where= chose a leaf of type {jnp.result_type(leaf)}; only "
                "floating leaves can be sparse, so leave it out."
            )
    return shapes


def default_where(paths: Iterable[str]) -> Where:
    """The rule that holds where the caller gives none; see `sparsifiable`."""
    named = any(_last(path) == "kernel" for path in paths)

    def where(path: str, leaf: Any) -> bool:
        is_matrix = sum(axis > 1 for axis in jnp.shape(leaf)) >= 2
        is_floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return is_matrix and is_floating and (not named or _last(path) == "kernel")

    return where


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _some(paths: Iterable[str], limit: int = 12) -> str:
    paths = list(paths)
    text = ", ".join(paths[:limit])
    return text + (f", ... ({len(paths)} in all)" if len(paths) > limit else "")
