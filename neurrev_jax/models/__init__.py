"""Flax networks whose post-activation feature maps can be observed."""

from neurrev_jax.models.convolution import loop_convolution as loop_convolution
from neurrev_jax.models.resnet import ACTIVATIONS as ACTIVATIONS
from neurrev_jax.models.resnet import BasicBlock as BasicBlock
from neurrev_jax.models.resnet import ResNet as ResNet
from neurrev_jax.models.resnet import resnet32 as resnet32

__all__ = ["ACTIVATIONS", "BasicBlock", "ResNet", "loop_convolution", "resnet32"]
