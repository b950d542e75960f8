"""MobileNetV1 on ImageNet-2012, a network that a phone can run sparse.

    python -m experiments.main --config=experiments/mobilenet_imagenet.py --workdir=DIR

The paper does not train it; the recipe is that of its other ImageNet networks. Only the
1x1 convolutions are sparse, at a uniform 80 %: they hold nearly all of the arithmetic,
and phones have kernels for them. The first convolution, the depthwise ones and the
classifier stay dense. The paper's mobile setting of 128x128 pixels is
--config.data.image_size=128.

Neither its time nor its accuracy has been measured with this library.
"""

from experiments import config as config_lib
from experiments.imagenet import imagenet_config


def get_config() -> config_lib.Config:
    """NeurRev at 80 % sparsity (uniform)."""
    config = imagenet_config()
    config.distribution = "uniform"
    config.model.name = "mobilenet"
    config.model.stage_sizes = ()
    config.model.widths = ()
    return config
