"""Every method on handwritten digits, in some ten minutes on a CPU core.

python -m experiments.main --config=experiments/all_digits.py --workdir=DIR
"""

from experiments import config as config_lib
from experiments import rn_digits


def get_config() -> config_lib.Config:
    """All methods at 90 % sparsity (ERK), for two thirds of `rn_digits`' epochs."""
    config = rn_digits.get_config()
    config.compare = config_lib.METHODS
    config.epochs = 24
    config.method.update_interval_epochs = 2.0
    # Intervals that are in steps elsewhere, for a training of a thousand steps.
    config.method.dsr.update_interval_steps = 21
    config.method.top_kast.update_interval_steps = 10
    config.method.mest.update_ratio_at = ((0.9, 0.02), (0.95, 0.01), (0.98, 0.004))
    config.method.spfde.sieve_every_epochs = 3
    # The phases of the paper's CIFAR runs: 2.4 epochs here, of 24.
    config.method.ac_dc.changes_at = tuple(0.05 + 0.1 * i for i in range(9))
    # At 98 % and this learning rate the powers 1.5 and 2 diverge around Top-KAST.
    config.method.powerprop.alpha = 1.25
    config.checkpoint_every_epochs = 8
    config.dormant.every_epochs = 4
    return config
