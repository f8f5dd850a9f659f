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

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

import onnx
from onnx import TensorProto

from modelcast.errors import BindingError, ConversionError, SourceError

from .. import rewrite
from ..candidate import Candidate
from ..examples import Rows
from . import origins
from .original import Original
from .plan import Plan, parts, plan_of

# The newest sets that skl2onnx 1.20 writes and every supported ONNX Runtime reads.
OPSETS: Final = {"": 21, "ai.onnx.ml": 3}

# Lower case by Unicode's rules, in the locale that containers have: part of every glibc since 2.35 and of Debian's
# before it. Without it a runtime asks for en_US.UTF-8, and fails to load the graph on a host that lacks it.
LOCALE: Final = "C.UTF-8"
# scikit-learn's words: two or more letters, digits or underscores of any script; skl2onnx takes ASCII's only.
_WORDS: Final = (r"(?u)\b\w\w+\b", r"[\p{L}\p{N}_]{2,}")

# How skl2onnx says that it does not know a class.
_UNKNOWN = re.compile(r"shape calculator for type '<class '(?:[\w<>]+\.)*(\w+)'>'")
_WAY_OUT = "Replace that step by one skl2onnx converts, or export the model yourself and publish the .onnx file."


@dataclass(frozen=True)
class Plugin:
    """Another package whose estimators skl2onnx converts once it is told how.

    Attributes:
        package: Its name, as in `frameworks`.
        recognises: Whether an estimator is one of its.
        register: Imports the package, tells skl2onnx; returns versions as package -> version.
        prepare: Given a copy of a fitted estimator, changes what its converter can't express; raises ConversionError
            for what can't be expressed at all.
    """

    package: str
    recognises: Callable[[object], bool]
    register: Callable[[], dict[str, str]]
    prepare: Callable[[Any], None]


def convert(
    estimator: Any,
    rows: Rows,
    fields: Sequence[str] | None,
    *,
    precise: bool = False,
    plugins: Sequence[Plugin] = (),
    extra: str = "sklearn",
) -> Candidate:
    """Converts a fitted estimator.

    Args:
        estimator: Anything skl2onnx has a converter for.
        rows: The examples; their types become the inputs' types.
        fields: Names the caller gave for the columns of a matrix input, if any.
        precise: Whether floats are float64 up to the trees: for a scaler before them, whose float32 results fall on
            the other side of a threshold.
        plugins: Packages whose estimators may be among its steps.
        extra: The extra that installs what this takes.

    Raises:
        MissingExtraError: scikit-learn, skl2onnx or the package of a step is not installed.
        SourceError: The estimator is not fitted.
        BindingError: The examples lack a column that it takes.
        UsageError: `fields` name the columns it was trained with in another order.
        ConversionError: skl2onnx can't express it.
    """
    sklearn, skl2onnx = origins.load("a scikit-learn estimator", extra, "sklearn", "skl2onnx")
    _check_fitted(estimator)
    plan = replace(plan_of(estimator, rows, fields), precise=precise)
    _check_expressed(estimator, plan, plugins)
    convertible, versions = _prepared(estimator, plugins)
    model = _to_onnx(skl2onnx, convertible, plan)
    roles = _name_outputs(model.graph, estimator, plan)
    if plan.width and plan.kinds:
        rewrite.join_columns(model.graph, plan.kinds, TensorProto.DOUBLE if precise else TensorProto.FLOAT)
    elif plan.kinds:
        _drop_unused_inputs(model.graph, rows)
        for value in [value for value in model.graph.input if plan.kinds[value.name] == "b"]:
            rewrite.cast_boolean(model.graph, value)
    return Candidate(
        model,
        original=Original(estimator, plan, roles, rows),
        fields=plan.names if plan.width and not plan.kinds else None,
        frameworks={
            **versions,
            "scikit-learn": str(sklearn.__version__),
            "skl2onnx": str(skl2onnx.__version__),
            "onnx": str(onnx.__version__),
        },
    )


