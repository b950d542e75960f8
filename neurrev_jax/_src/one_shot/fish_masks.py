"""FISH: masks by the empirical Fisher information."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import paths as paths_lib
from neurrev_jax._src.one_shot import chosen as chosen_lib


@base.Card(prunes="smallest sum over examples of (dL/dw)^2")
def fish_masks(
    params: base.Params,
    sparsity: Any = 0.9,
    *,
    loss_fn: Callable[[base.Params, Any], jax.Array],
    batch: Any,
    mode: Literal["zero", "update"] = "zero",
    distribution: Any = "global",
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> base.Masks:
    """Fisher-induced sparse unchanging masks (FISH; Sung et al., 2021, section 3).

    Keeps the entries with the largest sum over examples of (dl_i/dw)^2, the gradient of
    every example squared by itself.

    The original selects the parameters to *update*: the others stay at the values they
    were given, they are not zero. That is `mode="update"`, which chooses among all
    parameters, biases and norm parameters too. Train with

        sparse_transform(inner, static(inactive="hold"), masks=masks)

    In `mode="zero"` the masks are like all others: what is not selected is zero, and
    by default only kernels are selected from. Train with

        sparse_transform(inner, static(), masks=masks)

    Args:
      params: parameter tree, initial or trained.
      sparsity: fraction of entries that are not selected, in [0, 1) (the original:
        0.995 on CIFAR).
      loss_fn: `loss_fn(params, batch)`, called with one example at a time (arrays
        [1, ...]); batch norm in inference mode. Where labels drawn from the network's
        own predictions are wanted instead of the true ones, draw them into `batch`.
      batch: pytree of arrays with examples along the first axis (the original: 256 on
        CIFAR).
      mode: `"zero"` or `"update"`, as said above; decides what `where` is by default.
      distribution: `"global"` keeps N - floor(s N) of all N entries of the
        sparsifiable leaves together; anything that `sparse_transform` takes keeps
        the counts per leaf that it says, and then `sparsity` may be by path.
      where: `where(path, leaf) -> bool`, which leaves are selected from.
      key: an int, a typed key or raw key data; settles ties.

    Returns:
      A mask tree.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution or mode, a
        tree without a leaf to select from, or a loss that is no scalar.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((2, 2))}
    >>> loss = lambda params, x: jnp.sum(params["kernel"] * x)
    >>> x = jnp.array([[[1.0, 1.0], [0.0, 0.5]], [[-1.0, 0.5], [0.0, 0.5]]])
    >>> fish_masks(params, 0.5, loss_fn=loss, batch=x)["kernel"]
    Array([[ True,  True],
           [False, False]], dtype=bool)
    """
    if mode not in ("zero", "update"):
        raise ValueError(f"mode={mode!r} is unknown; choose 'zero' or 'update'.")
    if mode == "update" and where is None:
        where = _is_floating
    chosen = chosen_lib.Chosen(params, sparsity, distribution, where)

    def add_example(total, example):
        one = jax.tree.map(lambda x: x[None], example)
        grads = chosen_lib.gradient(loss_fn, chosen, one)(chosen.leaves)
        squares = [jnp.square(g.astype(jnp.float32)) for g in grads]
        return [t + s for t, s in zip(total, squares, strict=True)], None

    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in chosen.leaves]
    fisher, _ = jax.lax.scan(add_example, zeros, batch)
    return chosen.keep_highest(fisher, key)


def _is_floating(path: str, leaf: Any) -> bool:
    del path
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
