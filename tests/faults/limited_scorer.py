"""`modelcast` with other limits than its own: `… MODULE:NAME=VALUE… -- ARGUMENTS…`.

Only named constants are changed, so that a test need not wait for the long ones, or can ask for a rule on its own.
"""

from __future__ import annotations

import sys
from importlib import import_module

from modelcast.cli import main


def set_limit(place: str, value: str) -> None:
    """Gives the constant `MODULE:NAME` another value of its kind; one that is not there is an error."""
    module_name, _, name = place.partition(":")
    module = import_module(module_name)
    setattr(module, name, type(getattr(module, name))(value))


if __name__ == "__main__":
    border = sys.argv.index("--")
    for limit in sys.argv[1:border]:
        set_limit(*limit.split("=", 1))
    sys.argv[1 : border + 1] = []
    main()
