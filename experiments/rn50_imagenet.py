"""ResNet-50 v1.5 on ImageNet-2012: Table 2 of the paper.

    python -m experiments.main --config=experiments/rn50_imagenet.py --workdir=DIR

Every cell of the table is this command with --config.sparsity=0.8 or 0.9,
--config.distribution=erk or uniform and --config.method.name=neurrev, set, rigl,
static or dense; extended training (the 1.5x, 3x and 5x of the table) adds
--config.training_multiplier=3. NeurRev's update ratio follows the sparsity as in
Table A.1 (15 and 10 %), unless --config.method.neurrev.update_ratio says otherwise.
A device that does not hold its part of the 1,024 examples takes it in pieces, with
--config.accumulation_steps=16 for 64 at a time on one device.

Its accuracy has not been measured with this library, only that it learns: see
docs/reproducing.md.
"""

from experiments import config as config_lib
from experiments.imagenet import imagenet_config


def get_config() -> config_lib.Config:
    """NeurRev at 80 % sparsity (ERK)."""
    config = imagenet_config()
    config.model.name = "imagenet_resnet"
    config.model.block = "bottleneck"
    config.model.stage_sizes = (3, 4, 6, 3)
    config.model.widths = (64, 128, 256, 512)
    return config
