"""Residual networks of the CIFAR type (He et al. 2016, section 4.2).

Shape letters: B examples, H and W pixels, C channels, K classes.

Module paths name the place in the network (``stage_2/block_1/conv_1``), because
they are what a summary of the masks prints and what a path pattern matches.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from neurrev_jax.models import layers
from neurrev_jax.models.activations import Activation
from neurrev_jax.models.convolution import Convolution


class BasicBlock(layers.Observed):
    """Two 3x3 convolutions and a shortcut, activated after the addition.

    The shortcut is the identity, or a 1x1 convolution with batch norm where the
    shape changes.

    Attributes:
      width: output channels.
      strides: stride of the first convolution and of the shortcut.
      parts: what the layers have in common.
    """

    width: int
    strides: int
    parts: layers.Parts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, width]."""
        parts, width = self.parts, self.width
        y = layers.conv(parts, width, 3, self.strides, "conv_1")(x)
        y = self.activate("relu_1", parts, parts.norm(name="norm_1")(y))
        y = layers.conv(parts, width, 3, 1, "conv_2")(y)
        y = parts.norm(name="norm_2")(y)
        if x.shape != y.shape:
            x = layers.conv(parts, width, 1, self.strides, "shortcut_conv")(x)
            x = parts.norm(name="shortcut_norm")(x)
        return self.activate("relu_2", parts, x + y)


class ResNet(nn.Module):
    """A residual network of the CIFAR type.

    Stem, one stage of basic blocks per width (every stage but the first halves the
    resolution), global average pool, linear classifier. Convolutions have no bias;
    batch norm has epsilon 1e-5 and Flax momentum 0.9.

    Every activation is stored in the collection `ACTIVATIONS` when a caller asks
    for it: ``stem/relu``, and in each block ``relu_1`` (between the convolutions)
    and ``relu_2`` (after the addition), by these names whatever the function is.

    Attributes:
      stage_sizes: blocks of each stage.
      widths: channels of each stage, as many entries as `stage_sizes`.
      num_classes: K.
      activation: at every activation: an elementwise function or one of
        `ACTIVATION_NAMES`.
      axis_name: mapped axis over which batch norm takes its statistics while
        training; None normalizes each replica by its own examples.
      convolution: called like `jax.lax.conv_general_dilated`, which None stands
        for; `loop_convolution` for training loops compiled for a CPU.
      dtype: computation dtype; parameters, batch statistics and logits are float32.
      hardware: compute the activation as phone hardware does, see
        `make_activation`; needs an activation that has a name.
      frozen_blocks: so many of the first blocks, from the input on, normalize by
        their running statistics also while training (the stem is the first one, then
        come those of the stages).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from neurrev_jax.models import ACTIVATIONS, ResNet
      >>> net = ResNet(stage_sizes=(1,), widths=(4,), num_classes=3)
      >>> images = jnp.ones((2, 8, 8, 1))
      >>> variables = net.init(jax.random.key(0), images)
      >>> logits, seen = net.apply(variables, images, mutable=ACTIVATIONS)
      >>> logits.shape
      (2, 3)
      >>> sorted(seen[ACTIVATIONS]["stage_1"]["block_1"])
      ['relu_1', 'relu_2']
    """

    stage_sizes: Sequence[int]
    widths: Sequence[int]
    num_classes: int
    activation: str | Activation = nn.relu
    axis_name: str | None = None
    convolution: Convolution | None = None
    dtype: Any = jnp.float32
    hardware: bool = False
    frozen_blocks: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
          images: [B, H, W, C], floating.
          train: normalize by the batch and update ``batch_stats`` (which then has
            to be mutable) instead of using the running statistics.

        Returns:
          [B, K] logits.

        Raises:
          ValueError: if `stage_sizes` and `widths` differ in length, for more
            `frozen_blocks` than there are, or for an activation that there is not.
        """
        layers.require_stages(stage_sizes=self.stage_sizes, widths=self.widths)
        parts, frozen = layers.make_parts(self, train), self.frozen_blocks
        layers.require_blocks(frozen, 1 + sum(self.stage_sizes))
        stem = parts.frozen(frozen > 0)
        x = layers.ConvLayer(self.widths[0], stem, name="stem")(images)
        frozen -= 1
        for i, (blocks, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True)
        ):
            make_block = functools.partial(BasicBlock, width=width)
            strides, name = 1 if i == 0 else 2, f"stage_{i + 1}"
            x = layers.Stage(
                blocks, strides, make_block, parts, frozen=frozen, name=name
            )(x)
            frozen -= blocks
        return layers.classify(x, self.num_classes, parts)


def resnet32(num_classes: int = 10, **kwargs: Any) -> ResNet:
    """The ResNet-32 of the paper's CIFAR tables (widths 32, 64 and 128).

    1,860,522 trainable parameters for 10 classes and 1,872,132 for 100; twice as
    wide as the network of the same name in He et al.

    Args:
      num_classes: K.
      **kwargs: further attributes of `ResNet`.

    Returns:
      The module.

    Example:
      >>> from neurrev_jax.models import resnet32
      >>> resnet32(num_classes=100).widths
      (32, 64, 128)
    """
    return ResNet(
        stage_sizes=(5, 5, 5),
        widths=(32, 64, 128),
        num_classes=num_classes,
        **kwargs,
    )
