"""Options of commands that sign, or that believe only what a policy admits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SignOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sign",
        metavar="KEY",
        help="Sign with this key: its name or its file. Repeatable. Default: MODELCAST_SIGNING_KEY.",
        show_default=False,
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--trust-policy",
        metavar="FILE",
        help="Believe only what this policy admits. Default: MODELCAST_TRUST_POLICY.",
        show_default=False,
    ),
]
