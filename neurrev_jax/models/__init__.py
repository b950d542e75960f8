"""Flax networks whose post-activation feature maps can be observed."""

from neurrev_jax.models.activations import ACTIVATION_NAMES as ACTIVATION_NAMES
from neurrev_jax.models.activations import PReLU as PReLU
from neurrev_jax.models.activations import make_activation as make_activation
from neurrev_jax.models.channel_groups import channel_groups as channel_groups
from neurrev_jax.models.convolution import loop_convolution as loop_convolution
from neurrev_jax.models.imagenet_resnet import Bottleneck as Bottleneck
from neurrev_jax.models.imagenet_resnet import ImageNetResNet as ImageNetResNet
from neurrev_jax.models.imagenet_resnet import resnet34 as resnet34
from neurrev_jax.models.imagenet_resnet import resnet50 as resnet50
from neurrev_jax.models.layers import ACTIVATIONS as ACTIVATIONS
from neurrev_jax.models.layers import is_inner as is_inner
from neurrev_jax.models.mobilenet import MobileNetV1 as MobileNetV1
from neurrev_jax.models.mobilenet import mobilenet_v1 as mobilenet_v1
from neurrev_jax.models.resnet import BasicBlock as BasicBlock
from neurrev_jax.models.resnet import ResNet as ResNet
from neurrev_jax.models.resnet import resnet32 as resnet32
from neurrev_jax.models.vgg import VGG as VGG
from neurrev_jax.models.vgg import vgg19 as vgg19

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_NAMES",
    "VGG",
    "BasicBlock",
    "Bottleneck",
    "ImageNetResNet",
    "MobileNetV1",
    "PReLU",
    "ResNet",
    "channel_groups",
    "is_inner",
    "loop_convolution",
    "make_activation",
    "mobilenet_v1",
    "resnet32",
    "resnet34",
    "resnet50",
    "vgg19",
]
