"""From the config's model section to a Flax module."""

import jax
from flax import linen as nn

from experiments.config import Config, close_match
from experiments.errors import UsageError
from neurrev_jax import models

_NETWORKS = ("resnet",)


def make_network(config: Config, num_classes: int, axis_name: str) -> nn.Module:
    """Builds the network.

    Args:
      config: the config's ``model`` section.
      num_classes: number of classes.
      axis_name: name of the axis over which training is mapped.

    Returns:
      A module called as ``module(images, train=...)``.

    Raises:
      UsageError: for an unknown name.
    """
    if config.name not in _NETWORKS:
        raise UsageError(
            f"model.name: there is no network {config.name!r}; "
            f"{close_match(config.name, _NETWORKS)}"
        )
    is_cpu = jax.default_backend() == "cpu"
    return models.ResNet(
        stage_sizes=tuple(config.stage_sizes),
        widths=tuple(config.widths),
        num_classes=num_classes,
        axis_name=axis_name if config.sync_batch_norm else None,
        convolution=models.loop_convolution if is_cpu else None,
    )
