"""Fitted scikit-learn estimators and whole Pipelines to ONNX, through skl2onnx.

- An estimator trained on named columns through a ColumnTransformer takes one input `[N, 1]` per column it uses, of the
  type the examples have: floats float32, integers int64, texts string, booleans bool. Columns it drops are no inputs.
- Any other estimator takes one matrix `X`, `[N, F]`, of float32 (or string, if all its columns are texts). If some of
  its columns are booleans it takes one input per column too, because no number is a boolean in an event.
- Outputs are called `label` and `probabilities` (`scores` where the estimator has decision values only, never
  `probabilities` for those), `variable` for what a regressor or transformer gives. Where a column has such a name the
  output is `predicted_<name>`.
- Trees compare float32: thresholds and values are rounded alike, so only a scaler before them, whose float32 results
  differ in the last digit, puts values on the other side. `precise` then computes in float64 up to the trees.
- The same estimator gives the same bytes: names and operator sets are fixed here, not by the converter's version.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from modelcast.errors import BindingError, ConversionError, MissingExtraError, ParityError, SourceError, UsageError

from . import rewrite
from .examples import Rows
from .parity import TOLERANCE, Expected
from .sources import SKLEARN_HINT, Candidate

Array = npt.NDArray[Any]

# The newest sets that skl2onnx 1.20 writes and every supported ONNX Runtime reads.
OPSETS: Final = {"": 21, "ai.onnx.ml": 3}
MATRIX_INPUT: Final = "X"

_WAY_OUT = "Replace that step by one skl2onnx converts, or export the model yourself and publish the .onnx file."


@dataclass(frozen=True)
class _Plan:
    """What the graph takes.

    Attributes:
        kinds: Numpy kind of each column (`f`, `i`, `b`, `O`), by name in order; empty for a matrix.
        width: Columns of the matrix; 0 if the converter gets columns.
        matrix: Its input's name.
        texts: Whether the matrix is of strings.
        names: Column names the estimator knows, in order; None if it was trained on arrays.
        precise: Whether floats are float64.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    matrix: str = MATRIX_INPUT
    texts: bool = False
    names: tuple[str, ...] | None = None
    precise: bool = False


