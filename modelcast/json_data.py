"""JSON that anybody may have written: a topic's record, a file in a folder that others reach.

Python's parser ends with RecursionError on what is nested a thousand deep, which is no ValueError: whoever expects
only these is ended by three kilobytes of brackets.
"""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: It is not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
