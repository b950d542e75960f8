"""ResNet-32 of widths 32-64-128 on CIFAR-10: Table 1 of the paper.

    python -m experiments.main --config=experiments/rn32_cifar10.py --workdir=DIR

Every cell of the table is this command with --config.sparsity=0.9, 0.95 or 0.98,
--config.distribution=erk or uniform and --config.method.name=neurrev, set, rigl,
static or dense. NeurRev's update ratio follows the sparsity as in Table A.1 (10, 5
and 3 %), unless --config.method.neurrev.update_ratio says otherwise.

Measured on two cores of an x86 CPU, as two virtual devices: 24 minutes per epoch, and
42.62 % test accuracy after one epoch (JPEG-compressed copy of CIFAR-10, 5,000 test
images; docs/reproducing.md has the command). All 160 have not been trained.
"""

from experiments import config as config_lib
from experiments.cifar import cifar_config


def get_config() -> config_lib.Config:
    """NeurRev at 90 % sparsity (ERK)."""
    config = cifar_config("cifar10")
    config.method.neurrev.update_ratio_at = ((0.9, 0.10), (0.95, 0.05), (0.98, 0.03))
    config.model.name = "resnet"
    config.model.stage_sizes = (5, 5, 5)
    config.model.widths = (32, 64, 128)
    config.weight_decay = 1e-4
    return config
