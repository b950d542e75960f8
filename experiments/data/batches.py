"""A split laid out for evaluation: every example exactly once.

Shape letters: N examples, D devices, S batches, B examples of a batch on one device.
"""

from typing import Any, NamedTuple

import numpy as np

from experiments.data.base import Split


class Batches(NamedTuple):
    """Examples for a scan on every device, padded to full batches.

    Attributes:
      images: [D, S, B, H, W, C] uint8.
      labels: [D, S, B] int32.
      include: [D, S, B] bool, False for padding.
    """

    images: Any
    labels: Any
    include: Any


def lay_out(split: Split, batch_size: int, devices: int) -> Batches:
    """Divides a split into batches and devices.

    Args:
      split: N examples, any number of them.
      batch_size: examples of a batch over all devices; rounded up to a multiple of
        the devices and down to what N needs.
      devices: D, of all processes.

    Returns:
      The examples with as much padding as the layout needs.
    """
    n = len(split.labels)
    per_device = -(-min(batch_size, n) // devices)
    steps = -(-n // (per_device * devices))
    missing = steps * per_device * devices - n

    def divide(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
        # Batch after batch, each cut into the devices' parts.
        cut = padded.reshape(steps, devices, per_device, *x.shape[1:])
        return np.ascontiguousarray(np.swapaxes(cut, 0, 1))

    return Batches(
        images=divide(split.images),
        labels=divide(split.labels),
        include=divide(np.ones(n, bool)),
    )
