"""What the networks are built of, and the names of their feature maps.

Shape letters: B examples, H and W pixels, C channels, K classes.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from neurrev_jax.models.activations import Activation, activation_maker
from neurrev_jax.models.convolution import Convolution

ACTIVATIONS = "activations"
"""The Flax collection into which every network stores its feature maps."""

# He-normal by fan-out without truncation, and N(0, 0.01^2) for the classifier:
# the initialization of the ResNet-32 comparisons, with no density-aware rescaling.
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_linear_init = nn.initializers.normal(stddev=0.01)

# Between two convolutions of a residual block, or anywhere in a chain of layers.
_INNER = re.compile(
    r"(^|/)("
    r"relu_1"
    r"|bottleneck_\d+/relu_2"
    r"|layer_\d+/relu"
    r"|separable_\d+/(depthwise|pointwise)_relu"
    r")$"
)


def is_inner(path: str) -> bool:
    """Whether no shortcut can keep the channels of this feature map alive.

    A channel after the addition of a residual block can be active through the
    shortcut alone, so that the weights in front of it say little about it. Inner are
    ``relu_1`` of a basic block, ``relu_1`` and ``relu_2`` of a bottleneck, and all of
    `VGG` and `MobileNetV1`. The stem of a residual network, whose output is the first
    shortcut, does not count as inner.

    Args:
      path: as in the collection `ACTIVATIONS`, such as ``stage_1/block_1/relu_1``.

    Returns:
      Whether it is inner; False for names that no network of this package uses.

    Example:
      >>> from neurrev_jax.models import is_inner
      >>> is_inner("stage_1/block_1/relu_1"), is_inner("stage_1/block_1/relu_2")
      (True, False)
      >>> is_inner("stage_1/bottleneck_1/relu_2"), is_inner("stage_1/layer_1/relu")
      (True, True)
    """
    return _INNER.search(path) is not None


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the layers of one network have in common.

    Attributes:
      norm: batch-norm constructor taking ``name``.
      activation: from the name of an activation to what computes it; called in
        compact methods only.
      convolution: called like `jax.lax.conv_general_dilated`; None for that one.
      dtype: computation dtype.
    """

    norm: Callable[..., nn.Module]
    activation: Callable[[str], Activation]
    convolution: Convolution | None
    dtype: Any

    def frozen(self, is_frozen: bool = True) -> "Parts":
        """The same parts, with batch norm fixed to its running statistics.

        Args:
          is_frozen: False for the parts as they are.

        Returns:
          The parts of a layer that is frozen, or not.
        """
        if not is_frozen:
            return self
        norm = functools.partial(self.norm, use_running_average=True)
        return dataclasses.replace(self, norm=norm)


def make_parts(network: Any, train: bool) -> Parts:
    """Reads what the layers have in common from the attributes of a network.

    Args:
      network: module with the attributes activation, hardware, axis_name,
        convolution and dtype.
      train: whether batch norm normalizes by the batch.

    Returns:
      The parts.

    Raises:
      ValueError: for an activation that there is not.

    Example:
      >>> from neurrev_jax.models import resnet32
      >>> make_parts(resnet32(), train=False).dtype.__name__
      'float32'
    """
    # Flax takes the statistics in float32 whatever the computation dtype.
    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=network.axis_name,
        dtype=network.dtype,
    )
    activation = activation_maker(network.activation, network.hardware)
    return Parts(norm, activation, network.convolution, network.dtype)


def conv(parts: Parts, features: int, size: int, strides: int, name: str) -> nn.Conv:
    """A convolution without bias, padded by size // 2 on each side.

    Args:
      parts: what the layers have in common.
      features: output channels.
      size: of the kernel, odd.
      strides: along both axes.
      name: of the module.

    Returns:
      The module, from [B, H, W, C] to [B, ceil(H / strides), ..., features].

    Example:
      >>> from neurrev_jax.models import resnet32
      >>> conv(make_parts(resnet32(), train=False), 8, 3, 2, name="conv").padding
      ((1, 1), (1, 1))
    """
    return _conv(parts, features, size, strides, name, _conv_init, groups=1)


def depthwise_conv(
    parts: Parts, channels: int, size: int, strides: int, name: str
) -> nn.Conv:
    """As `conv`, with each output channel computed from one input channel.

    Args:
      parts: what the layers have in common.
      channels: C, of the input and of the output.
      size: of the kernel, odd.
      strides: along both axes.
      name: of the module; with ``depthwise`` in it, the kernel is never masked by a
        named sparsity distribution.

    Returns:
      The module, from [B, H, W, C] to [B, ceil(H / strides), ..., C].

    Example:
      >>> from neurrev_jax.models import mobilenet_v1
      >>> parts = make_parts(mobilenet_v1(), train=False)
      >>> depthwise_conv(parts, 8, 3, 1, name="depthwise_conv").feature_group_count
      8
    """
    # The fan-out of one group: Flax would count the outputs of all of them.
    init = nn.initializers.normal(stddev=(2.0 / size**2) ** 0.5)
    return _conv(parts, channels, size, strides, name, init, groups=channels)