def convert(estimator: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
    """Converts a fitted estimator.

    Args:
        estimator: Anything skl2onnx has a converter for.
        rows: The examples; their types become the inputs' types.
        fields: Names the caller gave for the columns of a matrix input, if any.
        precise: Whether floats are float64 up to the trees: for a scaler before them, whose float32 results fall on
            the other side of a threshold.

    Raises:
        MissingExtraError: scikit-learn or skl2onnx is not installed.
        SourceError: The estimator is not fitted.
        BindingError: The examples lack a column that it takes.
        UsageError: `fields` name the columns it was trained with in another order.
        ConversionError: skl2onnx can't express it.
    """
    sklearn, skl2onnx = _packages()
    _check_fitted(estimator)
    plan = replace(_plan(estimator, rows, fields), precise=precise)
    model = _to_onnx(skl2onnx, estimator, plan)
    roles = _name_outputs(model.graph, estimator, plan)
    if plan.width and plan.kinds:
        rewrite.join_columns(model.graph, plan.kinds, TensorProto.DOUBLE if precise else TensorProto.FLOAT)
    elif plan.kinds:
        _drop_unused_inputs(model.graph, rows)
        for value in [value for value in model.graph.input if plan.kinds[value.name] == "b"]:
            rewrite.cast_boolean(model.graph, value)
    return Candidate(
        model,
        original=_Original(estimator, plan, roles, rows),
        fields=plan.names if plan.width and not plan.kinds else None,
        frameworks={
            "scikit-learn": str(sklearn.__version__),
            "skl2onnx": str(skl2onnx.__version__),
            "onnx": str(onnx.__version__),
        },
    )


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import skl2onnx
            import sklearn
    except ImportError as error:
        raise MissingExtraError(
            f"converting a scikit-learn estimator takes {error.name}, which is not installed", hint=SKLEARN_HINT
        ) from error
    return sklearn, skl2onnx


def _check_fitted(estimator: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(estimator).__name__
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise SourceError(f"the {name} is not fitted", hint="Call its fit(...) before publishing it.") from error
    except (TypeError, AttributeError) as error:
        raise SourceError(f"the {name} is not a scikit-learn estimator: {error}", hint=_WAY_OUT) from error


def _parts(value: Any) -> Iterator[Any]:
    """An estimator and every estimator within it."""
    from sklearn.base import BaseEstimator

    if isinstance(value, BaseEstimator):
        yield value
        children: Sequence[Any] = list(vars(value).values())
    elif isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, (list, tuple)):
        children = value
    else:
        return
    for child in children:
        yield from _parts(child)


def _plan(estimator: Any, rows: Rows, fields: Sequence[str] | None) -> _Plan:
    from sklearn.compose import ColumnTransformer

    names = _names(estimator)
    if names is not None:
        heads = [part for part in _parts(estimator) if isinstance(part, ColumnTransformer)]
        heads = [part for part in heads if set(_names(part) or ("",)) <= set(names)]
        if heads:
            return _Plan(kinds=_column_kinds(heads, names, rows), names=names)
        if fields is not None and sorted(fields) == sorted(names) and tuple(fields) != names:
            raise UsageError(
                "--fields names the model's columns in another order than it was trained with",
                hint=f"Leave --fields out, or write --fields {','.join(names)}.",
            )
    given = [name for name in rows.names if rows.matrix(name) is not None]
    matrix = given[0] if len(given) == 1 else MATRIX_INPUT
    columns = tuple(fields) if fields is not None else names
    width = getattr(estimator, "n_features_in_", None) or len(columns or ())
    if not width:
        width = rows.matrix(matrix).shape[1] if given else len(rows.names)  # type: ignore[union-attr]
    if columns is None or matrix in rows or not all(name in rows for name in columns):
        array = rows.matrix(matrix)
        return _Plan(width=width, matrix=matrix, texts=array is not None and array.dtype.kind == "O", names=names)
    kinds = {name: rows.column(name).dtype.kind for name in columns}
    if set(kinds.values()) <= {"f", "i"}:
        return _Plan(width=width, matrix=matrix, names=names)
    if set(kinds.values()) == {"O"}:
        return _Plan(width=width, matrix=matrix, texts=True, names=names)
    if "O" in kinds.values():  # a mixture that a converter may take column by column
        return _Plan(kinds=kinds, names=names)
    return _Plan(kinds=kinds, width=width, matrix=matrix, names=names)


def _names(estimator: Any) -> tuple[str, ...] | None:
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else tuple(str(name) for name in names)


def _column_kinds(heads: Sequence[Any], names: tuple[str, ...], rows: Rows) -> dict[str, str]:
    """The columns the converter is told of: those used, or all if some are used by their position."""
    used: set[str] = set()
    by_position = False
    for head in heads:
        for _, step, columns in head.transformers_:
            entries = [columns] if isinstance(columns, str) else list(columns) if _is_listed(columns) else None
            if entries is not None and all(isinstance(entry, str) for entry in entries):
                used |= set(entries) if not (isinstance(step, str) and step == "drop") else set()
            elif not (isinstance(step, str) and step == "drop"):
                by_position = True
    if by_position:
        return {name: rows.column(name).dtype.kind if _is_usable(rows, name) else "O" for name in names}
    missing = [name for name in names if name in used and name not in rows]
    if missing:
        raise BindingError(
            f"no field of the examples matches column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(map(repr, missing))} of the model; they have {', '.join(map(repr, rows.names)) or 'none'}",
            hint="Give examples with every column the model was trained with.",
        )
    return {name: rows.column(name).dtype.kind for name in names if name in used}


def _is_listed(columns: Any) -> bool:
    return isinstance(columns, (list, tuple, np.ndarray)) or type(columns).__name__ == "Index"


def _is_usable(rows: Rows, name: str) -> bool:
    try:
        rows.column(name)
    except BindingError:
        return False
    return True


def _to_onnx(skl2onnx: ModuleType, estimator: Any, plan: _Plan) -> onnx.ModelProto:
    from skl2onnx.common import data_types as types

    floats = types.DoubleTensorType if plan.precise else types.FloatTensorType
    if plan.width:
        kind = types.StringTensorType if plan.texts else floats
        inputs = [(plan.matrix, kind([None, plan.width]))]
    else:
        # Converters do not take booleans everywhere; as integers 0 and 1 they are equal to them.
        tensors = {"f": floats, "i": types.Int64TensorType, "b": types.Int64TensorType}
        inputs = [(name, tensors.get(kind, types.StringTensorType)([None, 1])) for name, kind in plan.kinds.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _convert(skl2onnx, estimator, inputs)
    model.ClearField("producer_version")  # of the converter: the manifest names it
    for value, (name, _) in zip(list(model.graph.input), inputs, strict=True):  # some names it keeps for itself
        rewrite.rename(model.graph, value.name, name)
    if plan.precise:
        rewrite.narrow_trees(model.graph)
    return model


def _convert(skl2onnx: ModuleType, source: Any, inputs: Sequence[tuple[str, Any]]) -> onnx.ModelProto:
    """Tries the options that give tensors; an estimator that has not an option raises NameError."""
    from sklearn.base import is_classifier

    tries: list[dict[int, dict[str, bool]] | None] = [{id(source): {"zipmap": False}}, None]
    if is_classifier(source) and not hasattr(source, "predict_proba"):
        # Without raw_scores skl2onnx turns the sign of an SVC's values round; LinearSVC knows no zipmap.
        leaves = [part for part in _parts(source) if is_classifier(part) and not hasattr(part, "steps")]
        raw = [{id(leaf): {"raw_scores": True, **more} for leaf in leaves} for more in ({"zipmap": False}, {})]
        tries = [*raw, *tries]
    for options in tries:
        try:
            model = skl2onnx.convert_sklearn(
                source, name="model", initial_types=list(inputs), target_opset=OPSETS, options=options
            )
        except NameError as error:
            if options is None:
                raise _conversion_error(source, error) from error
        except Exception as error:  # converters raise what they like
            raise _conversion_error(source, error) from error
        else:
            return model  # type: ignore[no-any-return]
    raise AssertionError("unreachable: the last try returns or raises")


def _conversion_error(estimator: Any, error: Exception) -> ConversionError:
    text = str(error).strip() or type(error).__name__
    return ConversionError(
        f"skl2onnx can't convert the {type(estimator).__name__} ({_steps(estimator)}): {text.splitlines()[0]}",
        hint=_WAY_OUT,
    )


def _steps(estimator: Any) -> str:
    return ", ".join(dict.fromkeys(type(part).__name__ for part in _parts(estimator)))[:300]


def _name_outputs(graph: onnx.GraphProto, estimator: Any, plan: _Plan) -> dict[str, str]:
    """Renames outputs as documented; returns the role of each by name."""
    from sklearn.base import is_classifier

    roles: dict[str, str] = {}
    for index, output in enumerate(graph.output):
        role = output.name
        if is_classifier(estimator) and index < 2:
            role = ("label", "probabilities" if hasattr(estimator, "predict_proba") else "scores")[index]
        elif index == 0 and len(graph.output) == 1:
            role = "variable"
        name = role if role not in {value.name for value in graph.input} | set(plan.kinds) else f"predicted_{role}"
        rewrite.rename(graph, output.name, name)
        roles[name] = role
        if role == "scores":  # converters declare one value per class where two classes have one
            for size in output.type.tensor_type.shape.dim[1:]:
                size.Clear()
    return roles


def _drop_unused_inputs(graph: onnx.GraphProto, rows: Rows) -> None:
    consumed = set().union(*(node.input for node in graph.node)) | {output.name for output in graph.output}
    kept = [value for value in graph.input if value.name in consumed]
    for value in kept:
        if value.name not in rows:
            raise BindingError(f"no field of the examples matches column {value.name!r} of the model")
        rows.column(value.name)
    del graph.input[:]
    graph.input.extend(kept)


class _Original:
    """The estimator, asked for what each output of the graph should be."""

    def __init__(self, estimator: Any, plan: _Plan, roles: Mapping[str, str], rows: Rows) -> None:
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
        return self._rows.head(count).column(name) if _is_usable(self._rows, name) else None


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
