"""From the config's model section to a Flax module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.config import Config
from neurrev_jax import models


def count_blocks(config: Config) -> int:
    """The blocks of the network: what can be frozen one after the other.

    Args:
      config: a validated ``model`` section.

    Returns:
      Their number; a stem counts as one, the classifier is none.
    """
    if config.name == "mobilenet":
        return len(models.MobileNetV1().widths)
    has_stem = config.name != "vgg"
    return has_stem + sum(config.stage_sizes)


def make_network(config: Config, num_classes: int, axis_name: str) -> nn.Module:
    """Builds the network.

    Args:
      config: a validated ``model`` section.
      num_classes: number of classes.
      axis_name: name of the axis over which training is mapped.

    Returns:
      A module called as ``module(images, train=...)``.

    Raises:
      ValueError: from the networks, for what does not fit them.
    """
    is_cpu = jax.default_backend() == "cpu"
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "activation": config.activation,
        "hardware": config.hardware_activation,
        "axis_name": axis_name if config.sync_batch_norm else None,
        "convolution": models.loop_convolution if is_cpu else None,
        "dtype": jnp.dtype(config.dtype),
    }
    if config.name == "mobilenet":
        return models.MobileNetV1(width_multiplier=config.width_multiplier, **common)
    stages = {
        "stage_sizes": tuple(config.stage_sizes),
        "widths": tuple(config.widths),
    }
    if config.name == "imagenet_resnet":
        return models.ImageNetResNet(block=config.block, **stages, **common)
    if config.name == "vgg":
        return models.VGG(**stages, **common)
    return models.ResNet(**stages, **common)
