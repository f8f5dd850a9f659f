"""What `publish` did, or with `dry_run` would do."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelcast.records import Manifest, Release


@dataclass(frozen=True, slots=True, repr=False)
class Published:
    """A version that is on the log, or of a dry run one that could be.

    Attributes:
        manifest: The version as it is described on the registry: number, digest, metrics, gates, probe.
        release: What made it live; None if it was not released.
        bytes_total: Size of all its files.
        bytes_sent: What this publication wrote; of a dry run what it would write at most.
        dry_run: Whether nothing was written at all: manifest and release show what would be.
    """

    manifest: Manifest
    release: Release | None
    bytes_total: int
    bytes_sent: int
    dry_run: bool = False

    @property
    def gates(self) -> tuple[str, ...]:
        """The requirements that were met, with what was measured."""
        return self.manifest.gates

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was stated and measured, by name."""
        return self.manifest.metrics

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON data."""
        return {
            "model": self.manifest.model,
            "version": self.manifest.version,
            "digest": self.manifest.digest,
            "bytes_total": self.bytes_total,
            "bytes_sent": self.bytes_sent,
            "released": self.release is not None,
            "dry_run": self.dry_run,
            "metrics": dict(self.metrics),
            "gates": list(self.gates),
        }

    def __repr__(self) -> str:
        facts = [str(self.manifest.id), *(["dry run"] if self.dry_run else []), *(["released"] if self.release else [])]
        facts.append(self._bytes())
        facts += [f"{name}={value:.6g}" for name, value in sorted(self.metrics.items())]
        facts += [f"required: {gate}" for gate in self.gates]
        return f"Published({', '.join(facts)})"

    def _bytes(self) -> str:
        count = f"{self.bytes_sent:,} of {self.bytes_total:,} bytes"
        return f"at most {count} to send" if self.dry_run else f"{count} sent"

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        rows = {
            "digest": self.manifest.digest,
            "bytes": self._bytes(),
            "metrics": ", ".join(f"{name}={value:.6g}" for name, value in sorted(self.metrics.items())),
            "required": ", ".join(self.gates),
        }
        title = f"{self.manifest.id}{' (dry run)' if self.dry_run else ' (live)' if self.release else ''}"
        body = "".join(f"<tr><td>{name}</td><td>{html.escape(text)}</td></tr>" for name, text in rows.items() if text)
        return f"<b>{html.escape(title)}</b><table>{body}</table>"
