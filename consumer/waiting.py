"""Why nothing is live yet, for whoever waited in vain. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from modelcast.errors import BrokerError, LoadError, ModelcastError, NotFoundError
from modelcast.records import Refusal
from modelcast.registry.image import RegistryImage

from .line import Line
from .policy import UNKNOWN_VERSION


def is_lasting(fault: Exception | None) -> bool:
    """Whether only a person can mend it."""
    return isinstance(fault, ModelcastError) and not fault.retriable


def refusal_words(refusals: Sequence[Refusal]) -> str:
    """Which versions were refused, and why."""
    return "; ".join(
        (f"version {entry.version} ({entry.reason}): " if entry.version else f"{entry.reason}: ") + entry.message
        for entry in refusals
    )


def explain(line: Line, image: RegistryImage | None, fault: Exception | None, waited_s: float) -> ModelcastError:
    """The error that says why no version is live.

    Args:
        image: The registry as far as it is known.
        fault: What keeps it from being followed.
        waited_s: For how long somebody waited.
    """
    fault = line.fault or (fault if image is None else None)
    if isinstance(fault, ModelcastError):
        return type(fault)(fault.message, hint=fault.hint, details=fault.details)
    if image is None:
        return BrokerError(f"the registry was not read in {waited_s:g} s" + (f": {fault}" if fault else ""))
    refusals = line.refusals()
    # A pin to what is not there is no failed load: the registry says what is.
    if refusals and not (line.ref.version and all(entry.reason == UNKNOWN_VERSION for entry in refusals)):
        return LoadError(f"no version of {str(line.ref)!r} could go live here: {refusal_words(refusals)}")
    try:
        image.resolve(line.ref)
    except NotFoundError as error:
        return error
    return LoadError(f"{line.ref} was not loaded in {waited_s:g} s", hint="Allow more time: wait_live(…)")
