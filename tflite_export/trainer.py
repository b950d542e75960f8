"""Runs an exported training step: the state between steps, in Python and LiteRT.

The state of training on a device lies outside the model, in arrays by name:
``params/PATH``, ``batch_stats/PATH``, ``momentum/PATH`` and, for every sparse leaf,
``masks/PATH``, with a PATH such as ``stem/conv/kernel``. An app holds the same arrays
and does the same with them.

Shape letters: B examples, H and W pixels, C channels, K classes.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tflite_export import graph
from tflite_export.errors import ExportError
from tflite_export.extra import import_interpreter

State = dict[str, np.ndarray]
"""Arrays by name, as the signatures call them."""

DESCRIPTION = "neurrev_jax.training_step"
"""Name of the metadata of an exported training step: its settings as JSON."""

PARAMS, MASKS, MOMENTUM, STATS = "params/", "masks/", "momentum/", "batch_stats/"


class Metrics(NamedTuple):
    """What a training step reports, of its batch before the update.

    Attributes:
      loss: mean cross-entropy.
      accuracy: fraction of the examples classified correctly, in [0, 1].
    """

    loss: float
    accuracy: float


class Trainer:
    """An exported training step and the state that it trains.

    Args:
      model: contents of the file that `convert_training_step` made.
      state: arrays by name, as `TrainableModel.state` has them; copied.
      threads: how many threads LiteRT computes with, at least 1.

    Raises:
      ExportError: if this is no exported training step, or the state does not fit it.
      MissingExtraError: if LiteRT is not installed.
    """

    def __init__(self, model: bytes, state: Mapping[str, Any], threads: int = 1):
        description = graph.read(model).metadata.get(DESCRIPTION)
        if description is None:
            raise ExportError(
                "this model holds no training step; give one that "
                "`convert_training_step` made."
            )
        self.description: dict[str, Any] = json.loads(description)
        interpreter = import_interpreter()(model_content=model, num_threads=threads)
        # Both keep the interpreter alive, and share its memory.
        self._train = interpreter.get_signature_runner("train")
        self._infer = interpreter.get_signature_runner("infer")
        self._inputs = {
            name: (tuple(int(n) for n in detail["shape"]), np.dtype(detail["dtype"]))
            for name, detail in self._train.get_input_details().items()
        }
        self._infer_inputs = set(self._infer.get_input_details())
        images = self._infer.get_input_details()["images"]
        self._infer_shape = tuple(int(n) for n in images["shape"])
        self.state = state

    @property
    def state(self) -> State:
        """Arrays by name; assign a state to continue from it."""
        return dict(self._state)

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        names = {name for name in self._inputs if "/" in name}
        if set(state) != names:
            differing = ", ".join(sorted(set(state) ^ names)[:3])
            raise ExportError(
                f"the state has {len(state)} arrays and the model takes {len(names)}; "
                f"they differ in {differing}. Give the state of this very model."
            )
        self._state = {
            name: self._checked(name, np.array(array)) for name, array in state.items()
        }

    def step(self, images: Any, labels: Any, learning_rate: float) -> Metrics:
        """Trains on one batch.

        Args:
          images: [B, H, W, C] float32, preprocessed as for the network.
          labels: [B] integers in [0, K).
          learning_rate: of this step.

        Returns:
          Loss and accuracy of the batch before the update.

        Raises:
          ExportError: for arrays of other shapes, or a label that is no class.
        """
        outputs = self._run(self._state, images, labels, learning_rate)
        loss, accuracy = outputs.pop("loss"), outputs.pop("accuracy")
        self._state = outputs
        return Metrics(float(loss), float(accuracy))

    def infer(self, images: Any) -> np.ndarray:
        """Classifies images by the running batch statistics.

        Args:
          images: [B, H, W, C] float32, B as the signature ``infer`` has it.

        Returns:
          [B, K] logits.

        Raises:
          ExportError: for images of another shape.
        """
        images = _as("images", images, self._infer_shape, np.dtype(np.float32))
        inputs = {n: a for n, a in self._state.items() if n in self._infer_inputs}
        return self._infer(images=images, **inputs)["logits"]

    def gradients(self, images: Any, labels: Any) -> State:
        """Gradients of the loss by all weights, inactive ones included.

        For methods that grow where the gradient is large. It is the training step
        itself with nothing masked, no momentum and a learning rate of 0: its new
        momenta are the gradients. The state does not change.

        Args:
          images: as for `step`.
          labels: as for `step`.

        Returns:
          By path without prefix, arrays of the weights' shapes.

        Raises:
          ExportError: as `step` does.
        """
        state = dict(self._state)
        for name, array in state.items():
            if name.startswith(MASKS):
                state[name] = np.ones_like(array)
            elif name.startswith(MOMENTUM):
                state[name] = np.zeros_like(array)
        outputs = self._run(state, images, labels, 0.0)
        decay = np.float32(self.description["weight_decay"])
        return {
            path: momentum - decay * self._state[PARAMS + path]
            for path, momentum in _by_path(outputs, MOMENTUM).items()
        }

    def _run(self, state: State, images: Any, labels: Any, rate: float) -> State:
        labels, classes = np.asarray(labels), self.description["num_classes"]
        is_integer = np.issubdtype(labels.dtype, np.integer)
        if not (is_integer and np.all((labels >= 0) & (labels < classes))):
            raise ExportError(
                f"labels of type {labels.dtype} from {labels.min()} to {labels.max()}: "
                f"the network has {classes} classes; number them by integers from 0 "
                f"to {classes - 1}."
            )
        return self._train(
            images=self._checked("images", images),
            labels=self._checked(
                "labels", labels.astype(np.int32, casting="same_kind")
            ),
            learning_rate=np.float32(rate),
            **state,
        )

    def _checked(self, name: str, array: Any) -> np.ndarray:
        return _as(name, array, *self._inputs[name])


def params_and_masks(state: Mapping[str, Any]) -> tuple[State, State]:
    """The weights and masks of a state, as the functions of `neurrev_jax` take them.

    Args:
      state: arrays by name.

    Returns:
      (params, masks): two trees by path without prefix, such as `neurrev_jax.prune`,
      `grow` and `awake` take them. The mask of a dense leaf has shape () and is True.

    Example:
      >>> import numpy as np
      >>> state = {"params/w": np.array([0.0, 2.0]), "params/b": np.array([1.0])}
      >>> state |= {"masks/w": np.array([False, True])}
      >>> params, masks = params_and_masks(state)
      >>> sorted(params), masks["w"], masks["b"]
      (['b', 'w'], array([False,  True]), array(True))
    """
    params, masks = _by_path(state, PARAMS), _by_path(state, MASKS)
    return params, {path: masks.get(path, np.array(True)) for path in params}


def with_masks(state: Mapping[str, Any], masks: Mapping[str, Any]) -> State:
    """A topology update: the state with other masks.

    What is active before and after keeps weight and momentum; what is newly active
    starts at 0 without momentum; what is no longer active becomes 0.

    Args:
      state: arrays by name.
      masks: the new masks by path, as `params_and_masks` returns them.

    Returns:
      The new state; arrays that do not change are shared with the old one.

    Raises:
      ExportError: if the masks are not of the state's leaves and shapes.

    Example:
      >>> import numpy as np
      >>> state = {"params/w": np.array([0.0, 2.0, 3.0])}
      >>> state |= {"momentum/w": np.array([0.0, 0.2, 0.3])}
      >>> state |= {"masks/w": np.array([False, True, True])}
      >>> new = with_masks(state, {"w": np.array([True, False, True])})
      >>> new["params/w"], new["momentum/w"]
      (array([0., 0., 3.]), array([0. , 0. , 0.3]))
    """
    params, old = params_and_masks(state)
    if set(masks) != set(old):
        differing = ", ".join(sorted(set(masks) ^ set(old))[:3])
        raise ExportError(
            f"masks: {differing} is in the masks or in the state only; give one mask "
            "per leaf, those of dense leaves of shape () and True."
        )
    result = dict(state)
    for path in params:
        new = np.asarray(masks[path], bool)
        if new.shape != old[path].shape or (not new.ndim and not new):
            raise ExportError(
                f"masks: that of {path} has the shape {new.shape}, and in the state it "
                f"has {old[path].shape}; a leaf stays dense (shape (), True) or sparse."
            )
        if not new.ndim:
            continue
        result[MASKS + path] = new
        for name in (PARAMS + path, MOMENTUM + path):
            array = np.asarray(state[name])
            result[name] = np.where(new & old[path], array, np.zeros_like(array))
    return result


def _by_path(state: Mapping[str, Any], prefix: str) -> State:
    return {
        name.removeprefix(prefix): np.asarray(array)
        for name, array in state.items()
        if name.startswith(prefix)
    }


def _as(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != shape or array.dtype != dtype:
        raise ExportError(
            f"{name} is {array.dtype}{list(array.shape)}, and the model takes "
            f"{dtype}{list(shape)}; its shapes are fixed when it is exported."
        )
    return array
