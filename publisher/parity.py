"""Parity: what the graph gives against what its original gives, on the same examples.

- Every output of the graph is compared; one the original can't answer for is refused, because nobody would know that
  it is wrong (skl2onnx calls an SGDClassifier's decision values `probabilities`).
- Floats may differ as float32 differs from float64: relative to the value, or to the largest value of that output,
  since sums of large terms that cancel keep the error of the terms.
- The one decision value of two classes may come as two columns, its negative and itself.
- A label may differ on rows whose two best classes are as good as tied, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelcast import golden
from modelcast.errors import ParityError
from modelcast.records import Tolerance

Array = npt.NDArray[Any]

# float32 has 7 digits; a pipeline of a scaler, a sum and a logistic loses two or three of them.
TOLERANCE: Final = Tolerance(relative=1e-3, absolute=1e-5)

_HINT = (
    "The converter expresses a step wrongly (as skl2onnx does categorical_features of histogram gradient boosting: "
    "encode them one-hot), or a scaler's float32 falls on the other side of a tree's threshold (trees need none). "
    "Replace that step, or publish an ONNX file of your own."
)


@dataclass(frozen=True)
class Expected:
    """What the original gives.

    Attributes:
        outputs: By name of the graph's output, batch first.
        ties: By name of an output, `[N]` bool: rows on which either answer is right.
    """

    outputs: Mapping[str, Array]
    ties: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


def check(expected: Expected, outputs: Mapping[str, Array]) -> None:
    """Compares.

    Args:
        expected: From the original.
        outputs: From the graph, by name, batch first, finite.

    Raises:
        ParityError: They disagree; the message names the output, the worst row and both values.
    """
    for name, got in outputs.items():
        if name not in expected.outputs:
            raise ParityError(
                f"the original has nothing to compare output {name!r} with",
                hint="Publish an ONNX file of your own that leaves this output out.",
            )
        want = _alike(name, np.asarray(expected.outputs[name]), got)
        ties = expected.ties.get(name)
        if ties is not None:
            want = np.where(ties.reshape(-1, *[1] * (got.ndim - 1)), got, want)
        found = golden.difference(want, got, _tolerance(want))
        if found is not None:
            raise ParityError(
                f"the graph disagrees with its original: output {name!r}, row {found.row} of the examples: "
                f"original {found.want}, graph {found.got} ({found.rows} of {len(got)} rows disagree)",
                hint=_HINT,
            )


def _alike(name: str, want: Array, got: Array) -> Array:
    """`want` in the shape and kind of `got`."""
    if want.ndim == 1 and got.shape == (len(want), 2) and want.dtype.kind == "f":
        want = np.stack([-want, want], axis=1)
    if want.size != got.size or len(want) != len(got):
        raise ParityError(
            f"the graph's output {name!r} has shape {list(got.shape)}, the original gives {list(want.shape)}",
            hint=_HINT,
        )
    shaped = want.reshape(got.shape)
    if got.dtype.kind in "OU":
        return np.asarray([str(value) for value in shaped.reshape(-1)], dtype=object).reshape(got.shape)
    try:
        return (
            shaped.astype(np.float64) if got.dtype.kind == "f" or shaped.dtype.kind == "f" else shaped.astype(np.int64)
        )
    except (TypeError, ValueError) as error:
        raise ParityError(
            f"the graph's output {name!r} is {got.dtype}, the original gives {want.dtype}", hint=_HINT
        ) from error


def _tolerance(want: Array) -> Tolerance:
    if want.dtype.kind != "f" or want.size == 0:
        return TOLERANCE
    finite = np.abs(want[np.isfinite(want)])
    largest = float(finite.max()) if finite.size else 0.0
    return Tolerance(TOLERANCE.relative, TOLERANCE.absolute * max(1.0, largest))
