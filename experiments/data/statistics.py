"""Mean and standard deviation of each channel, in units of a pixel of 0 to 255."""

import numpy as np

from experiments.errors import UsageError


def _pixels(*values: float) -> tuple[float, ...]:
    return tuple(255 * value for value in values)


STATISTICS = {
    "cifar10": (_pixels(0.4914, 0.4822, 0.4465), _pixels(0.2023, 0.1994, 0.2010)),
    "cifar100": (_pixels(0.5071, 0.4865, 0.4409), _pixels(0.2673, 0.2564, 0.2762)),
    "imagenet2012": (_pixels(0.485, 0.456, 0.406), _pixels(0.229, 0.224, 0.225)),
}
"""What the literature divides by, so that figures can be compared."""


def of_images(
    name: str, images: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What to normalize the images of a data set with.

    Args:
      name: the data set's name.
      images: [N, H, W, C] uint8, the training set.

    Returns:
      The mean and the standard deviation of each channel: those of the literature
      where there are any, else those of the images.

    Raises:
      UsageError: if there are not as many channels as the data set has, or a channel
        has nothing to see.
    """
    channels = images.shape[-1]
    if name in STATISTICS:
        mean, std = STATISTICS[name]
        if channels != len(mean):
            raise UsageError(
                f"images of {name} must have {len(mean)} channels, and these have "
                f"{channels}; convert them, or choose the experiment of another data "
                "set."
            )
        return mean, std
    # One image's pixels at a time fit into memory as floats, whatever N is.
    sums = sum(image.reshape(-1, channels).sum(0, np.int64) for image in images)
    mean = np.asarray(sums) / (images.size // channels)
    squares = sum(
        ((image.reshape(-1, channels) - mean) ** 2).sum(0) for image in images
    )
    std = np.sqrt(np.asarray(squares) / (images.size // channels))
    if not std.all():
        raise UsageError(
            f"every pixel of channel {int(np.argmin(std))} has the same value in all "
            "training images, so that they cannot be normalized; leave it out."
        )
    return tuple(map(float, mean)), tuple(map(float, std))
