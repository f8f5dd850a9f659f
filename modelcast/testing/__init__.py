"""What tests of modelcast, and of applications built on it, run against: an in-memory log, and a real local broker.

docs/TESTING.md shows them at work; `modelcast.testing.fixtures` is the pytest plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .broker import local_broker, unique_name
    from .faults import Faults
    from .faulty import FaultyLog
    from .functions import onnx_of
    from .group import MemoryGroupLog
    from .memory import MemoryLog
    from .repository import Repository

__all__ = [
    "Faults",
    "FaultyLog",
    "MemoryGroupLog",
    "MemoryLog",
    "Repository",
    "local_broker",
    "onnx_of",
    "unique_name",
]

_HOMES = {
    "Faults": ".faults",
    "FaultyLog": ".faulty",
    "MemoryGroupLog": ".group",
    "MemoryLog": ".memory",
    "Repository": ".repository",
    "local_broker": ".broker",
    "onnx_of": ".functions",
    "unique_name": ".broker",
}


def __getattr__(name: str) -> object:
    # Imported when it is named: pytest loads the plugin of this package in every run, whatever that tests.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
