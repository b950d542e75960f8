"""One step of stochastic gradient descent on arrays by name, under masks.

Shape letters: B examples, K classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tflite_export.trainer import MASKS, MOMENTUM, PARAMS, STATS

Function = Callable[[dict[str, Any]], dict[str, Any]]
"""From arrays by name to arrays by name."""


class Step:
    """One step of SGD on arrays by name.

    Args:
      variables: give the structure of the trees.
      momentum: see `convert_training_step`.
      weight_decay: see `convert_training_step`.
      nesterov: see `convert_training_step`.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ):
        self._structures = {
            PARAMS: jax.tree.structure(variables["params"]),
            STATS: jax.tree.structure(variables.get("batch_stats", {})),
        }
        self._names = {
            PARAMS: list(named(PARAMS, variables["params"])),
            STATS: list(named(STATS, variables.get("batch_stats", {}))),
        }
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._nesterov = nesterov

    def trees(self, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Parameters and batch statistics as the network takes them."""
        params, stats = (
            self._structures[prefix].unflatten([inputs[n] for n in self._names[prefix]])
            for prefix in (PARAMS, STATS)
        )
        return params, stats

    def of(self, forward: Callable[..., Any]) -> Function:
        """The step that differentiates ``forward(params, stats, images)``."""

        def step(inputs: dict[str, Any]) -> dict[str, Any]:
            params, stats = self.trees(inputs)

            def loss_of(params: Any) -> Any:
                logits, new = forward(params, stats, inputs["images"])
                classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
                # A product, because a gather by labels would scatter its gradient.
                is_label = (inputs["labels"][:, None] == classes[None]).astype(
                    logits.dtype
                )
                losses = -jnp.sum(jax.nn.log_softmax(logits) * is_label, axis=-1)
                hits = jnp.argmax(logits, axis=-1) == inputs["labels"]
                return jnp.mean(losses), (jnp.mean(hits.astype(jnp.float32)), new)

            (loss, (accuracy, stats)), grads = jax.value_and_grad(
                loss_of, has_aux=True
            )(params)
            outputs = {"loss": loss, "accuracy": accuracy, **named(STATS, stats)}
            for name, gradient in named(PARAMS, grads).items():
                outputs.update(self._update(name, gradient, inputs))
            return outputs

        return step

    def _update(self, name: str, g: jax.Array, inputs: Mapping[str, Any]) -> Any:
        """The new weight, momentum and mask of one leaf."""
        path = name.removeprefix(PARAMS)
        mask = inputs.get(MASKS + path)

        def masked(x: jax.Array) -> jax.Array:
            # Not a product: NaN times zero is NaN.
            return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))

        w, m = inputs[name], inputs[MOMENTUM + path]
        g = masked(g) + self._weight_decay * w if self._weight_decay else masked(g)
        m = masked(self._momentum * m + g) if self._momentum else masked(g)
        direction = self._momentum * m + g if self._nesterov else m
        w = masked(w - inputs["learning_rate"] * direction)
        return {name: w, MOMENTUM + path: m} | (
            {} if mask is None else {MASKS + path: mask}
        )


def named(prefix: str, tree: Any) -> dict[str, Any]:
    """Leaves by name, in the order of the tree.

    Args:
      prefix: what the names begin with.
      tree: a pytree.

    Returns:
      From the prefix and the path to the leaf.

    Example:
      >>> named("params/", {"stem": {"kernel": 3.0}})
      {'params/stem/kernel': 3.0}
    """
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
