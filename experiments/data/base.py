"""What the rest of an experiment knows about its data.

Shape letters: N examples, H and W pixels, C channels.
"""

import dataclasses
from typing import Any, NamedTuple

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet2012": 1000}
"""By the data set's name, for sources that do not say it themselves."""


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Facts about a data set.

    Attributes:
      name: its name in the config.
      num_classes: number of classes; labels lie in [0, num_classes).
      image_shape: (H, W, C) as the network sees them.
      train_examples: size of the training set.
      test_examples: size of the test set.
      mean: C values in the units of a pixel, subtracted from every image.
      std: C values in the units of a pixel, by which images are then divided.
      class_names: what the classes are called, by label; empty if nobody knows.
      crop: how a test image was brought to the shape that the network sees; empty if
        it had that shape.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    train_examples: int
    test_examples: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    crop: str = ""


class Split(NamedTuple):
    """Examples and their classes.

    Attributes:
      images: [N, H, W, C] uint8, as stored; on the host or on devices.
      labels: [N] int32.
    """

    images: Any
    labels: Any


class InMemory(NamedTuple):
    """A data set that fits into memory.

    Attributes:
      info: facts about it.
      train: for training; its first examples also measure dormant neurons.
      test: for evaluation only.
    """

    info: DataInfo
    train: Split
    test: Split
