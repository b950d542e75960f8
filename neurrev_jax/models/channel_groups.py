"""The channels of the networks that can be removed without touching a residual sum."""

import re
from collections.abc import Iterator
from typing import Any

from neurrev_jax._src import channels
from neurrev_jax._src import paths as paths_lib

# Inside of a residual block only what the next convolution reads is no part of a sum.
_IN_BLOCK = re.compile(r"(.*(?:block|bottleneck)_\d+/conv_)(\d+)/kernel")
_IN_CHAIN = re.compile(r".*(?:layer_\d+/conv|separable_\d+/pointwise_conv)/kernel")


def channel_groups(params: Any) -> tuple[channels.ChannelGroup, ...]:
    """The channels that may be removed, for `neurrev_jax.chase(groups=...)`.

    A channel goes with its filter, its batch norm entries, its slope where the
    activation is PReLU, and the inputs of the next layer. In residual networks these
    are the channels inside of blocks (between the convolutions of a basic block or a
    bottleneck); the stem and what is added up at the end of a block cannot lose any.
    In `VGG` and `MobileNetV1` they are all; in the latter the depthwise convolution
    that follows goes with a channel too.

    A removed channel is 0 after batch norm, and has to be 0 after the activation:
    sigmoid and hard_sigmoid, which do not map 0 to 0, pass a constant on to the next
    layer, whose inputs from it are masked.

    Args:
      params: parameters of a network of this package (arrays or shapes), or a tree
        that contains them.

    Returns:
      One group for each layer that can lose channels, in the order of the tree.

    Raises:
      ValueError: if no such layer is found.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from neurrev_jax.models import ResNet, channel_groups
      >>> net = ResNet(stage_sizes=(1,), widths=(4,), num_classes=3)
      >>> variables = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
      >>> [group] = channel_groups(variables["params"])
      >>> [axis.path for axis in group.axes]  # doctest: +NORMALIZE_WHITESPACE
      ['stage_1/block_1/conv_1/kernel', 'stage_1/block_1/norm_1/bias',
       'stage_1/block_1/norm_1/scale', 'stage_1/block_1/conv_2/kernel']
    """
    paths = [path for path, _ in paths_lib.flatten_with_paths(params)[0]]
    paths.sort(key=_by_number)
    layers = [*_layers_in_blocks(paths), *_layers_in_chain(paths)]
    if not layers:
        raise ValueError(
            "no layer was found whose channels may be removed; pass the parameters of "
            "a network of neurrev_jax.models, or name the channels of your own with "
            "neurrev_jax.channel_group."
        )
    return tuple(
        channels.channel_group(params, {kernel: 3}, others) for kernel, others in layers
    )


_Layer = tuple[str, dict[str, int]]


def _layers_in_blocks(paths: list[str]) -> Iterator[_Layer]:
    """Every kernel of a residual block that another convolution of it follows."""
    for path in paths:
        found = _IN_BLOCK.fullmatch(path)
        following = found and f"{found[1]}{int(found[2]) + 1}/kernel"
        if following in paths:
            yield path, {**_norm_and_slope(paths, path), following: 2}


def _layers_in_chain(paths: list[str]) -> Iterator[_Layer]:
    """Every kernel of a chain of layers, each read by the next one alone."""
    chain = [path for path in paths if _IN_CHAIN.fullmatch(path)]
    heads = [path for path in paths if path.endswith("classifier/kernel")]
    for path, following in zip(chain, [*chain[1:], *heads], strict=False):
        others = _norm_and_slope(paths, path)
        depthwise = following.replace("pointwise", "depthwise")
        if depthwise != following:
            others |= {depthwise: 3, **_norm_and_slope(paths, depthwise)}
        yield path, {**others, following: 0 if following in heads else 2}


def _norm_and_slope(paths: list[str], kernel: str) -> dict[str, int]:
    """The norm entries and slopes that follow a convolution, with their axis."""
    place, name, _ = kernel.rsplit("/", 2)
    norm, slope = (name.replace("conv", other) for other in ("norm", "prelu"))
    wanted = [f"{norm}/bias", f"{norm}/scale", f"{slope}/slope"]
    return {path: 0 for path in (f"{place}/{leaf}" for leaf in wanted) if path in paths}


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts layer_2 before layer_10."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
