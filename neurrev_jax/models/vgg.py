"""VGG networks with batch norm for CIFAR (Simonyan and Zisserman 2015).

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


class VGG(nn.Module):
    """A chain of 3x3 convolutions with batch norm and one linear layer.

    One stage of layers per width, a 2x2 max pool between stages, global average
    pool, linear classifier. For images of 32 pixels and five stages the average pool
    is the 2x2 one of the comparisons on CIFAR: there is no fifth max pool.
    Convolutions have no bias; batch norm has epsilon 1e-5 and Flax momentum 0.9.

    Every activation (``stage_1/layer_1/relu``) is stored in the collection
    `ACTIVATIONS` when a caller asks for it.

    Attributes:
      stage_sizes: layers of each stage.
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
        their running statistics also while training (every layer is one).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from neurrev_jax.models import VGG
      >>> net = VGG(stage_sizes=(1, 2), widths=(4, 8), num_classes=3)
      >>> images = jnp.ones((2, 8, 8, 3))
      >>> variables = jax.eval_shape(net.init, jax.random.key(0), images)
      >>> jax.eval_shape(net.apply, variables, images).shape
      (2, 3)
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
          images: [B, H, W, C], floating; H and W at least 2 to the number of max
            pools, 16 for five stages.
          train: normalize by the batch and update ``batch_stats`` (which then has
            to be mutable) instead of using the running statistics.

        Returns:
          [B, K] logits.

        Raises:
          ValueError: if `stage_sizes` and `widths` differ in length, for images too
            small, for more `frozen_blocks` than there are, or for an activation that
            there is not.
        """
        layers.require_stages(stage_sizes=self.stage_sizes, widths=self.widths)
        needed = 2 ** (len(self.widths) - 1)
        if min(images.shape[1:3]) < needed:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels are too small "
                f"for the {len(self.widths) - 1} max pools of {len(self.widths)} "
                f"stages, which need {needed}; use larger images or fewer stages."
            )
        parts, frozen = layers.make_parts(self, train), self.frozen_blocks
        layers.require_blocks(frozen, sum(self.stage_sizes))
        x = images
        for i, (depth, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True)
        ):
            if i > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            make_layer = functools.partial(layers.ConvLayer, width=width)
            name = f"stage_{i + 1}"
            x = layers.Stage(depth, 1, make_layer, parts, "layer", frozen, name=name)(x)
            frozen -= depth
        return layers.classify(x, self.num_classes, parts)


def vgg19(num_classes: int = 10, **kwargs: Any) -> VGG:
    """The VGG-19 of the paper's CIFAR tables: 16 convolutions, one linear layer.

    20,035,018 trainable parameters for 10 classes and 20,081,188 for 100.

    Args:
      num_classes: K.
      **kwargs: further attributes of `VGG`.

    Returns:
      The module.

    Example:
      >>> from neurrev_jax.models import vgg19
      >>> vgg19(num_classes=100).widths
      (64, 128, 256, 512, 512)
    """
    return VGG(
        stage_sizes=(2, 2, 4, 4, 4),
        widths=(64, 128, 256, 512, 512),
        num_classes=num_classes,
        **kwargs,
    )
