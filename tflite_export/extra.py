"""The `export` extra: TensorFlow, which converts, and LiteRT, which runs models.

Both are imported when they are needed and not before, so that help texts and errors
come at once and parsing a phone's output needs neither.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from tflite_export.errors import MissingExtraError

_INSTALL = "pip install 'neurrev_jax[export]'"


def import_tensorflow() -> Any:
    """The module `tensorflow`, with its start-up messages off.

    Returns:
      The module.

    Raises:
      MissingExtraError: if it is not installed, with the command that does.
    """
    # Read when the library is loaded; a user's own setting stands.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet():
        return _import("tensorflow", "TensorFlow")


def import_interpreter() -> Any:
    """LiteRT's class `Interpreter`.

    Returns:
      The class.

    Raises:
      MissingExtraError: if LiteRT is not installed, with the command that does.
    """
    return _import("ai_edge_litert.interpreter", "LiteRT").Interpreter


def import_schema() -> Any:
    """The classes of the file format, which come with LiteRT.

    Returns:
      The module.

    Raises:
      MissingExtraError: if LiteRT is not installed, with the command that does.
    """
    return _import("ai_edge_litert.schema_py_generated", "LiteRT")


def import_flatbuffers() -> Any:
    """The library of the file format, which comes with LiteRT.

    Returns:
      The module.

    Raises:
      MissingExtraError: if it is not installed, with the command that does.
    """
    return _import("flatbuffers", "LiteRT")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what these libraries say about themselves from the terminal.

    Some of it goes straight to the process's error stream, from C++; what they raise
    says all there is to know.

    Yields:
      Nothing.
    """
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _without_error_stream():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _without_error_stream() -> Iterator[None]:
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, io.UnsupportedOperation):
        # Not a file: in a notebook for example.
        descriptor = 2
    sys.stderr.flush()
    saved = os.dup(descriptor)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), descriptor)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, descriptor)
        os.close(saved)


def _import(module: str, product: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{product} is not installed, or cannot be loaded ({error}); exporting "
            f"needs it: {_INSTALL}"
        ) from error
