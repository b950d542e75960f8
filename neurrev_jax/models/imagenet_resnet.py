"""Residual networks of the ImageNet type (He et al. 2016, section 3.4 and Table 1).

Shape letters: B examples, H and W pixels, C channels, K classes.
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
from neurrev_jax.models.resnet import BasicBlock

_EXPANSION = 4
# Flax takes this form, and declares a string.
_POOL_PADDING: Any = ((1, 1), (1, 1))


class Bottleneck(layers.Observed):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, activated after the addition.

    The 3x3 convolution carries the stride (the network called v1.5). The shortcut is
    the identity, or a 1x1 convolution with batch norm where the shape changes.

    Attributes:
      width: channels of the first two convolutions; the output has 4 times as many.
      strides: stride of the 3x3 convolution and of the shortcut.
      parts: what the layers have in common.
    """

    width: int
    strides: int
    parts: layers.Parts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, 4 width]."""
        parts, width = self.parts, self.width
        y = layers.conv(parts, width, 1, 1, "conv_1")(x)
        y = self.activate("relu_1", parts, parts.norm(name="norm_1")(y))
        y = layers.conv(parts, width, 3, self.strides, "conv_2")(y)
        y = self.activate("relu_2", parts, parts.norm(name="norm_2")(y))
        y = layers.conv(parts, _EXPANSION * width, 1, 1, "conv_3")(y)
        y = parts.norm(name="norm_3")(y)
        if x.shape != y.shape:
            outputs = _EXPANSION * width
            x = layers.conv(parts, outputs, 1, self.strides, "shortcut_conv")(x)
            x = parts.norm(name="shortcut_norm")(x)
        return self.activate("relu_3", parts, x + y)


# The name of a block says of which kind it is, so that the path of an activation
# says whether it comes after an addition (`layers.is_inner`).
_BLOCKS = {"basic": (BasicBlock, "block"), "bottleneck": (Bottleneck, "bottleneck")}


class ImageNetResNet(nn.Module):
    """A residual network of the ImageNet type.

    Stem (7x7 convolution with stride 2, batch norm, activation), 3x3 max pool with
    stride 2, one stage of blocks per width (every stage but the first halves the
    resolution), global average pool, linear classifier. Images of any size; 224, 128
    and 64 pixels are usual.

    Activations are stored as in `ResNet`: ``stem/relu``, in basic blocks
    (``stage_1/block_1``) ``relu_1`` and ``relu_2``, in bottlenecks
    (``stage_1/bottleneck_1``) ``relu_1`` to ``relu_3``, of which the last comes after
    the addition.

    Attributes:
      stage_sizes: blocks of each stage.
      block: ``basic`` (two 3x3 convolutions) or ``bottleneck`` (1x1, 3x3, 1x1).
      widths: channels of each stage, a quarter of its output's in bottlenecks; as
        many entries as `stage_sizes`.
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
      >>> from neurrev_jax.models import ImageNetResNet
      >>> net = ImageNetResNet((1, 1), "bottleneck", widths=(4, 8), num_classes=3)
      >>> images = jnp.ones((2, 16, 16, 3))
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), images)
      >>> jax.eval_shape(net.apply, variables, images).shape
      (2, 3)
    """

    stage_sizes: Sequence[int]
    block: str
    widths: Sequence[int] = (64, 128, 256, 512)
    num_classes: int = 1000
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
          ValueError: for an unknown block, if `stage_sizes` and `widths` differ in
            length, for more `frozen_blocks` than there are, or for an activation
            that there is not.
        """
        layers.require_stages(stage_sizes=self.stage_sizes, widths=self.widths)
        if self.block not in _BLOCKS:
            raise ValueError(
                f"block={self.block!r} is unknown; choose "
                f"{' or '.join(map(repr, _BLOCKS))}."
            )
        block, block_name = _BLOCKS[self.block]
        parts, frozen = layers.make_parts(self, train), self.frozen_blocks
        layers.require_blocks(frozen, 1 + sum(self.stage_sizes))
        stem = parts.frozen(frozen > 0)
        x = layers.ConvLayer(self.widths[0], stem, size=7, strides=2, name="stem")(
            images
        )
        frozen -= 1
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=_POOL_PADDING)
        for i, (blocks, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True)
        ):
            make_block = functools.partial(block, width=width)
            strides, name = 1 if i == 0 else 2, f"stage_{i + 1}"
            x = layers.Stage(
                blocks, strides, make_block, parts, block_name, frozen, name=name
            )(x)
            frozen -= blocks
        return layers.classify(x, self.num_classes, parts)


def resnet34(num_classes: int = 1000, **kwargs: Any) -> ImageNetResNet:
    """ResNet-34: 21,797,672 trainable parameters for 1000 classes.

    Args:
      num_classes: K.
      **kwargs: further attributes of `ImageNetResNet`.

    Returns:
      The module.

    Example:
      >>> from neurrev_jax.models import resnet34
      >>> resnet34().stage_sizes
      (3, 4, 6, 3)
    """
    return ImageNetResNet(
        stage_sizes=(3, 4, 6, 3), block="basic", num_classes=num_classes, **kwargs
    )


def resnet50(num_classes: int = 1000, **kwargs: Any) -> ImageNetResNet:
    """ResNet-50 v1.5: 25,557,032 trainable parameters for 1000 classes.

    Its 54 kernels have 25,502,912 weights.

    Args:
      num_classes: K.
      **kwargs: further attributes of `ImageNetResNet`.

    Returns:
      The module.

    Example:
      >>> from neurrev_jax.models import resnet50
      >>> resnet50(num_classes=100, activation="leaky_relu").block
      'bottleneck'
    """
    return ImageNetResNet(
        stage_sizes=(3, 4, 6, 3), block="bottleneck", num_classes=num_classes, **kwargs
    )
