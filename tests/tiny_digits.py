"""Whole runs in seconds: 12 epochs of 10 steps of a network of two blocks."""

from experiments import rn_digits


def get_config():
    config = rn_digits.get_config()
    config.model.stage_sizes = (1,)
    config.model.widths = (8,)
    config.batch_size = 128
    config.learning_rate = 0.3
    config.epochs = 12
    config.method.update_interval_epochs = 1.0
    config.dormant.examples = 128
    config.compare = ()
    config.sparsity = 0.5
    config.distribution = "uniform"
    config.checkpoint_every_epochs = 2
    return config
