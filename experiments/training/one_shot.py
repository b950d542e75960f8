"""Masks that are drawn once: from the initial weights and some training examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import neurrev_jax
from experiments.config import Config
from experiments.data.augment import normalize
from experiments.data.base import Split
from experiments.distributed import on_primary
from experiments.errors import UsageError, one_line
from experiments.training.feeds import Feed
from experiments.training.state import init_variables
from experiments.training.steps import cross_entropy


def check(config: Config, data: Any) -> None:
    """Checks what a method asks of the training examples, before anything is touched.

    Args:
      config: the resolved config of any method.
      data: the data set, as `load` returns it.

    Raises:
      UsageError: if there are not the examples that it scores by.
    """
    if config.method.name == "grasp":
        _balanced(config, data.train.labels)


def _balanced(config: Config, labels: np.ndarray) -> np.ndarray:
    """Numbers of as many examples of every class, to be cut into ``parts``."""
    own = config.method[config.method.name]
    try:
        chosen = neurrev_jax.class_balanced_indices(
            labels, own.examples_per_class, config.seed
        )
    except ValueError as error:
        raise UsageError(
            f"method.{config.method.name}.examples_per_class="
            f"{own.examples_per_class}: {one_line(error)}"
        ) from error
    if len(chosen) % own.parts:
        raise UsageError(
            f"method.{config.method.name}.parts={own.parts} does not divide the "
            f"{len(chosen)} examples, {own.examples_per_class} of each class, that the "
            "masks are drawn by; choose a divisor, or 1."
        )
    return chosen


def draw_masks(config: Config, model: nn.Module, feed: Feed) -> Any:
    """The masks that ``config.method.name``, a one-shot method, starts with.

    They follow from the seed alone. To be called by all processes together; one of
    them scores, so that all have the same.

    Args:
      config: the method's resolved config.
      model: the network.
      feed: the data.

    Returns:
      A mask tree of NumPy arrays.

    Raises:
      UsageError: for options that the data or the library do not accept.
    """
    own = config.method[config.method.name]
    if "examples_per_class" in own:
        examples = feed.take(_balanced(config, feed.train_labels()))
    else:
        examples = feed.sample(own.get("examples", 0), config.seed)
    try:
        return on_primary(lambda: _score(config, model, feed, examples))
    except ValueError as error:
        raise UsageError(f"method {config.method.name}: {one_line(error)}") from error


def _score(config: Config, model: nn.Module, feed: Feed, examples: Split) -> Any:
    name, info = config.method.name, feed.info
    options = config.method[name].to_dict()
    for used in ("examples", "examples_per_class"):
        options.pop(used, None)
    is_global = options.pop("spread") == "global"
    options["distribution"] = "global" if is_global else config.distribution
    # On one device, whose batch norms have no others to ask.
    model = model.clone(axis_name=None)
    sample = jnp.zeros((1, *info.image_shape), jnp.float32)
    batch = (normalize(info, jnp.asarray(examples.images)), examples.labels)

    def masks() -> Any:
        variables = init_variables(model, sample, config.seed)
        params, stats = variables["params"], variables.get("batch_stats", {})

        def loss_fn(params: Any, batch: Any, temperature: float = 1.0) -> jax.Array:
            images, labels = batch
            # SNIP and GraSP score what training will see; FISH an example at a time.
            is_train = name != "fish"
            logits: Any = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=is_train,
                mutable=["batch_stats"] if is_train else False,
            )
            logits = logits[0] if is_train else logits
            return jnp.mean(cross_entropy(logits / temperature, labels))

        def apply_fn(params: Any, stats: Any, inputs: jax.Array) -> Any:
            return model.apply({"params": params, "batch_stats": stats}, inputs)

        given: dict[str, Any] = {
            "magnitude": {},
            "synflow": {
                "apply_fn": apply_fn,
                "input_shape": sample.shape,
                "stats": stats,
            },
        }.get(name, {"loss_fn": loss_fn, "batch": batch})
        key = jax.random.fold_in(jax.random.key(config.seed), 2)
        return _DRAW[name](params, config.sparsity, key=key, **options, **given)

    return jax.tree.map(np.asarray, jax.jit(masks)())


_DRAW = {
    "magnitude": neurrev_jax.magnitude_masks,
    "snip": neurrev_jax.snip_masks,
    "grasp": neurrev_jax.grasp_masks,
    "synflow": neurrev_jax.synflow_masks,
    "fish": neurrev_jax.fish_masks,
}
