"""MobileNetV1, whose 1x1 convolutions a phone can run sparse (Howard et al. 2017).

Shape letters: B examples, H and W pixels, C channels, K classes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from neurrev_jax.models import layers
from neurrev_jax.models.activations import Activation
from neurrev_jax.models.convolution import Convolution

_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_FEWEST_CHANNELS = 8


class Separable(layers.Observed):
    """3x3 depthwise and 1x1 convolution, each with batch norm and activation.

    Attributes:
      width: output channels.
      strides: stride of the depthwise convolution.
      parts: what the layers have in common.
    """

    width: int
    strides: int
    parts: layers.Parts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ..., width]."""
        parts, channels = self.parts, x.shape[-1]
        # The name depthwise is what keeps it dense under the named distributions.
        conv = layers.depthwise_conv
        x = conv(parts, channels, 3, self.strides, "depthwise_conv")(x)
        x = parts.norm(name="depthwise_norm")(x)
        x = self.activate("depthwise_relu", parts, x)
        x = layers.conv(parts, self.width, 1, 1, "pointwise_conv")(x)
        x = parts.norm(name="pointwise_norm")(x)
        return self.activate("pointwise_relu", parts, x)


class MobileNetV1(nn.Module):
    """A 3x3 convolution and a chain of depthwise-separable ones.

    Then global average pool and linear classifier. Every 3x3 convolution is padded
    by 1 on each side, also where its stride is 2: that is the padding with which
    phones have sparse kernels. The activation is ReLU, not ReLU6. Convolutions have
    no bias; batch norm has epsilon 1e-5 and Flax momentum 0.9.

    Every activation (``layer_1/relu``, ``separable_1/depthwise_relu``,
    ``separable_1/pointwise_relu``) is stored in the collection `ACTIVATIONS` when a
    caller asks for it.

    Attributes:
      num_classes: K.
      width_multiplier: factor on all `widths`, rounded down, at least 8 channels.
      widths: output channels of the first convolution and of each separable one.
      strides: their strides, as many entries as `widths`.
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
        their running statistics also while training (the first convolution is one, and
        every separable one).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from neurrev_jax.models import MobileNetV1
      >>> net = MobileNetV1(num_classes=3, widths=(8, 16), strides=(2, 1))
      >>> images = jnp.ones((2, 8, 8, 3))
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), images)
      >>> jax.eval_shape(net.apply, variables, images).shape
      (2, 3)
    """

    num_classes: int = 1000
    width_multiplier: float = 1.0
    widths: Sequence[int] = _WIDTHS
    strides: Sequence[int] = _STRIDES
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
          ValueError: if `widths` and `strides` differ in length, for a
            `width_multiplier` that is not positive, for more `frozen_blocks` than
            there are, or for an activation that there is not.
        """
        layers.require_stages(widths=self.widths, strides=self.strides)
        if not self.width_multiplier > 0:
            raise ValueError(
                f"width_multiplier={self.width_multiplier!r} must be positive; 1 is "
                "the network of the paper, 0.5 one with half its channels."
            )
        parts, frozen = layers.make_parts(self, train), self.frozen_blocks
        layers.require_blocks(frozen, len(self.widths))
        widths = [
            max(_FEWEST_CHANNELS, int(width * self.width_multiplier))
            for width in self.widths
        ]
        first, strides = layers.ConvLayer, self.strides
        stem = parts.frozen(frozen > 0)
        x = first(widths[0], stem, strides=strides[0], name="layer_1")(images)
        for i in range(1, len(widths)):
            of_block = parts.frozen(i < frozen)
            x = Separable(widths[i], strides[i], of_block, name=f"separable_{i}")(x)
        return layers.classify(x, self.num_classes, parts)


def mobilenet_v1(num_classes: int = 1000, **kwargs: Any) -> MobileNetV1:
    """MobileNetV1: 4,231,976 trainable parameters at width 1 for 1000 classes.

    Args:
      num_classes: K.
      **kwargs: further attributes of `MobileNetV1`, `width_multiplier` for example.

    Returns:
      The module.

    Example:
      >>> from neurrev_jax.models import mobilenet_v1
      >>> mobilenet_v1(width_multiplier=0.5).num_classes
      1000
    """
    return MobileNetV1(num_classes=num_classes, **kwargs)
