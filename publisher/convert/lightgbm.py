"""LightGBM: estimators alone or as a Pipeline's step, and boosters; through onnxmltools.

- Outputs are those of every estimator: `label` and `probabilities`, or `variable`. A booster of a `binary` or
  `multiclass` objective counts as a classifier of the classes 0, 1, ….
- After early stopping estimator and booster predict with the best iteration; so does the graph.
- LightGBM compares float64. A graph of float32 inputs gets thresholds rounded down, so that it decides every float32
  number as LightGBM does; `precise` keeps float64 throughout, for examples that float32 puts on the other side.
- Features are known by their names where the model was trained with names.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from modelcast.errors import ConversionError

from ..candidate import Candidate
from ..examples import Rows
from . import estimators, origins

EXTRA: Final = "lightgbm"

_PACKAGES = ("sklearn", "skl2onnx", "onnxmltools", "lightgbm")
# How ONNX's tree operators call what may be given as a tensor of float64 instead.
_DOUBLES = ("nodes_values", "class_weights", "target_weights", "base_values")
_HINT = "Train it without that, or publish an ONNX file of your own."


def recognises(value: object) -> bool:
    """Whether this is a Booster; LightGBM's estimators are estimators like others."""
    return origins.is_a(value, "lightgbm", "Booster")


def convert(value: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
    """Converts a Booster; see `converters.convert`."""
    origins.load("a LightGBM booster", EXTRA, *_PACKAGES)
    wrapped, versions = _wrapped(value), _register()
    candidate = estimators.convert(wrapped, rows, fields, precise=precise, extra=EXTRA)
    return estimators.with_frameworks(candidate, versions)


def _register() -> dict[str, str]:
    _, _, onnxmltools, lightgbm = origins.load("a LightGBM model", EXTRA, *_PACKAGES)
    from . import booster

    booster.register([lightgbm.LGBMRegressor, lightgbm.LGBMRanker], [lightgbm.LGBMClassifier], "LightGBM", _write)
    return {"lightgbm": str(lightgbm.__version__), "onnxmltools": str(onnxmltools.__version__)}


def _write(scope: Any, operator: Any, container: Any) -> None:
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

    from .booster import Container

    class Exact(Container):
        """Trees whose thresholds fit the width of the numbers compared with them."""

        def add_node(self, op_type: str, inputs: Any, outputs: Any, **options: Any) -> None:
            if op_type.startswith("TreeEnsemble"):
                options = _doubles(options) if self.double else options | {"nodes_values": _rounded_down(**options)}
            super().add_node(op_type, inputs, outputs, **options)

    convert_lightgbm(scope, operator, Exact(container, scope, operator))


def _doubles(options: dict[str, Any]) -> dict[str, Any]:
    """A tree's attributes with its numbers as tensors of float64."""
    named = {name: options[name] for name in _DOUBLES if len(options.get(name) or ())}
    rest = {name: value for name, value in options.items() if name not in named}
    tensors = {name: numpy_helper.from_array(np.asarray(values, dtype=np.float64)) for name, values in named.items()}
    return rest | {f"{name}_as_tensor": tensor for name, tensor in tensors.items()}


def _rounded_down(nodes_values: Sequence[float], nodes_modes: Sequence[str], **_: Any) -> list[float]:
    """A float32 number is at most a threshold exactly if it is at most the threshold rounded down."""
    exact = np.asarray(nodes_values, dtype=np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    above = (rounded > exact) & (np.asarray(nodes_modes) == "BRANCH_LEQ")
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return [float(value) for value in rounded]


def _prepare(model: Any) -> None:
    _check(model.booster_, type(model).__name__)


def _wrapped(booster: Any) -> Any:
    from .booster import BoosterClassifier, BoosterRegressor

    described = _check(booster, "Booster")
    objective = str(described.get("objective", ""))
    classes = max(2, int(described["num_class"]))
    node = SimpleNamespace(booster_=booster, boosting_type="gbdt", classes_=np.arange(classes))

    def ask(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(booster.predict(matrix))

    names, width = booster.feature_name(), booster.num_feature()
    if objective.startswith(("binary", "multiclass")):
        return BoosterClassifier(node, ask, _write, names, width, classes=classes)
    return BoosterRegressor(node, ask, _write, names, width)


def _check(booster: Any, what: str) -> Any:
    """What the booster says of itself.

    Raises:
        ConversionError: The converter would express a part of it wrongly.
    """
    described = booster.dump_model()
    objective = str(described.get("objective", "a function of its own"))
    words = objective.split()
    sigmoid = [word for word in words if word.startswith("sigmoid:") and float(word.partition(":")[2]) != 1]
    said = ""
    if words[0] not in _OBJECTIVES or "sqrt" in words or sigmoid:
        said = f"has the objective {objective}, which has no converter (there is one for {', '.join(_OBJECTIVES)})"
    elif described.get("average_output"):
        said = "is a random forest (boosting_type='rf'), which the converter scales wrongly"
    else:
        nodes = [node for tree in described["tree_info"] for node in _nodes(tree["tree_structure"])]
        if any("leaf_coeff" in node for node in nodes):
            said = "has linear models in its leaves (linear_tree), which have no converter"
        elif any(node.get("missing_type") == "Zero" for node in nodes):
            said = "takes zeros for missing values (zero_as_missing), which the graph's trees can't"
    if said:
        raise ConversionError(f"the {what} {said}", hint=_HINT)
    return described


_OBJECTIVES: Final = (
    "binary",
    "multiclass",
    "regression",
    "regression_l1",
    "huber",
    "quantile",
    "poisson",
    "gamma",
    "tweedie",
    "lambdarank",
    "rank_xendcg",
)


def _nodes(root: Any) -> list[Any]:
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting.extend(node[side] for side in ("left_child", "right_child") if side in node)
    return found


PLUGIN: Final = estimators.Plugin(
    "lightgbm", lambda part: origins.is_a(part, "lightgbm", "LGBMModel"), _register, _prepare
)