def _conv(
    parts: Parts,
    features: int,
    size: int,
    strides: int,
    name: str,
    init: nn.initializers.Initializer,
    groups: int,
) -> nn.Conv:
    # Explicit padding: SAME would pad an even-sized input of a strided convolution
    # on one side only.
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(strides, strides),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=init,
        dtype=parts.dtype,
        conv_general_dilated=parts.convolution,
        name=name,
    )


def classify(x: jax.Array, num_classes: int, parts: Parts) -> jax.Array:
    """Global average pool and the linear layer ``classifier``.

    Both compute in float32 even where the rest of the network does not: they cost
    next to nothing, and a bfloat16 logit is good for three digits only.

    Args:
      x: [B, H, W, C].
      num_classes: K.
      parts: what the layers have in common.

    Returns:
      [B, K] logits, float32 or wider.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from neurrev_jax.models import resnet32
      >>> class Head(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return classify(x, 3, make_parts(resnet32(), train=False))
      >>> Head().init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)))[0].shape
      (2, 3)
    """
    dtype = np.promote_types(parts.dtype, jnp.float32)
    x = jnp.mean(x.astype(dtype), axis=(1, 2))
    head = nn.Dense(
        num_classes, kernel_init=_linear_init, dtype=dtype, name="classifier"
    )
    return head(x)


class Observed(nn.Module):
    """A module that can store its post-activation feature maps."""

    def observe(self, name: str, features: jax.Array) -> jax.Array:
        """Stores feature maps if the caller asks for the collection `ACTIVATIONS`.

        Args:
          name: under which to store them.
          features: [B, H, W, C].

        Returns:
          The same features.
        """
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

    def activate(self, name: str, parts: Parts, features: jax.Array) -> jax.Array:
        """Applies the network's activation and observes what comes out.

        Args:
          name: of the activation, containing ``relu`` whatever the function is.
          parts: what the layers have in common.
          features: [B, H, W, C].

        Returns:
          [B, H, W, C].
        """
        return self.observe(name, parts.activation(name)(features))


class ConvLayer(Observed):
    """Convolution, batch norm and activation (``conv``, ``norm``, ``relu``).

    Attributes:
      width: output channels.
      parts: what the layers have in common.
      size: of the kernel, odd.
      strides: along both axes.
    """

    width: int
    parts: Parts
    size: int = 3
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / strides), ..., width]."""
        parts = self.parts
        x = conv(parts, self.width, self.size, self.strides, "conv")(x)
        return self.activate("relu", parts, parts.norm(name="norm")(x))


class Stage(nn.Module):
    """Blocks of one width; the first one carries the stride.

    Attributes:
      blocks: number of blocks, at least 1.
      strides: stride of the first block.
      make_block: block constructor taking ``strides``, ``parts`` and ``name``.
      parts: what the layers have in common.
      block_name: what the names of the blocks begin with.
      frozen: so many of the first blocks are frozen; none if it is negative.
    """

    blocks: int
    strides: int
    make_block: Callable[..., nn.Module]
    parts: Parts
    block_name: str = "block"
    frozen: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the blocks one after the other."""
        for i in range(self.blocks):
            strides = self.strides if i == 0 else 1
            parts = self.parts.frozen(i < self.frozen)
            name = f"{self.block_name}_{i + 1}"
            x = self.make_block(strides=strides, parts=parts, name=name)(x)
        return x


def require_blocks(frozen_blocks: int, blocks: int) -> None:
    """Raises unless the network has the blocks that are to be frozen.

    Args:
      frozen_blocks: how many are.
      blocks: how many the network has.

    Raises:
      ValueError: if it has not so many.

    Example:
      >>> require_blocks(2, blocks=3)
    """
    if not 0 <= frozen_blocks <= blocks:
        raise ValueError(
            f"frozen_blocks={frozen_blocks} must lie in [0, {blocks}], the number of "
            "blocks of this network; the classifier is none of them."
        )


def require_stages(**sizes: Any) -> None:
    """Raises unless every argument has one entry per stage.

    Args:
      **sizes: two attributes of a network, sequences.

    Raises:
      ValueError: if their lengths differ or are 0.

    Example:
      >>> require_stages(stage_sizes=(2, 2), widths=(8, 16))
    """
    lengths = {len(values) for values in sizes.values()}
    if len(lengths) > 1 or 0 in lengths:
        given = " and ".join(f"{name}={tuple(v)}" for name, v in sizes.items())
        raise ValueError(
            f"{given} must have one entry per stage each; give both the same length, "
            "at least 1."
        )
