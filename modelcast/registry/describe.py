"""A version as JSON data: what `show --json` prints, and `pull` writes beside the files."""

from __future__ import annotations

import math
from typing import Any

from modelcast.records import LoadProbe, Manifest


def describe(manifest: Manifest) -> dict[str, Any]:
    """Everything a manifest says; names of keys are part of the interface, new ones may be added."""
    return {
        "model": manifest.model,
        "version": manifest.version,
        "digest": manifest.digest,
        "repository": manifest.repository,
        "created_ms": manifest.created_ms,
        "created_by": manifest.created_by,
        "message": manifest.message,
        "metrics": {name: _finite(value) for name, value in manifest.metrics.items()},
        "gates": list(manifest.gates),
        "bytes": manifest.size_bytes,
        "store": manifest.store,
        "files": [{"path": e.path, "bytes": e.size, "digest": e.digest} for e in manifest.files],
        "inputs": [
            {"name": b.name, "dtype": str(b.dtype), "shape": list(b.shape), "fields": list(b.fields)}
            for b in manifest.signature.inputs
        ],
        "nulls": {rule.field: rule.value for rule in manifest.signature.nulls},
        "outputs": [
            {"name": o.name, "dtype": str(o.dtype), "shape": list(o.shape), "field": o.field}
            for o in manifest.signature.outputs
        ],
        "ir_version": manifest.ir_version,
        "opsets": dict(manifest.opsets),
        "frameworks": dict(manifest.frameworks),
        "tolerance": {"relative": manifest.tolerance.relative, "absolute": manifest.tolerance.absolute},
        "probe": None if manifest.probe is None else _probe(manifest.probe),
    }


def _probe(probe: LoadProbe) -> dict[str, Any]:
    return {"load_ms": _finite(probe.load_ms), "run_ms": _finite(probe.run_ms), "peak_bytes": probe.peak_bytes}


def _finite(value: float) -> float | None:
    """JSON has no NaN; a manifest of another publisher's may."""
    return value if math.isfinite(value) else None
