"""Other names for a graph's outputs and inputs: `--rename probabilities=score`.

An output's name becomes the name of a field of every prediction, an input's name that of an event field. An exporter's
names (`output_0`, `dense/BiasAdd:0`) suit neither, and some are taken (`model`, `version`).

    candidate = renamed(candidate, {"output_0": "score", "label": "decision"})

- All names are exchanged at once, so two outputs can swap theirs.
- A value inside the graph that has a wanted name gets another; an output or input that keeps its name does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx

from modelcast.errors import UsageError

from . import rewrite
from .candidate import Candidate
from .parity import Expected

Array = npt.NDArray[Any]


def renamed(candidate: Candidate, names: Mapping[str, str]) -> Candidate:
    """The candidate with other names; the one that is given stays as it is.

    Args:
        candidate: A graph, with or without original.
        names: The graph's name -> the wanted one.

    Raises:
        UsageError: There is no such output or input, or two would have one name.
    """
    if not names:
        return candidate
    model = onnx.ModelProto()
    model.CopyFrom(candidate.model)
    graph = model.graph
    inside = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in inside]
    outputs = [value.name for value in graph.output]
    _check(names, inputs, outputs)
    kept = {name: f"{name}\0renamed" for name in names}  # a name that no value has
    for old, between in kept.items():
        rewrite.rename(graph, old, between)
    for old, between in kept.items():
        rewrite.rename(graph, between, names[old])
    original = candidate.original
    return replace(candidate, model=model, original=None if original is None else _translated(original, names))


def _check(names: Mapping[str, str], inputs: list[str], outputs: list[str]) -> None:
    there = f"its outputs are {_listed(outputs)}; its inputs {_listed(inputs)}"
    for old, new in names.items():
        if old not in outputs and old not in inputs:
            raise UsageError(f"can't rename {old!r}: the graph has no such output or input", hint=f"Known: {there}.")
        if not new.strip() or not new.isprintable():
            raise UsageError(f"can't rename {old!r} to {new!r}: that is no name", hint=f"Write --rename {old}=score.")
    for kind, values in (("outputs", outputs), ("inputs", inputs)):
        wanted = [names.get(name, name) for name in values]
        twice = next((name for name in wanted if wanted.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"two {kind} would be called {twice!r}", hint=f"Rename the other too: {there}.")
    both = {names.get(name, name) for name in outputs} & {names.get(name, name) for name in inputs}
    for name in sorted(both.intersection(names.values())):
        raise UsageError(f"an output and an input would both be called {name!r}", hint=f"Choose another: {there}.")


def _translated(
    original: Callable[[Mapping[str, Array]], Expected], names: Mapping[str, str]
) -> Callable[[Mapping[str, Array]], Expected]:
    """The original, asked and answering by the new names."""
    before = {new: old for old, new in names.items()}

    def ask(feeds: Mapping[str, Array]) -> Expected:
        expected = original({before.get(name, name): array for name, array in feeds.items()})
        return replace(
            expected,
            outputs={names.get(name, name): array for name, array in expected.outputs.items()},
            ties={names.get(name, name): rows for name, rows in expected.ties.items()},
        )

    return ask


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
