"""From an encoded image to the square of pixels that the network sees, in TensorFlow.

Only the part that is needed is decoded. Shape letters: S is the side of the result.
"""

from collections.abc import Callable
from typing import Any

from experiments.data.tfds_directory import import_tensorflow

# The part of the short side that is seen in evaluation: 224 of 256 pixels.
_CENTRAL = 0.875
CENTRAL_CROP = "the central square of 0.875 of the short side, resized bilinearly"
"""What `central_crop` does, in words."""

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
# Color is stored for every other column and interpolated between them. Columns that the
# outermost ones need for that are decoded too, so that a part is as in the whole image.
_MARGIN = 2


def random_crop(encoded: Any, size: int, head: Any, index: Any) -> Any:
    """For training: a random part of the image, resized, and mirrored half of the time.

    The part has 0.08 to 1 of the image's area and an aspect ratio of 3/4 to 4/3, as in
    Szegedy et al., *Going Deeper with Convolutions*.

    Args:
      encoded: the file, JPEG or any other format that TensorFlow reads.
      size: S.
      head: int64, and
      index: int64, from which all random numbers are drawn: those of the pairs (head,
        2 index) and (head, 2 index + 1).

    Returns:
      [S, S, 3] uint8.
    """
    tf, _ = import_tensorflow()
    shape, cut = _reader(encoded)
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], 0),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=tf.stack([head, 2 * index]),
        # There is no object to cover: the area's range is the only limit.
        min_object_covered=0.0,
        area_range=_AREA,
        aspect_ratio_range=_ASPECT,
    )
    pixels = _resize(cut(tf.concat([begin[:2], extent[:2]], 0)), size)
    mirrored = tf.random.stateless_uniform((), tf.stack([head, 2 * index + 1])) < 0.5
    return tf.where(mirrored, tf.reverse(pixels, [1]), pixels)


def central_crop(encoded: Any, size: int) -> Any:
    """For evaluation: the middle of the image.

    The image resized so that its short side is 256/224 S, and of that the middle; done
    the other way round, so that no more than the middle is decoded.

    Args:
      encoded: the file, JPEG or any other format that TensorFlow reads.
      size: S.

    Returns:
      [S, S, 3] uint8.
    """
    tf, _ = import_tensorflow()
    shape, cut = _reader(encoded)
    short = tf.cast(tf.reduce_min(shape), tf.float32)
    side = tf.maximum(tf.cast(tf.round(_CENTRAL * short), tf.int32), 1)
    return _resize(cut(tf.concat([(shape - side) // 2, [side, side]], 0)), size)


def _reader(encoded: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The image's (height, width), and a function that decodes a part of it."""
    tf, _ = import_tensorflow()
    is_jpeg = tf.io.is_jpeg(encoded)

    def whole() -> Any:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    def part(window: Any) -> Any:
        top, left, height, width = tf.unstack(window, num=4)
        return whole()[top : top + height, left : left + width]

    def part_of_jpeg(window: Any) -> Any:
        top, left, height, width = tf.unstack(window, num=4)
        first = tf.maximum(left - _MARGIN, 0)
        after = tf.minimum(left + width + _MARGIN, shape[1])
        # Gray images, and those meant for print, become three channels too.
        decoded = tf.io.decode_and_crop_jpeg(
            encoded,
            tf.stack([top, first, height, after - first]),
            channels=3,
            dct_method="INTEGER_ACCURATE",
        )
        return decoded[:, left - first : left - first + width]

    shape = tf.cond(
        is_jpeg,
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(whole())[:2],
    )
    return shape, lambda window: tf.cond(
        is_jpeg, lambda: part_of_jpeg(window), lambda: part(window)
    )


def _resize(pixels: Any, size: int) -> Any:
    tf, _ = import_tensorflow()
    pixels = tf.ensure_shape(pixels, (None, None, 3))
    resized = tf.image.resize(pixels, (size, size), "bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
