"""Boosters of XGBoost and LightGBM without their estimator, in the clothes of one.

A booster knows neither classes nor `predict_proba`; its `predict` gives what the objective gives. As an estimator it
goes the way of every other through skl2onnx and parity. Imported where scikit-learn is known to be there only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

Array = npt.NDArray[Any]

# A converter of skl2onnx: writes an operator's nodes into a container.
Write = Callable[[Any, Any, Any], None]


class _Booster(BaseEstimator):  # type: ignore[misc]
    """A booster as an estimator.

    Attributes:
        node: What the package's converter is to see instead of this.
        ask: From a matrix `[N, F]` of float64 to what the booster predicts.
        write: The package's converter.
    """

    def __init__(self, node: Any, ask: Callable[[Array], Array], write: Write, names: Sequence[str] | None, width: int):
        self.node = node
        self.ask = ask
        self.write = write
        self.n_features_in_ = width
        if names is not None:
            self.feature_names_in_ = np.asarray(names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, *_: Any) -> _Booster:
        """It is fitted; scikit-learn takes objects for estimators by this method."""
        return self

    def _asked(self, table: Any) -> Array:
        return np.asarray(self.ask(np.asarray(table, dtype=np.float64)))


class BoosterRegressor(RegressorMixin, _Booster):  # type: ignore[misc]
    """One whose prediction is the output."""

    def predict(self, table: Any) -> Array:
        """`[N]`, or `[N, K]` for several targets."""
        return self._asked(table)


class BoosterClassifier(ClassifierMixin, _Booster):  # type: ignore[misc]
    """One whose prediction is probabilities: `[N]` of class 1, or `[N, K]`."""

    def __init__(self, *args: Any, classes: int):
        super().__init__(*args)
        self.classes_ = np.arange(classes)

    def predict_proba(self, table: Any) -> Array:
        """`[N, K]`."""
        values = self._asked(table)
        return np.stack([1 - values, values], axis=1) if values.ndim == 1 else values

    def predict(self, table: Any) -> Array:
        """`[N]`, the most probable class."""
        return np.asarray(self.predict_proba(table).argmax(axis=1))


class Container:
    """What a converter writes into: trees are followed by a cast where float64 is declared of what they give.

    The trees of ONNX give float32 whatever they take, and onnxmltools does not know of float64.

    Attributes:
        double: Whether the trees take float64.
    """

    def __init__(self, container: Any, scope: Any, operator: Any) -> None:
        self._container = container
        self._scope = scope
        self.double, self._wide = (
            type(variable.type).__name__ == "DoubleTensorType"
            for variable in (operator.inputs[0], operator.outputs[-1])
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **options: Any) -> None:
        """Adds a node; after trees also the cast of what they give."""
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        if not (self._wide and op_type.startswith("TreeEnsemble")):
            self._container.add_node(op_type, inputs, outputs, **options)
            return
        given = self._scope.get_unique_variable_name("trees")
        self._container.add_node(op_type, inputs, [*outputs[:-1], given], **options)
        name = self._scope.get_unique_operator_name("Cast")
        self._container.add_node("Cast", [given], [outputs[-1]], name=name, to=TensorProto.DOUBLE)

    def add_initializer(self, name: str, onnx_type: int, shape: Any, content: Any) -> None:
        """Adds a constant."""
        wide = self._wide and onnx_type == TensorProto.FLOAT
        self._container.add_initializer(name, TensorProto.DOUBLE if wide else onnx_type, shape, content)


_OPTIONS: Final = {"zipmap": [True, False, "columns"], "nocl": [True, False]}


def register(regressors: Sequence[type], classifiers: Sequence[type], package: str, write: Write) -> None:
    """Tells skl2onnx of a package's estimators, and of its boosters in these clothes."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator as shapes

    for kind in regressors:
        update_registered_converter(
            kind, f"{package}{kind.__name__}", shapes.calculate_linear_regressor_output_shapes, write
        )
    for kind in classifiers:
        update_registered_converter(
            kind,
            f"{package}{kind.__name__}",
            shapes.calculate_linear_classifier_output_shapes,
            write,
            options=_OPTIONS,
        )
    update_registered_converter(
        BoosterRegressor, "BoosterRegressor", shapes.calculate_linear_regressor_output_shapes, _write
    )
    update_registered_converter(
        BoosterClassifier,
        "BoosterClassifier",
        shapes.calculate_linear_classifier_output_shapes,
        _write,
        options=_OPTIONS,
    )


def _write(scope: Any, operator: Any, container: Any) -> None:
    booster = operator.raw_operator
    operator.raw_operator = booster.node
    try:
        booster.write(scope, operator, container)
    finally:
        operator.raw_operator = booster
