"""What a source becomes: a graph that may be published, with what its original says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from .parity import Expected

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Candidate:
    """A graph that may become a version.

    Attributes:
        model: The graph.
        folder: Where its external tensors lie; None if it has none.
        original: Gives what the graph should, from arrays by graph input, with float64 where the graph takes float32;
            None for a graph without original.
        fields: Names of a matrix input's columns as the estimator was trained with; None if it does not know them.
        frameworks: What trained and converted it, as package -> version.
    """

    model: onnx.ModelProto
    folder: Path | None = None
    original: Callable[[Mapping[str, Array]], Expected] | None = None
    fields: tuple[str, ...] | None = None
    frameworks: Mapping[str, str] = field(default_factory=dict)