def _check_expressed(estimator: Any, plan: Plan, plugins: Sequence[Plugin]) -> None:
    """Refuses what converters are known to express wrongly, mostly without a word.

    Parity finds such things too, if the examples happen to show them.
    """
    for part in parts(estimator):
        name = type(part).__name__
        if callable(getattr(part, "analyzer", None)):
            raise ConversionError(
                f"the {name} splits texts by a function of its own (analyzer=), which no graph can",
                hint="Use analyzer='word' with a token_pattern, or analyzer='char'.",
            )
        if ".feature_selection." in type(part).__module__ and part.get_support(indices=True).tolist() == [0]:
            raise ConversionError(
                f"the {name} keeps the first column only, which the converter takes for none",
                hint="Give the model that column alone, or another order of columns.",
            )
        if getattr(part, "sublinear_tf", False):
            raise ConversionError(
                f"the {name} takes logarithms of counts (sublinear_tf), and the converter takes others",
                hint="Leave out sublinear_tf.",
            )
        if getattr(part, "stop_words", None) and max(getattr(part, "ngram_range", (1, 1))) > 1:
            raise ConversionError(
                f"the {name} joins words across the stop words it leaves out, which the converter does not",
                hint="Leave out stop_words, or take single words: ngram_range=(1, 1).",
            )
    texts = [name for name, kind in plan.kinds.items() if kind == "O"] or list((plan.names or ()) if plan.texts else ())
    if texts and any(plugin.recognises(estimator) for plugin in plugins):
        raise ConversionError(
            f"the {type(estimator).__name__} takes texts as categories of its own "
            f"({', '.join(map(repr, texts))}), which its converter can't",
            hint="Train it as the last step of a Pipeline, after a ColumnTransformer with an OrdinalEncoder or "
            "OneHotEncoder for these columns.",
        )


def _prepared(estimator: Any, plugins: Sequence[Plugin]) -> tuple[Any, dict[str, str]]:
    """The estimator, or a copy whose steps of other packages are ready to be converted; those packages' versions."""
    needed = [plugin for plugin in plugins if any(plugin.recognises(part) for part in parts(estimator))]
    versions = {name: version for plugin in needed for name, version in plugin.register().items()}
    convertible = copy.deepcopy(estimator) if needed else estimator
    for part in list(parts(convertible)) if needed else []:
        for plugin in needed:
            if plugin.recognises(part):
                plugin.prepare(part)
    return convertible, versions


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


def _to_onnx(skl2onnx: ModuleType, estimator: Any, plan: Plan) -> onnx.ModelProto:
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
        rewrite.replace_imputers(model.graph)
        rewrite.narrow_trees(model.graph)
    return model


def _convert(skl2onnx: ModuleType, source: Any, inputs: Sequence[tuple[str, Any]]) -> onnx.ModelProto:
    """Tries the options that give tensors; an estimator that has not an option raises NameError."""
    from sklearn.base import is_classifier

    tries: list[dict[int, dict[str, Any]] | None] = [{id(source): {"zipmap": False}}, None]
    if is_classifier(source) and not hasattr(source, "predict_proba"):
        # Without raw_scores skl2onnx turns the sign of an SVC's values round; LinearSVC knows no zipmap.
        leaves = [part for part in parts(source) if is_classifier(part) and not hasattr(part, "steps")]
        raw = [{id(leaf): {"raw_scores": True, **more} for leaf in leaves} for more in ({"zipmap": False}, {})]
        tries = [*raw, *tries]
    texts = _text_options(source)
    for attempt in tries:
        options = {**(attempt or {}), **texts} or None
        try:
            model = skl2onnx.convert_sklearn(
                source, name="model", initial_types=list(inputs), target_opset=OPSETS, options=options
            )
        except NameError as error:
            if attempt is None:
                raise _conversion_error(source, error) from error
        except Exception as error:  # converters raise what they like
            raise _conversion_error(source, error) from error
        else:
            return model  # type: ignore[no-any-return]
    raise AssertionError("unreachable: the last try returns or raises")


def _text_options(source: Any) -> dict[int, dict[str, Any]]:
    """Options of every step that splits texts, by its id."""
    from sklearn.feature_extraction.text import CountVectorizer

    options: dict[int, dict[str, Any]] = {}
    for part in parts(source):
        if isinstance(part, CountVectorizer):
            words = part.analyzer == "word" and part.token_pattern == _WORDS[0]
            options[id(part)] = {"locale": LOCALE, **({"tokenexp": _WORDS[1]} if words else {})}
    return options


def _conversion_error(estimator: Any, error: Exception) -> ConversionError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" You may raise an issue")[0]
    unknown = _UNKNOWN.search(text)
    said = f"it has no converter for {unknown[1]}" if unknown else text.rstrip(".")
    return ConversionError(
        f"skl2onnx can't convert the {type(estimator).__name__} ({_steps(estimator)}): {said}", hint=_WAY_OUT
    )


def _steps(estimator: Any) -> str:
    return ", ".join(dict.fromkeys(type(part).__name__ for part in parts(estimator)))[:300]


def _name_outputs(graph: onnx.GraphProto, estimator: Any, plan: Plan) -> dict[str, str]:
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


def with_frameworks(candidate: Candidate, versions: Mapping[str, str]) -> Candidate:
    """The candidate, with more packages named."""
    return replace(candidate, frameworks={**versions, **candidate.frameworks})
