"""What the CIFAR experiments of the paper have in common (Table A.1)."""

from experiments import config as config_lib


def cifar_config(name: str) -> config_lib.Config:
    """The recipe of the CIFAR experiments, without a network.

    160 epochs at batch 64; learning rate 0.1 to 4e-8 by a cosine that steps once per
    epoch; coupled L2 on all parameters; padding by 4, random crop and flip. NeurRev
    updates every 5 epochs until epoch 120, RigL every 100 steps until epoch 120, SET
    every epoch.

    Args:
      name: "cifar10" or "cifar100".

    Returns:
      The config.
    """
    config = config_lib.default_config()
    config.method.name = "neurrev"
    config.method.update_interval_epochs = 5.0
    config.method.until_fraction = 0.75
    config.method.rigl.update_interval_steps = 100
    config.method.set.update_interval_epochs = 1.0
    config.method.set.until_fraction = 1.0
    config.compare = ()

    config.sparsity = 0.9
    config.distribution = "erk"

    config.data.name = name
    config.data.source = "tfds"
    config.data.crop_padding = 4
    config.data.flip = True

    config.epochs = 160
    config.batch_size = 64
    config.learning_rate = 0.1
    config.final_learning_rate = 4e-8
    config.learning_rate_changes = "every_epoch"
    config.momentum = 0.9
    config.eval_batch_size = 500
    return config
