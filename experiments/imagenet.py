"""What the ImageNet experiments of the paper have in common (Table A.1)."""

from experiments import config as config_lib


def imagenet_config() -> config_lib.Config:
    """The recipe of the ImageNet experiments, without a network.

    100 epochs at batch 1024; learning rate 1.024 after 5 epochs of linear warm-up, by
    a cosine to 0; momentum 0.875, coupled L2 of 1/32768. These are the values of
    NVIDIA's recipe for ResNet-50 v1.5, from which comes what the paper does not say:
    label smoothing 0.1 and no L2 on batch norms. NeurRev updates every 3 epochs until
    epoch 75, RigL every 100 steps until epoch 75, SET every epoch.

    Returns:
      The config.
    """
    config = config_lib.default_config()
    config.method.name = "neurrev"
    config.method.update_interval_epochs = 3.0
    config.method.until_fraction = 0.75
    config.method.neurrev.update_ratio_at = ((0.8, 0.15), (0.9, 0.10))
    config.method.rigl.update_interval_steps = 100
    config.method.set.update_interval_epochs = 1.0
    config.method.set.until_fraction = 1.0
    config.compare = ()

    config.sparsity = 0.8
    config.distribution = "erk"

    config.data.name = "imagenet2012"
    config.data.source = "tfds"
    config.data.image_size = 224

    config.epochs = 100
    config.batch_size = 1024
    config.learning_rate = 1.024
    config.final_learning_rate = 0.0
    config.warmup_epochs = 5.0
    config.momentum = 0.875
    config.weight_decay = 1 / 32768
    config.weight_decay_on = "all_but_norm"
    config.label_smoothing = 0.1

    config.eval_batch_size = 1024
    config.log_every_steps = 100
    config.checkpoint_every_steps = 1000
    return config
