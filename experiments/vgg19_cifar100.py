"""VGG-19 with batch norm on CIFAR-100: Table B.1 of the paper.

    python -m experiments.main --config=experiments/vgg19_cifar100.py --workdir=DIR

Every cell of the table is this command with --config.sparsity=0.9, 0.95 or 0.98,
--config.distribution=erk or uniform and --config.method.name=neurrev, set, rigl,
static or dense. NeurRev's update ratio follows the sparsity as in Table A.1 (10, 5
and 5 %), unless --config.method.neurrev.update_ratio says otherwise.

Neither its time nor its accuracy has been measured with this library.
"""

from experiments import config as config_lib
from experiments.cifar import cifar_config


def get_config() -> config_lib.Config:
    """NeurRev at 90 % sparsity (ERK)."""
    config = cifar_config("cifar100")
    config.method.neurrev.update_ratio_at = ((0.9, 0.10), (0.95, 0.05), (0.98, 0.05))
    config.model.name = "vgg"
    config.model.stage_sizes = (2, 2, 4, 4, 4)
    config.model.widths = (64, 128, 256, 512, 512)
    config.warmup_epochs = 5.0
    config.weight_decay = 5e-4
    return config
