"""What happens to the pixels inside the compiled step.

Images arrive as they are stored, as uint8. Padding comes before normalization, so
that what is moved in is black. Every image has a key of its own, so that the result
does not depend on how a batch is divided over devices. Shape letters: B examples, H
and W pixels, C channels.
"""

import jax
import jax.numpy as jnp

from experiments.data.base import DataInfo


def normalize(info: DataInfo, images: jax.Array) -> jax.Array:
    """Standardizes each channel.

    Args:
      info: with the mean and the standard deviation of each channel.
      images: [B, H, W, C] uint8.

    Returns:
      [B, H, W, C] float32.
    """
    mean = jnp.asarray(info.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(info.std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) - mean) / std


def augment(
    keys: jax.Array, images: jax.Array, *, padding: int, flip: bool
) -> jax.Array:
    """Random crop of the padded image, and random flip, each image by its key.

    Args:
      keys: [B] keys.
      images: [B, H, W, C], any dtype.
      padding: black pixels on every side, of which the crop leaves half; 0 for no
        crop.
      flip: whether half of the images are mirrored left to right.

    Returns:
      [B, H, W, C].
    """
    if not padding and not flip:
        return images

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if padding:
            edges = ((padding, padding), (padding, padding), (0, 0))
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
            padded = jnp.pad(image, edges)
            image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        if flip:
            mirrored = jax.random.bernoulli(flip_key)
            image = jnp.where(mirrored, image[:, ::-1], image)
        return image

    return jax.vmap(one)(keys, images)
