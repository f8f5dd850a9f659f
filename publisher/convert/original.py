"""The estimator behind a converted graph, asked for what each output should be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from modelcast.errors import ParityError

from ..examples import Rows
from ..parity import TOLERANCE, Expected
from .plan import Plan, is_usable

Array = npt.NDArray[Any]


class Original:
    """The estimator, asked for what each output of the graph should be."""

    def __init__(self, estimator: Any, plan: Plan, roles: Mapping[str, str], rows: Rows) -> None:
        self._estimator = estimator
        self._plan = plan
        self._roles = roles
        self._rows = rows

    def __call__(self, feeds: Mapping[str, Array]) -> Expected:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._ask(self._table(feeds))
            except Exception as error:  # an estimator raises what it likes
                raise ParityError(
                    f"the original {type(self._estimator).__name__} fails on the examples: {error}",
                    hint="Give examples such as it was trained with.",
                ) from error

    def _ask(self, table: Any) -> Expected:
        asked = self._estimator
        results: dict[str, Array] = {}
        for name in ("predict", "predict_proba", "decision_function", "transform"):
            method: Callable[[Any], Any] | None = getattr(asked, name, None)
            if method is not None and not (name == "decision_function" and "predict_proba" in results):
                results[name] = _dense(method(table))
        outputs: dict[str, Array] = {}
        ties: dict[str, npt.NDArray[np.bool_]] = {}
        for name, role in self._roles.items():
            sources = {
                "label": ("predict",),
                "probabilities": ("predict_proba",),
                "scores": ("decision_function", "transform"),
                "variable": ("predict", "transform"),
            }.get(role, ())
            found = next((results[source] for source in sources if source in results), None)
            if found is not None:
                outputs[name] = found
            if role == "label":
                values = results.get("predict_proba", results.get("decision_function"))
                if values is not None:
                    ties[name] = _ties(values)
        return Expected(outputs, ties)

    def _table(self, feeds: Mapping[str, Array]) -> Any:
        """What the estimator takes."""
        plan = self._plan
        if plan.series:
            return next(iter(feeds.values())).reshape(-1).tolist()
        if plan.matrix in feeds and plan.width and not plan.kinds:
            array = feeds[plan.matrix]
            array = array if plan.texts else array.astype(np.float64)
            if plan.names is None:
                return array
            columns = {name: array[:, index] for index, name in enumerate(plan.names)}
        else:
            columns = {name: array.reshape(len(array)) for name, array in feeds.items()}
            columns = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in columns.items()}
            if plan.names is None:
                wanted: npt.DTypeLike = object if "O" in plan.kinds.values() else np.float64
                return np.stack([array.astype(wanted) for array in columns.values()], axis=1)
            if plan.width:
                columns = dict(zip(plan.names, columns.values(), strict=True))
            unfed = {name: self._unfed(name, feeds) for name in plan.names if name not in columns}
            known = columns | {name: array for name, array in unfed.items() if array is not None}
            columns = {name: known[name] for name in plan.names if name in known}
        return _frame(columns)

    def _unfed(self, name: str, feeds: Mapping[str, Array]) -> Array | None:
        """A column the graph does without and the estimator may look for."""
        count = len(next(iter(feeds.values())))
        return self._rows.head(count).column(name) if is_usable(self._rows, name) else None


def _frame(columns: Mapping[str, Array]) -> Any:
    try:
        import pandas
    except ImportError:
        import polars

        return polars.DataFrame({name: polars.Series(name, array.tolist()) for name, array in columns.items()})
    return pandas.DataFrame(columns)


def _dense(values: Any) -> Array:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def _ties(values: Array) -> npt.NDArray[np.bool_]:
    """Rows whose two best classes differ by no more than float32 can tell, for probabilities or decision values."""
    scale = TOLERANCE.absolute * max(1.0, float(np.abs(values).max(initial=0.0)))
    if values.ndim == 1 or values.shape[1] == 1:
        return np.asarray(np.abs(values.reshape(len(values))) <= scale)
    best = np.sort(values, axis=1)
    return np.asarray(best[:, -1] - best[:, -2] <= 2 * scale)
