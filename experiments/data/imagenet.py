"""ImageNet-2012 as a stream, read from a TFDS directory through tf.data.

The training set is divided into V = ``data.stream_shares`` even shares. A batch is
made of equal parts of all shares, in the order of the shares, and process p of P reads
V/P consecutive shares: whatever P is, the processes' batches put together are the same.
Pixels leave as uint8; they are normalized on the device.

Shape letters: B examples of a batch in this process, H and W pixels.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.data import pixels, records, tfds_directory
from experiments.data.base import DataInfo
from experiments.data.statistics import STATISTICS
from experiments.errors import UsageError

_TRAIN, _TEST = "train", "validation"

Array = Any


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStream:
    """What one process reads of a data set. Made by `open_stream`.

    Attributes:
      info: facts about the data set as a whole.
      builder: of TFDS.
      process_index: the number of this process, p.
      process_count: how many processes read together, P.
      shares: into how many parts the training set is divided, V.
      shuffle_buffer: records of each share from which the next one is drawn.
    """

    info: DataInfo
    builder: Any
    process_index: int
    process_count: int
    shares: int
    shuffle_buffer: int

    def train_batches(
        self, *, seed: int, first_step: int, steps_per_epoch: int, batch_size: int
    ) -> Iterator[tuple[Array, Array]]:
        """Endless shuffled and augmented batches, the same for the same arguments.

        Args:
          seed: at least 0 and less than 2**31; another seed gives other orders, crops
            and mirrored images.
          first_step: begins with the batch that a stream from 0 yields after so many.
          steps_per_epoch: batches of each pass over the training set; examples that
            fill none are left out, in each epoch others.
          batch_size: examples of a batch over all processes.

        Returns:
          Iterator over images [B, H, W, 3] uint8 and labels [B] int32.

        Raises:
          UsageError: if the shares cannot give equal parts of a batch, or have too few
            examples for an epoch.
        """
        tf, _ = tfds_directory.import_tensorflow()
        if batch_size % self.shares:
            raise UsageError(
                f"batch_size={batch_size} must be a multiple of data.stream_shares="
                f"{self.shares}, because every share gives an equal part of a batch; "
                "change one of the two."
            )
        part = batch_size // self.shares
        available = self.info.train_examples // self.shares
        if steps_per_epoch * part > available:
            raise UsageError(
                f"{steps_per_epoch} batches of {batch_size} examples need "
                f"{steps_per_epoch * part} examples of each of the {self.shares} "
                f"shares, and the smallest share has {available}; lower the steps per "
                "epoch or batch_size."
            )
        epoch, done = divmod(first_step, steps_per_epoch)
        ends = records.bounds(self.info.train_examples, self.shares)
        mine = records.bounds(self.shares, self.process_count)
        streams = [
            records.shuffled_forever(
                records.find_range(self.builder, _TRAIN, ends[v], ends[v + 1]),
                share=v,
                seed=seed,
                first_epoch=epoch,
                first_record=done * part,
                records_per_epoch=steps_per_epoch * part,
                shuffle_buffer=self.shuffle_buffer,
                # So that all shares fill their buffers at the same time.
            ).prefetch(part)
            for v in range(mine[self.process_index], mine[self.process_index + 1])
        ]
        turns = np.repeat(np.arange(len(streams)), part)

        def decode(head: Any, index: Any, record: Any) -> tuple[Any, Any]:
            encoded, label = self._parse(record)
            size = self.info.image_shape[0]
            return pixels.random_crop(encoded, size, head, index), label

        taken_in_turns = tf.data.Dataset.choose_from_datasets(
            streams, tf.data.Dataset.from_tensor_slices(turns).repeat()
        )
        return self._run(taken_in_turns, decode, part * len(streams))

    def test_batches(self, batch_size: int) -> Iterator[tuple[Array, Array, Array]]:
        """The test set, every example exactly once over all processes.

        Args:
          batch_size: examples of a batch over all processes, a multiple of their
            number.

        Returns:
          Iterator over images [B, H, W, 3] uint8, labels [B] int32 and include [B]
          bool, False for padding; over as many batches in every process.

        Raises:
          UsageError: if the processes cannot have equal parts of a batch.
        """
        return self._once(_TEST, self.info.test_examples, batch_size)

    def observed_batches(
        self, examples: int, batch_size: int
    ) -> Iterator[tuple[Array, Array, Array]]:
        """The first examples of the training set, treated as those of the test set.

        Args:
          examples: how many over all processes; at most the whole training set.
          batch_size: examples of a batch over all processes, a multiple of their
            number.

        Returns:
          As `test_batches`.

        Raises:
          UsageError: if the processes cannot have equal parts of a batch.
        """
        return self._once(_TRAIN, min(examples, self.info.train_examples), batch_size)

    def _once(
        self, split: str, examples: int, batch_size: int
    ) -> Iterator[tuple[Array, Array, Array]]:
        if batch_size % self.process_count or not batch_size:
            raise UsageError(
                f"an evaluation batch of {batch_size} examples must be a multiple of "
                f"the {self.process_count} processes; change eval_batch_size."
            )
        local = batch_size // self.process_count
        ends = records.bounds(examples, self.process_count)
        start, stop = ends[self.process_index], ends[self.process_index + 1]
        # What the process with the most examples needs: steps are taken together.
        largest = -(-examples // self.process_count)
        steps = -(-largest // local)

        def decode(record: Any) -> tuple[Any, Any]:
            encoded, label = self._parse(record)
            return pixels.central_crop(encoded, self.info.image_shape[0]), label

        found = records.find_range(self.builder, split, start, stop)
        batches = self._run(records.in_order(found), decode, local)
        return _padded(batches, steps, local, self.info.image_shape)

    def _parse(self, record: Any) -> tuple[Any, Any]:
        tf, tfds = tfds_directory.import_tensorflow()
        example = self.builder.info.features.deserialize_example(
            record, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return example["image"], tf.cast(example["label"], tf.int32)

    def _run(self, source: Any, decode: Any, batch: int) -> Iterator[Any]:
        tf, _ = tfds_directory.import_tensorflow()
        decode = tf.autograph.experimental.do_not_convert(decode)
        options = tf.data.Options()
        options.deterministic = True
        dataset = (
            source.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(batch)
            .prefetch(2)
            .with_options(options)
        )
        return self._iterate(dataset, tf.errors.OpError)

    def _iterate(self, dataset: Any, failure: type[Exception]) -> Iterator[Any]:
        try:
            yield from dataset.as_numpy_iterator()
        except failure as error:
            raise UsageError(
                f"the data set in {self.builder.data_path} cannot be read "
                f"({error}); copy it or prepare it anew, and start the same "
                "command again to continue."
            ) from error


def open_stream(data: Any, process_index: int, process_count: int) -> ImageStream:
    """Opens a prepared data set; nothing is read yet.

    Args:
      data: the config's ``data`` section.
      process_index: the number of this process.
      process_count: how many processes read together.

    Returns:
      The stream of this process.

    Raises:
      UsageError: if the data set is not there or has another form, if the shares
        cannot be divided among the processes, or if the image size is not known.
    """
    shares = data.stream_shares
    if shares < 1 or shares % process_count:
        raise UsageError(
            f"data.stream_shares={shares} must be a multiple of the {process_count} "
            "processes, because each reads as many shares; set it to a multiple."
        )
    if data.shuffle_buffer < 1:
        raise UsageError(
            f"data.shuffle_buffer={data.shuffle_buffer} must be at least 1; 1 leaves "
            "the records of a file in order."
        )
    builder = tfds_directory.open_builder(data.name, data.dir, (_TRAIN, _TEST))
    classes, stored_size = _form(builder)
    size = data.image_size or stored_size
    if not size:
        raise UsageError(
            f"the images of {data.name} differ in size, so that data.image_size has to "
            "be set; choose --config.data.image_size=224, say."
        )
    splits = builder.info.splits
    examples = splits[_TRAIN].num_examples
    if examples < shares:
        raise UsageError(
            f"data.stream_shares={shares} must not exceed the {examples} training "
            "examples; lower it."
        )
    mean, std = STATISTICS["imagenet2012"]
    info = DataInfo(
        name=data.name,
        num_classes=classes,
        image_shape=(size, size, 3),
        train_examples=examples,
        test_examples=splits[_TEST].num_examples,
        mean=mean,
        std=std,
        class_names=tuple(builder.info.features["label"].names or ()),
        crop=pixels.CENTRAL_CROP,
    )
    return ImageStream(
        info, builder, process_index, process_count, shares, data.shuffle_buffer
    )


def _form(builder: Any) -> tuple[int, int | None]:
    """The number of classes, and the side of the images if all are equal squares."""
    _, tfds = tfds_directory.import_tensorflow()
    features = builder.info.features
    for name, kind in (
        ("image", tfds.features.Image),
        ("label", tfds.features.ClassLabel),
    ):
        if name not in features or not isinstance(features[name], kind):
            raise UsageError(
                f"the data set in {builder.data_path} must have a feature {name!r} of "
                f"the type {kind.__name__}, and has {', '.join(features)}; choose a "
                "data set for image classification."
            )
    height, width, _ = features["image"].shape
    return features["label"].num_classes, height if height == width else None


def _padded(
    batches: Iterator[tuple[Array, Array]],
    steps: int,
    size: int,
    image_shape: tuple[int, int, int],
) -> Iterator[tuple[Array, Array, Array]]:
    """Fills the last batch, and adds whole ones where this process has fewer."""
    nothing = np.zeros((0, *image_shape), np.uint8), np.zeros(0, np.int32)
    for _ in range(steps):
        images, labels = next(batches, nothing)
        include = np.arange(size) < len(labels)
        if missing := size - len(labels):
            images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
            labels = np.pad(labels, (0, missing))
        yield images, labels, include
