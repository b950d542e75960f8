"""GraSP: masks that preserve the gradient flow."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from neurrev_jax._src import base, selection
from neurrev_jax._src import paths as paths_lib
from neurrev_jax._src.one_shot import chosen as chosen_lib


@base.Card(prunes="largest -w (H g)")
def grasp_masks(
    params: base.Params,
    sparsity: Any = 0.9,
    *,
    loss_fn: Callable[[base.Params, Any, float], jax.Array],
    batch: Any,
    temperature: float = 200.0,
    parts: int = 2,
    redraw: Literal["linear", "nothing"] = "linear",
    distribution: Any = "global",
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> base.Masks:
    """Gradient signal preservation (GraSP; Wang et al., 2020, Algorithms 1 and 2).

    Removes the weights with the highest S = -w (H g): those whose removal would
    lower the norm of the gradient g least, or raise it. H is the Hessian by the scored
    weights. g is the sum over the parts of the batch, H g the sum of each part's.

    Args:
      params: parameter tree, freshly initialized.
      sparsity: fraction of inactive entries in [0, 1).
      loss_fn: `loss_fn(params, batch, temperature)`, the mean loss of logits divided
        by the temperature.
      batch: pytree of arrays with examples along the first axis. The original takes
        10 examples of every class on CIFAR, see `class_balanced_indices`.
      temperature: what logits are divided by, positive.
      parts: how many pieces the batch is cut into, in its order; a piece is held in
        memory at a time, and has its own batch statistics.
      redraw: `"linear"` scores two-dimensional kernels with values drawn anew by
        Xavier's normal initialization, as the published code does with the classifier;
        `"nothing"` scores all as they are. `params` stays as it is either way.
      distribution: `"global"` keeps N - floor(s N) of all N entries of the
        sparsifiable leaves together; anything that `sparse_transform` takes keeps
        the counts per leaf that it says, and then `sparsity` may be by path.
      where: `where(path, leaf) -> bool`, which leaves are sparsifiable.
      key: an int, a typed key or raw key data; draws and settles ties.

    Returns:
      A mask tree.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution or option, a
        tree without a sparsifiable leaf, a batch that does not divide into the parts,
        or a loss that is no scalar.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 3.0], [1.0, 1.0]])}
    >>> curvature = jnp.array([[2.0, 1.0], [1.0, 1.0]])
    >>> def loss_fn(params, batch, temperature):
    ...     return jnp.sum(batch * params["kernel"] ** 2) / 2 / temperature
    >>> grasp_masks(params, 0.5, loss_fn=loss_fn, batch=curvature[None], parts=1,
    ...             redraw="nothing")["kernel"]
    Array([[ True,  True],
           [False, False]], dtype=bool)
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be positive.")
    if redraw not in ("linear", "nothing"):
        raise ValueError(f"redraw={redraw!r} is unknown; choose 'linear' or 'nothing'.")
    chosen = chosen_lib.Chosen(params, sparsity, distribution, where)
    pieces = _cut(batch, parts)
    key_draw, key_ties = jax.random.split(selection.as_key(key))
    weights = list(chosen.leaves)
    if redraw == "linear":
        weights = [
            _xavier_normal(leaf, jax.random.fold_in(key_draw, i))
            if leaf.ndim == 2
            else leaf
            for i, leaf in enumerate(weights)
        ]

    def gradient_of(piece: Any) -> Callable[[list[jax.Array]], list[jax.Array]]:
        return chosen_lib.gradient(loss_fn, chosen, piece, temperature)

    flow = _sum_over(pieces, lambda piece: gradient_of(piece)(weights))

    def hessian_times_flow(piece: Any) -> list[jax.Array]:
        # Reverse over reverse: not every layer has a forward-mode derivative.
        def along(leaves: list[jax.Array]) -> jax.Array:
            products = [
                jnp.sum(g * f)
                for g, f in zip(gradient_of(piece)(leaves), flow, strict=True)
            ]
            return sum(products[1:], products[0])

        return jax.grad(along)(weights)

    curved = _sum_over(pieces, hessian_times_flow)
    keep = [w * hg for w, hg in zip(weights, curved, strict=True)]  # -S
    return chosen.keep_highest(keep, key_ties)


def class_balanced_indices(labels: Any, per_class: int, key: Any = 0) -> np.ndarray:
    """Picks as many examples of every class, the classes taking turns.

    Any run of whole turns is balanced, so pieces of a batch are too. Runs on the host.

    Args:
      labels: [B] integers.
      per_class: examples of each class that occurs, at least 1.
      key: an int, a typed key or raw key data; chooses among the examples.

    Returns:
      int64[classes * per_class], positions in `labels`, none twice.

    Raises:
      ValueError: if some class has fewer examples.

    >>> import numpy as np
    >>> labels = np.array([0, 1, 0, 1, 1, 0])
    >>> labels[class_balanced_indices(labels, 2)]
    array([0, 1, 0, 1])
    """
    labels = np.asarray(labels)
    if per_class < 1:
        raise ValueError(f"per_class={per_class!r} must be at least 1.")
    order = jax.random.permutation(selection.as_key(key), labels.size)
    order = np.asarray(order, np.int64)
    picked = []
    for label in np.unique(labels):
        found = order[labels[order] == label][:per_class]
        if found.size < per_class:
            raise ValueError(
                f"class {label} has {found.size} examples and per_class={per_class} "
                "are asked for; take fewer, or look among more examples."
            )
        picked.append(found)
    return np.stack(picked, axis=1).reshape(-1)


def _cut(batch: Any, parts: int) -> Any:
    """[B, ...] to [parts, B / parts, ...] in every leaf."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"batch: its arrays have first axes of {sorted(sizes)}; they must all have "
            "the examples along the first axis."
        )
    [(size,)] = sizes
    if parts < 1 or size % parts:
        raise ValueError(
            f"parts={parts!r} does not divide a batch of {size} examples; choose a "
            "divisor, or 1."
        )
    return jax.tree.map(
        lambda leaf: jnp.reshape(leaf, (parts, size // parts, *jnp.shape(leaf)[1:])),
        batch,
    )


def _sum_over(pieces: Any, fn: Callable[[Any], list[jax.Array]]) -> list[jax.Array]:
    """The sum of `fn` over the pieces, one after the other."""
    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    zeros = jax.tree.map(
        lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(fn, first)
    )

    def add(total, piece):
        return jax.tree.map(jnp.add, total, fn(piece)), None

    return jax.lax.scan(add, zeros, pieces)[0]


def _xavier_normal(kernel: jax.Array, key: jax.Array) -> jax.Array:
    """N(0, 2 / (n_in + n_out)) in the shape of a kernel [n_in, n_out]."""
    scale = np.sqrt(2 / sum(kernel.shape))
    return jax.random.normal(key, kernel.shape, kernel.dtype) * jnp.asarray(
        scale, kernel.dtype
    )
