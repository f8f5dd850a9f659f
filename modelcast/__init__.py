"""Models are data: publish trained models onto Kafka, swap them live, score events inline.

- `modelcast.publisher`: publish, release and roll back.
- `modelcast.consumer`: embed the live model, or score a stream.
- `modelcast.pull`: a version's verified files in a folder, for any other runtime.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelcast.files.pull import Pulled, pull

__version__ = "0.1.0"

__all__ = ["Pulled", "__version__", "pull"]

# An application that sets up logging sees what happens; one that does not is not written to.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """`pull` and what it gives: imported when asked for, because every command imports this module."""
    if name in {"Pulled", "pull"}:
        from modelcast.files import pull as pulling

        return getattr(pulling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
