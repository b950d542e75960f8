"""Residual networks of the CIFAR type (He et al. 2016, section 4.2).

Shape letters: B examples, H and W pixels, C channels, K classes.

Module paths name the place in the network (``stage_2/block_1/conv_1``), because
they are what a summary of the masks prints and what a path pattern matches.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from neurrev_jax.models.convolution import Convolution

ACTIVATIONS = "activations"
"""The Flax collection into which every network stores its feature maps."""

Activation = Callable[[jax.Array], jax.Array]

# He-normal by fan-out without truncation, and N(0, 0.01^2) for the classifier:
# the initialization of the ResNet-32 comparisons, with no density-aware rescaling.
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_linear_init = nn.initializers.normal(stddev=0.01)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What the layers of one network have in common.

    Attributes:
      norm: batch-norm constructor taking ``name``.
      activation: elementwise function.
      convolution: called like `jax.lax.conv_general_dilated`; None for that one.
      dtype: computation dtype.
    """

    norm: Callable[..., nn.Module]
    activation: Activation
    convolution: Convolution | None
    dtype: Any


def _conv(parts: _Parts, features: int, size: int, strides: int, name: str) -> nn.Conv:
    # Explicit padding: SAME would pad an even-sized input of a strided convolution
    # on one side only.
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(strides, strides),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=_conv_init,
        dtype=parts.dtype,
        conv_general_dilated=parts.convolution,
        name=name,
    )


class _Observed(nn.Module):
    """A module that can store its post-activation feature maps."""

    def observe(self, name: str, features: jax.Array) -> jax.Array:
        # `sow` does nothing unless the caller asks for the collection, so the
        # network computes the same function at the same cost either way.
        self.sow(
            ACTIVATIONS,
            name,
            features,
            init_fn=lambda: features,
            reduce_fn=lambda _, new: new,
        )
        return features


class Stem(_Observed):
    """3x3 convolution, batch norm and activation.

    Attributes:
      width: output channels.
      parts: what the layers have in common.
    """

    width: int
    parts: _Parts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, width]."""
        parts = self.parts
        x = _conv(parts, self.width, 3, 1, "conv")(x)
        x = parts.activation(parts.norm(name="norm")(x))
        return self.observe("relu", x)


class BasicBlock(_Observed):
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
    parts: _Parts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, width]."""
        parts, width = self.parts, self.width
        y = _conv(parts, width, 3, self.strides, "conv_1")(x)
        y = parts.activation(parts.norm(name="norm_1")(y))
        y = self.observe("relu_1", y)
        y = _conv(parts, width, 3, 1, "conv_2")(y)
        y = parts.norm(name="norm_2")(y)
        if x.shape != y.shape:
            x = _conv(parts, width, 1, self.strides, "shortcut_conv")(x)
            x = parts.norm(name="shortcut_norm")(x)
        return self.observe("relu_2", parts.activation(x + y))


class Stage(nn.Module):
    """Blocks of one width; the first one carries the stride.

    Attributes:
      blocks: number of blocks, at least 1.
      strides: stride of the first block.
      make_block: block constructor taking ``strides`` and ``name``.
    """

    blocks: int
    strides: int
    make_block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the blocks one after the other."""
        for i in range(self.blocks):
            strides = self.strides if i == 0 else 1
            x = self.make_block(strides=strides, name=f"block_{i + 1}")(x)
        return x


class ResNet(nn.Module):
    """A residual network of the CIFAR type.

    Stem, one stage of basic blocks per width (every stage but the first halves the
    resolution), global average pool, linear classifier. Convolutions have no bias;
    batch norm has epsilon 1e-5 and Flax momentum 0.9.

    Every activation is stored in the collection `ACTIVATIONS` when a caller asks
    for it: ``stem/relu``, and in each block ``relu_1`` (between the convolutions)
    and ``relu_2`` (after the addition).

    Attributes:
      stage_sizes: blocks of each stage.
      widths: channels of each stage, as many entries as `stage_sizes`.
      num_classes: K.
      activation: elementwise function at every activation.
      axis_name: mapped axis over which batch norm takes its statistics while
        training; None normalizes each replica by its own examples.
      convolution: called like `jax.lax.conv_general_dilated`, which None stands
        for; `loop_convolution` for training loops compiled for a CPU.
      dtype: computation dtype; parameters are float32.

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
    activation: Activation = nn.relu
    axis_name: str | None = None
    convolution: Convolution | None = None
    dtype: Any = jnp.float32

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
          ValueError: if `stage_sizes` and `widths` differ in length.
        """
        if len(self.stage_sizes) != len(self.widths):
            raise ValueError(
                f"stage_sizes={tuple(self.stage_sizes)} and widths="
                f"{tuple(self.widths)} must have one entry per stage each; give "
                "both the same length."
            )
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        parts = _Parts(norm, self.activation, self.convolution, self.dtype)
        x = Stem(self.widths[0], parts, name="stem")(images)
        for i, (blocks, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True)
        ):
            make_block = functools.partial(BasicBlock, width=width, parts=parts)
            strides = 1 if i == 0 else 2
            x = Stage(blocks, strides, make_block, name=f"stage_{i + 1}")(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(
            self.num_classes,
            kernel_init=_linear_init,
            dtype=self.dtype,
            name="classifier",
        )(x)


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
