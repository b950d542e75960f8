"""What goes wrong for reasons that a user can mend."""

from typing import Any


class ExportError(Exception):
    """A request that cannot be met, in one sentence with its remedy."""


class MissingExtraError(ExportError, ImportError):
    """TensorFlow or LiteRT is not installed."""


class VerificationError(ExportError):
    """A converted model that does not do what the JAX function does.

    Args:
      message: what is wrong and what to choose instead.
      exported: the model, for who wants to look into it; None if there is none.
    """

    def __init__(self, message: str, exported: Any = None):
        super().__init__(message)
        self.exported = exported
