"""Which records of a TFDS split are read, and in which order.

For training a split is divided into V even shares. Each share is a stream of its own,
shuffled anew in every epoch, whoever reads it: that is why the batches do not depend
on the number of processes. Records stay undecoded here.

Every random choice is drawn from a pair of integers that names it, (seed and epoch,
what is drawn), and from nothing else: no number of threads and no earlier choice
matters. Draws of image i have the numbers 2i and 2i + 1, those of share v the numbers
-2v - 1 and -2v - 2.
"""

import dataclasses
from typing import Any

from experiments.data.tfds_directory import import_tensorflow

# Files of a share that are read at a time. Part of what the order is defined by.
_OPEN_FILES = 4
# For a local disk anything does; over a network every read costs a round trip.
_READ_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Range:
    """Consecutive records of a split, over as many files as they lie in.

    Attributes:
      start: number of the first record within the split.
      examples: number of records.
      filenames: files that hold them.
      skips: for each file, how many of its records come before the range.
      takes: for each file, how many of its records belong to it; -1 for all.
    """

    start: int
    examples: int
    filenames: tuple[str, ...]
    skips: tuple[int, ...]
    takes: tuple[int, ...]


def bounds(examples: int, parts: int) -> list[int]:
    """Where to cut so that the parts differ by one example at most.

    Args:
      examples: how many there are.
      parts: how many parts to make.

    Returns:
      The start of each part, and then the end of the last.

    >>> bounds(10, 4)
    [0, 2, 5, 7, 10]
    """
    return [examples * part // parts for part in range(parts + 1)]


def find_range(builder: Any, split: str, start: int, stop: int) -> Range:
    """Finds records in the files of a data set.

    Args:
      builder: of TFDS.
      split: name of a split.
      start: the first record.
      stop: the first record that is not wanted any more.

    Returns:
      The range, possibly empty.
    """
    wanted = f"{split}[{start}:{stop}]"
    # TFDS refuses to look for nothing.
    found = builder.info.splits[wanted].file_instructions if start < stop else []
    return Range(
        start=start,
        examples=stop - start,
        filenames=tuple(str(file.filename) for file in found),
        skips=tuple(file.skip for file in found),
        takes=tuple(file.take for file in found),
    )


def in_order(part: Range) -> Any:
    """The records of a range as they lie in the files.

    Args:
      part: the range.

    Returns:
      A ``tf.data.Dataset`` of serialized examples.
    """
    tf, _ = import_tensorflow()
    files = (
        tf.constant(part.filenames, tf.string),
        tf.constant(part.skips, tf.int64),
        tf.constant(part.takes, tf.int64),
    )
    return tf.data.Dataset.from_tensor_slices(files).flat_map(_reader())


def shuffled_forever(
    part: Range,
    *,
    share: int,
    seed: int,
    first_epoch: int,
    first_record: int,
    records_per_epoch: int,
    shuffle_buffer: int,
) -> Any:
    """The records of a share, epoch after epoch, each in another order.

    In each epoch the files are permuted, several are read in turn, and the records
    go through a shuffle buffer. What comes after ``records_per_epoch`` records is left
    out, in every epoch something else.

    Args:
      part: the share's records, at least one.
      share: the number of the share, v.
      seed: of the run.
      first_epoch: where to begin.
      first_record: how many records of the first epoch have been used already.
      records_per_epoch: how many to use of each epoch, at most all of them.
      shuffle_buffer: how many records the shuffle buffer holds.

    Returns:
      An endless ``tf.data.Dataset`` of (pair_head, index, serialized example), where
      pair_head is the first integer of the pairs to draw by and index the one that
      names the image in this epoch, different from those of all other shares.
    """
    tf, _ = import_tensorflow()

    @tf.autograph.experimental.do_not_convert
    def one_epoch(epoch: Any) -> Any:
        head = tf.constant(seed, tf.int64) * 2**32 + epoch
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(part.filenames)), seed=tf.stack([head, -2 * share - 1])
        )
        files = (
            tf.gather(tf.constant(part.filenames, tf.string), order),
            tf.gather(tf.constant(part.skips, tf.int64), order),
            tf.gather(tf.constant(part.takes, tf.int64), order),
        )
        buffer_seed = tf.random.stateless_uniform(
            (), tf.stack([head, -2 * share - 2]), 0, 2**31 - 1, tf.int64
        )
        is_first = tf.equal(epoch, first_epoch)
        used = tf.where(is_first, tf.constant(first_record, tf.int64), 0)
        return (
            tf.data.Dataset.from_tensor_slices(files)
            .interleave(
                _reader(),
                cycle_length=_OPEN_FILES,
                num_parallel_calls=_OPEN_FILES,
                deterministic=True,
            )
            .shuffle(shuffle_buffer, seed=buffer_seed, reshuffle_each_iteration=False)
            .enumerate(start=part.start)
            .take(records_per_epoch)
            .skip(used)
            .map(lambda index, record: (head, index, record))
        )

    return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(one_epoch)


def _reader() -> Any:
    """From (filename, skip, take) to the records."""
    tf, _ = import_tensorflow()

    # What is mapped over a dataset is plain TensorFlow; there is nothing to convert.
    @tf.autograph.experimental.do_not_convert
    def read(filename: Any, skip: Any, take: Any) -> Any:
        records = tf.data.TFRecordDataset(filename, buffer_size=_READ_BYTES)
        return records.skip(skip).take(take)

    return read
