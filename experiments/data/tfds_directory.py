"""Finding a prepared TFDS data set; the only place that imports TensorFlow Datasets.

Nothing here uses the network: what is not there is an error that says how to get it.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from experiments.errors import UsageError

_DEFAULT = "~/tensorflow_datasets"
_BY_HAND = {
    "imagenet2012": " (after putting ILSVRC2012_img_train.tar and "
    "ILSVRC2012_img_val.tar into {directory}/downloads/manual)"
}


def import_tensorflow() -> tuple[Any, Any]:
    """TensorFlow and TensorFlow Datasets, quiet and away from the accelerators.

    Returns:
      The modules ``tensorflow`` and ``tensorflow_datasets``.

    Raises:
      UsageError: if they are not installed.
    """
    is_first = "tensorflow_datasets" not in sys.modules
    # JAX sets 1 when it is imported, at which machines without a GPU still have errors.
    if is_first and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        with _without_notices() if is_first else contextlib.nullcontext():
            import tensorflow as tf
            import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            f"data.source='tfds' needs TensorFlow Datasets ({error}); install it with "
            "pip install 'neurrev_jax[data]', or choose data.source='npz'."
        ) from error
    # The accelerators belong to JAX.
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf, tfds


# What TensorFlow's libraries write before any log level applies to them: their notices
# of severity "information", and the remark that this is so.
_NOTICE = re.compile(rb"I\d{4} .*|WARNING: All log messages before absl::.*")


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Holds back what is written to standard error, and leaves out the notices."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # There is no standard error.
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not _NOTICE.match(line):
                    os.write(2, line)


def data_dir(configured: str | None) -> str:
    """The directory that TFDS data sets lie in.

    Args:
      configured: the config's ``data.dir``, which takes precedence over the
        environment's TFDS_DATA_DIR, which takes precedence over TFDS's default.

    Returns:
      The path; it need not exist.
    """
    chosen = configured or os.environ.get("TFDS_DATA_DIR") or _DEFAULT
    return os.path.expanduser(chosen)


def open_builder(name: str, configured: str | None, splits: tuple[str, ...]) -> Any:
    """The newest version of a data set that has been prepared.

    Args:
      name: the data set's name in TFDS.
      configured: the config's ``data.dir``.
      splits: splits that it has to have.

    Returns:
      A read-only TFDS builder.

    Raises:
      UsageError: if it is not there or not complete, naming the directory and the
        remedy.
    """
    tf, tfds = import_tensorflow()
    directory = data_dir(configured)
    home = os.path.join(directory, name)
    pattern = os.path.join(home, "*", "dataset_info.json")
    versions = [
        os.path.dirname(path)
        for path in tf.io.gfile.glob(pattern)
        if re.fullmatch(r"\d+\.\d+\.\d+", os.path.basename(os.path.dirname(path)))
    ]
    by_hand = _BY_HAND.get(name, "").format(directory=directory)
    if not versions:
        raise UsageError(
            f"there is no data set {name!r} in {directory}; prepare it with tfds build "
            f"{name} --data_dir={directory}{by_hand}, name the directory that has it "
            "with --config.data.dir or TFDS_DATA_DIR, or try the experiment with "
            "--config.data.source=generated."
        )
    newest = max(
        versions, key=lambda p: tuple(map(int, os.path.basename(p).split(".")))
    )
    anew = f"prepare it anew with tfds build {name} --data_dir={directory} --overwrite"
    try:
        builder = tfds.builder_from_directory(newest)
    except Exception as error:  # Whatever is wrong in the files that describe it.
        raise UsageError(
            f"the data set in {newest} cannot be opened ({type(error).__name__}: "
            f"{error}); {anew}{by_hand}."
        ) from error
    present = set(tf.io.gfile.listdir(newest))
    for split in splits:
        if split not in builder.info.splits:
            raise UsageError(
                f"the data set in {newest} has no split {split!r}, only "
                f"{', '.join(builder.info.splits) or 'an empty list'}; {anew}{by_hand}."
            )
        files = builder.info.splits[split].filenames
        missing = sorted(set(files) - present)
        if missing:
            raise UsageError(
                f"the data set in {newest} lacks {len(missing)} of the {len(files)} "
                f"files of its split {split!r}, {missing[0]} for one; copy them there, "
                f"or {anew}{by_hand}."
            )
    return builder
