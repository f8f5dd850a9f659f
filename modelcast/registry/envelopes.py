"""The envelopes that stand at a key of the registry, with the signatures and hints an image does not keep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from modelcast import codec
from modelcast.errors import UsageError, WireError
from modelcast.log import BEGINNING, Log
from modelcast.records import Envelope, EnvelopeSignature
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S
from modelcast.scan import scan
from modelcast.topics import RegistryKey, Topics
from modelcast.trust.admission import MAX_SIGNATURES


def envelopes_at(log: Log, topics: Topics, key: RegistryKey) -> tuple[Envelope, ...]:
    """Every envelope written at a key and not compacted away, in the log's order; reads the whole registry.

    Raises:
        BrokerError: The registry's end was not reached.
    """
    ends = log.end_offsets(topics.registry, committed=False)
    found: list[Envelope] = []
    for record in scan(log, topics.registry, dict.fromkeys(ends, BEGINNING), ends, timeout_s=CATCH_UP_TIMEOUT_S):
        if record.key == key.encode() and record.value is not None:
            with suppress(WireError):  # the image says what is wrong with it
                found.append(codec.decode_envelope(record.value))
    return tuple(found)


def united(found: Sequence[Envelope], payload: codec.Payload, signers: Sequence[str] = ()) -> Envelope | None:
    """One envelope of this payload with the signatures of all of them; None if none holds it.

    Args:
        found: Envelopes of one key, in the log's order.
        signers: Ids of keys whose signatures go first: whoever adds many must not push these out.
    """
    same = [envelope for envelope in found if _holds(envelope, payload)]
    if not same:
        return None
    # Where two encodings of one value stand, the later is what was last signed.
    last = same[-1]
    signatures: dict[tuple[str, bytes], EnvelopeSignature] = {}
    hints = last.hints
    for envelope in same:
        if (envelope.payload_type, envelope.payload) == (last.payload_type, last.payload):
            signatures |= {(signature.key_id, signature.signature): signature for signature in envelope.signatures}
            hints = envelope.hints or hints
    ordered = sorted(signatures.values(), key=lambda signature: signature.key_id not in signers)
    return replace(last, signatures=tuple(ordered[:MAX_SIGNATURES]), hints=hints)


def _holds(envelope: Envelope, payload: codec.Payload) -> bool:
    try:
        return codec.unseal(envelope) == payload
    except (WireError, UsageError):
        return False
