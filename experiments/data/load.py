"""From a config's ``data`` section to the data."""

from typing import Any

from experiments.config import Config, is_streamed
from experiments.data.base import InMemory


def load(config: Config, process: int, processes: int) -> InMemory | Any:
    """Reads, opens or makes the data set that the ``data`` section names.

    Args:
      config: a validated ``data`` section.
      process: number of this process.
      processes: number of processes, among which a stream is divided.

    Returns:
      The data set, or for streamed data an `ImageStream`.

    Raises:
      UsageError: if it is not there or does not fit.
    """
    # Each source is imported when it is used: arrays need no TensorFlow.
    if config.source == "npz":
        from experiments.data import npz

        return npz.load(config)
    if config.source == "generated":
        from experiments.data import generated

        return generated.load(config)
    if is_streamed(config):
        from experiments.data import imagenet

        return imagenet.open_stream(config, process, processes)
    if config.source == "tfds":
        from experiments.data import cifar

        return cifar.load(config.name, config.dir)
    from experiments.data import digits

    return digits.load(config.test_fraction)
