"""Every method on handwritten digits: what `make run-all` trains.

    python -m experiments.sweep --workdir=DIR [--config=experiments/all_digits.py]

The network, the data and the rates are those of `rn_digits.py`, with its caveats: they
were chosen for NeurRev, SET and dense training, in trials scored on the same test set,
and a test example is 0.22 points of accuracy. A training takes some 24 seconds on one
core of an x86 CPU (jax 0.10.2), 16 where everything has been compiled before; LTH
trains four times. One seed of all methods:

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
    config.method.spfde.sieve_every_epochs = 3
    # The phases of the paper's CIFAR runs: 2.4 epochs here, of 24.
    config.method.ac_dc.changes_at = tuple(0.05 + 0.1 * i for i in range(9))
    # Around Top-KAST it diverged at 98 %: batch norm magnifies gradients of filters
    # without an active weight, and the power lets what they reach grow exponentially.
    config.method.powerprop.host = "set"
    config.method.powerprop.growth_start = 0.01
    config.checkpoint_every_epochs = 8
    config.dormant.every_epochs = 4
    return config
