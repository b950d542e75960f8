"""How many entries each leaf gets: uniform, ER and ERK.

A distribution is a function of the shapes of the sparsifiable leaves, by path, and
the global sparsity; it returns the sparsity of each leaf it covers. A leaf that is
missing from what it returns stays dense and is never rewired.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from neurrev_jax._src import paths as paths_lib

Shapes = Mapping[str, tuple[int, ...]]
Distribution = Callable[..., Mapping[str, float]]


def initial_counts(
    shapes: Shapes, sparsity: float | Mapping[str, float], distribution: Any
) -> dict[str, int]:
    """How many entries each leaf starts with, n = N - floor(s N).

    Args:
      shapes: shapes of the sparsifiable leaves, by path.
      sparsity: in [0, 1), or by path pattern (first match wins): a pattern other
        than `"*"` fixes the leaves it matches, `"*"` is the target of the
        distribution for the others, and what nothing matches stays dense.
      distribution: a name, a distribution, a function of the shapes (and, if it
        takes two arguments, of the sparsity) or a mapping from path pattern to
        sparsity.

    Returns:
      Counts by path, of the leaves that are sparse.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, a pattern
        that matches nothing, a path that does not exist.
    """
    fixed: dict[str, float] = {}
    target: float | None
    if isinstance(sparsity, Mapping):
        paths_lib.require_match(sparsity, shapes, "sparsity")
        target = None
        for path in shapes:
            pattern = next((p for p in sparsity if paths_lib.matches(p, path)), None)
            if pattern == "*":
                target = _checked(sparsity[pattern], "sparsity['*']")
            elif pattern is not None:
                fixed[path] = _checked(sparsity[pattern], f"sparsity[{pattern!r}]")
    else:
        target = _checked(sparsity, "sparsity")
    spread: Mapping[str, float] = {}
    if target is not None:
        free = {path: shape for path, shape in shapes.items() if path not in fixed}
        spread = _spread(free, shapes, target, distribution) if free else {}
    sparsities = {**spread, **fixed}
    return {
        path: math.prod(shape) - math.floor(sparsities[path] * math.prod(shape))
        for path, shape in shapes.items()
        if path in sparsities
    }


def _spread(
    free: Shapes, shapes: Shapes, target: float, distribution: Any
) -> Mapping[str, float]:
    if isinstance(distribution, str):
        if distribution not in _NAMED:
            raise ValueError(
                f"distribution={distribution!r} is unknown; choose one of "
                f"{', '.join(map(repr, _NAMED))}, a mapping or a function of "
                "the shapes."
            )
        distribution = _NAMED[distribution]()
    sparsities: Mapping[str, Any]
    if isinstance(distribution, Mapping):
        paths_lib.require_match(distribution, shapes, "distribution")
        found = {
            path: next(
                (s for p, s in distribution.items() if paths_lib.matches(p, path)), None
            )
            for path in free
        }
        sparsities = {path: s for path, s in found.items() if s is not None}
    elif isinstance(distribution, _Uniform):
        # The first convolution is the network's, whichever leaves have been fixed.
        whole = distribution(shapes, target)
        sparsities = {path: s for path, s in whole.items() if path in free}
    elif callable(distribution):
        takes = inspect.signature(distribution).parameters.values()
        positional = [
            p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        needed = [p for p in positional if p.default is p.empty]
        arguments = (free, target) if len(needed) > 1 else (free,)
        sparsities = cast(Distribution, distribution)(*arguments)
    else:
        raise ValueError(
            f"distribution={distribution!r} must be one of "
            f"{', '.join(map(repr, _NAMED))}, a mapping or a function of the shapes."
        )
    for path, value in sparsities.items():
        if path not in free:
            raise ValueError(
                f"distribution: {path!r} is not a sparsifiable leaf; return only "
                f"paths among {', '.join(free)}."
            )
        _checked(value, f"distribution, leaf {path!r}")
    return sparsities


def uniform(
    *,
    first: str | bool | None = None,
    classifier: bool = False,
    depthwise: str = "*depthwise*",
    exclude: Sequence[str] = (),
    layout: str = "HWIO",
) -> Distribution:
    """The same sparsity for every convolution but the first (the paper's section 3).

    In a tree with convolutions (leaves of four or more axes) the first one,
    depthwise ones and everything with fewer axes (the classifier) stay dense. A
    tree without convolutions gets the sparsity everywhere.

    Args:
      first: path pattern of the first convolution; None finds it as the one with
        the smallest number of input channels; False leaves no convolution dense.
      classifier: sparsify two-dimensional kernels too, in a tree with convolutions.
      depthwise: pattern of paths (in lower case) of depthwise convolutions.
      exclude: further path patterns to leave dense.
      layout: where the channel axes of a kernel stand: they are its last two
        (`"HWIO"`) or its first two (`"OIHW"`).

    Returns:
      A distribution for `sparse_transform(distribution=...)`.

    Raises:
      ValueError: for another layout; when applied, if the first convolution is not
        unique or a pattern matches nothing.

    >>> shapes = {"conv_1": (3, 3, 3, 8), "conv_2": (3, 3, 8, 8), "fc": (8, 10)}
    >>> uniform()(shapes, 0.9)
    {'conv_2': 0.9}
    """
    return _Uniform(
        depthwise, tuple(exclude), _channels_last(layout), first, classifier
    )


def er(
    *,
    depthwise: str = "*depthwise*",
    exclude: Sequence[str] = (),
    layout: str = "HWIO",
) -> Distribution:
    """Erdos-Renyi: density in proportion to (n_in + n_out) / (n_in n_out).

    Covers every sparsifiable leaf but depthwise convolutions, with the iterative
    cap of RigL's code: leaves whose density would exceed 1 become dense
    and the others share the rest of the budget. Leaves of one axis or none (of which
    there are any only where `where` says so) stay dense beside kernels; a tree without
    kernels gets the sparsity everywhere.

    Args:
      depthwise: pattern of paths (in lower case) of depthwise convolutions.
      exclude: further path patterns to leave dense.
      layout: `"HWIO"` or `"OIHW"`, see `uniform`.

    Returns:
      A distribution for `sparse_transform(distribution=...)`.

    Raises:
      ValueError: for another layout; when applied, if a pattern matches nothing.

    >>> shapes = {"a": (3, 3, 1, 4), "b": (3, 3, 4, 8), "c": (8, 10)}
    >>> {path: round(1 - s, 6) for path, s in er()(shapes, 0.8).items()}
    {'a': 0.599415, 'b': 0.179825, 'c': 0.107895}
    """
    return _Er(depthwise, tuple(exclude), _channels_last(layout), False)


def erk(
    *,
    depthwise: str = "*depthwise*",
    exclude: Sequence[str] = (),
    layout: str = "HWIO",
) -> Distribution:
    """Erdos-Renyi kernel: density in proportion to sum(shape) / prod(shape).

    As `er`, with the spatial axes of a kernel counted too (RigL, section 3).

    Args:
      depthwise: pattern of paths (in lower case) of depthwise convolutions.
      exclude: further path patterns to leave dense.
      layout: `"HWIO"` or `"OIHW"`; makes no difference here.

    Returns:
      A distribution for `sparse_transform(distribution=...)`.

    Raises:
      ValueError: for another layout; when applied, if a pattern matches nothing.

    >>> shapes = {"a": (3, 3, 1, 4), "b": (3, 3, 4, 8), "c": (8, 10)}
    >>> {path: round(1 - s, 6) for path, s in erk()(shapes, 0.8).items()}
    {'a': 0.533097, 'b': 0.109043, 'c': 0.392553}
    """
    return _Er(depthwise, tuple(exclude), _channels_last(layout), True)


_NAMED = {"uniform": uniform, "er": er, "erk": erk}


@dataclasses.dataclass(frozen=True)
class _Selective:
    depthwise: str
    exclude: tuple[str, ...]
    channels_last: bool

    def is_depthwise(self, path: str) -> bool:
        return paths_lib.matches(self.depthwise.lower(), path.lower())

    def is_excluded(self, path: str) -> bool:
        return any(paths_lib.matches(pattern, path) for pattern in self.exclude)

    def inputs_and_outputs(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return (shape[-2], shape[-1]) if self.channels_last else (shape[1], shape[0])


@dataclasses.dataclass(frozen=True)
class _Uniform(_Selective):
    first: str | bool | None
    classifier: bool

    def __call__(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        _checked(sparsity, "sparsity")
        paths_lib.require_match(self.exclude, shapes, "exclude")
        convolutions = [path for path, shape in shapes.items() if len(shape) >= 4]
        if not convolutions:
            return {p: sparsity for p in shapes if not self.is_excluded(p)}
        dense = self._first(shapes, convolutions)
        covered = {}
        for path, shape in shapes.items():
            is_classifier = len(shape) == 2 and self.classifier
            if path in dense or self.is_excluded(path) or self.is_depthwise(path):
                continue
            if len(shape) >= 4 or is_classifier:
                covered[path] = sparsity
        return covered

    def _first(self, shapes: Shapes, convolutions: list[str]) -> set[str]:
        if self.first is False:
            return set()
        if isinstance(self.first, str):
            paths_lib.require_match([self.first], shapes, "first")
            return {p for p in shapes if paths_lib.matches(self.first, p)}
        inputs = {
            path: self.inputs_and_outputs(shapes[path])[0]
            for path in convolutions
            if not self.is_depthwise(path)
        }
        if not inputs:
            return set()
        fewest = min(inputs.values())
        candidates = [path for path, channels in inputs.items() if channels == fewest]
        if len(candidates) > 1:
            raise ValueError(
                f"uniform: the first convolution is not unique, {len(candidates)} have "
                f"{fewest} input channels ({', '.join(candidates[:4])}); name it with "
                "uniform(first='path'), or leave none dense with first=False."
            )
        return set(candidates)


@dataclasses.dataclass(frozen=True)
class _Er(_Selective):
    kernel: bool

    def __call__(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        _checked(sparsity, "sparsity")
        paths_lib.require_match(self.exclude, shapes, "exclude")
        covered = {
            path: shape
            for path, shape in shapes.items()
            if not self.is_depthwise(path) and not self.is_excluded(path)
        }
        # Leaves of one axis connect nothing; a tree of nothing else is all the same.
        kernels = {path: shape for path, shape in covered.items() if len(shape) > 1}
        covered = kernels or covered
        raw = {path: self._raw(shape) for path, shape in covered.items()}
        sizes = {path: math.prod(shape) for path, shape in covered.items()}
        zeros = {path: math.floor(sparsity * size) for path, size in sizes.items()}
        dense: set[str] = set()
        while len(dense) < len(covered):
            sparse = [path for path in covered if path not in dense]
            budget = sum(sizes[p] - zeros[p] for p in sparse)
            budget -= sum(zeros[p] for p in dense)
            scale = budget / sum(raw[p] * sizes[p] for p in sparse)
            largest = max(raw[p] for p in sparse)
            if scale * largest <= 1:
                break
            dense |= {p for p in sparse if raw[p] == largest}
        return {p: 0.0 if p in dense else 1 - scale * raw[p] for p in covered}

    def _raw(self, shape: tuple[int, ...]) -> float:
        if len(shape) < 2:
            return 1.0
        axes = shape if self.kernel else self.inputs_and_outputs(shape)
        return sum(axes) / math.prod(axes)


def _channels_last(layout: str) -> bool:
    if layout.endswith("IO"):
        return True
    if layout.startswith("OI"):
        return False
    raise ValueError(
        f"layout={layout!r} is unknown; the channel axes come last ('HWIO') or first "
        "('OIHW')."
    )


def _checked(sparsity: Any, what: str) -> float:
    try:
        value = math.nan if isinstance(sparsity, (str, bool)) else float(sparsity)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what}={sparsity!r} must be a number known before tracing; under "
            "optax.inject_hyperparams name it in static_args."
        ) from error
    if not 0 <= value < 1:
        raise ValueError(
            f"{what}={sparsity!r} must lie in [0, 1): it is the fraction of zeros, "
            "0.9 for 90 %."
        )
    return value
