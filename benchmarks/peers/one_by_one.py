"""One event to one prediction, with the plain libraries: what sides in Python share that score event by event."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import onnxruntime

_FRAME_BYTES = 10  # of Avro's single-object encoding
_DTYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(string)": object}
_SCORES = fastavro.parse_schema({"type": "array", "items": "float"})


class OneByOne:
    """Scores one event at a time.

    Args:
        plan: Properties: `format`, `output`, `inputs`, and the fields of each input as `fields.<input>`.
        graph: The ONNX file.
        schema: What Avro events were written with.
        loads: Reads one JSON event.
    """

    def __init__(
        self, plan: Path, graph: Path, schema: Path | None, *, loads: Callable[[bytes], Any] = json.loads
    ) -> None:
        lines = dict(line.split("=", 1) for line in plan.read_text().splitlines())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        dtypes = {node.name: _DTYPES[node.type] for node in self._session.get_inputs()}
        self._inputs = [(name, lines[f"fields.{name}"].split(","), dtypes[name]) for name in lines["inputs"].split(",")]
        self._output = [lines["output"]]
        self._schema: Any = fastavro.schema.load_schema(str(schema)) if schema else None
        self._loads = loads

    def of(self, value: bytes) -> bytes:
        """An event's scores as an Avro array of floats."""
        if self._schema is None:
            event = self._loads(value)
        else:
            event = fastavro.schemaless_reader(io.BytesIO(value[_FRAME_BYTES:]), self._schema, None)
        feeds = {}
        for name, fields, dtype in self._inputs:
            row = event[fields[0]] if len(fields) == 1 else [event[field] for field in fields]
            feeds[name] = np.array(row, dtype).reshape(1, -1)
        scores = self._session.run(self._output, feeds)[0][0]
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, _SCORES, scores.tolist())
        return buffer.getvalue()
