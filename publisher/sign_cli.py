"""`sign`: a second signature on what stands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import printable
from modelcast.names import ModelRef
from modelcast.records import Manifest, Release, Withdrawn
from modelcast.trust.options import PolicyOption, SignOption

from .endorsement import Endorsed
from .publisher import ModelPublisher


@connected
def sign(
    context: CommandContext,
    name: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The version; without one, the release in force.")
    ],
    sign: SignOption = None,
    trust_policy: PolicyOption = None,
    withdrawal: Annotated[
        bool, typer.Option("--withdrawal", help="Sign the record that withdraws the version.")
    ] = False,
) -> None:
    """Add a signature to a version, or to the release in force: as a second person, or with a new key.

    Under a trust policy only what a trusted key signed already is signed. Look at it first: modelcast show NAME
    """
    ref = ModelRef.parse(name)
    with ModelPublisher.connect(context.connection, signing_keys=sign, trust_policy=trust_policy) as publisher:
        endorsed = publisher.sign(ref.model, ref.version, withdrawal=withdrawal)
    context.output.result(
        {
            "model": ref.model,
            "version": endorsed.payload.version,
            "sequence": endorsed.payload.sequence if isinstance(endorsed.payload, Release) else None,
            "what": _kind(endorsed),
            "repeated": endorsed.repeated,
            "key_ids": list(endorsed.key_ids),
            "admitted": endorsed.verdict.admitted,
            "reason": str(endorsed.verdict.reason),
            "message": endorsed.verdict.message,
        },
        _text(endorsed),
    )


def _kind(endorsed: Endorsed) -> str:
    return {Manifest: "version", Withdrawn: "withdrawal", Release: "release"}[type(endorsed.payload)]


def _text(endorsed: Endorsed) -> str:
    payload = endorsed.payload
    match payload:
        case Release():
            what = f"release {payload.sequence} of {payload.model}, of version {payload.version}"
        case Withdrawn():
            what = f"the withdrawal of {payload.model}@{payload.version}"
        case Manifest():
            what = f"{payload.id}"
    done = "Was signed before" if endorsed.repeated else "Signed"
    counts = "[green]counts[/green]" if endorsed.verdict.admitted else "[yellow]does not count yet[/yellow]"
    return f"{done}: [bold]{escape(what)}[/bold]\n  {counts}: {escape(printable(endorsed.verdict.message))}"
