"""The protocol's published test vectors (secure-systems-lab/dsse, testvectors/vectors.json), on this format.

The vectors are JSON envelopes; what they test is the encoding under the signature, the hint that a key id is, and the
threshold. Their keys are the first two of RFC 8032, section 7.1. What is left out: the alphabet of base64, since this
envelope holds bytes; its signature, over the same encoding, is here.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pytest

from modelcast import codec
from modelcast.errors import WireError
from modelcast.records import Envelope, EnvelopeSignature
from modelcast.trust.admission import PolicyAdmission
from modelcast.trust.keys import PublicKey, encoding
from modelcast.trust.policy import parse_policy

PUBLIC = {
    "A": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "B": "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
}
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'
IN_TOTO = "application/vnd.in-toto+json"
BY_A = "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA=="
BY_B = "c1+67/aT0yqEpwx8PsVY3MLHsj9D0CZ014/Fv/QlG59P+9CobUZ7xECJ/V3USG0Ob9CiE5LjReEZUzNF2l7eBw=="


@dataclass(frozen=True)
class Vector:
    """An envelope, what is trusted, and what has to come of it."""

    name: str
    accepted: bool
    signatures: tuple[tuple[str | None, str], ...] = (("A", BY_A),)
    payload_type: str = IN_TOTO
    payload: bytes = STATEMENT
    trusted: str = "A"
    threshold: int = 1
    pae: bytes | None = b"DSSEv1 28 application/vnd.in-toto+json 43 " + STATEMENT

    def __str__(self) -> str:
        return self.name


VECTORS = (
    Vector("one signature", True),
    Vector(
        "the bytes that base64 writes in two alphabets",
        True,
        (("A", "P+/KHICeR7tI6S/YyejJTRtrXhcQyQ2LYPaL8h90KjC9qN8HU/svOQ6TuDOT1HIrsGW886DbWNWcCmX5twLrAw=="),),
        payload=b"\xfb\xff\xbf>?",
        pae=b"DSSEv1 28 application/vnd.in-toto+json 5 \xfb\xff\xbf>?",
    ),
    Vector("another payload type", False, payload_type="application/vnd.example.other+json", pae=None),
    Vector(
        "a payload type beyond ASCII: its length is in bytes",
        True,
        (("A", "xmSk/ug66ysT7ayhkCIjhAq42zgZXSsEWuzUaNL7w2eGAdF/NU6/fRXPtmfN+5DNSAs5/i2lUnHjbbjPsu0tAw=="),),
        payload_type="application/vnd.exämple+json",
        pae="DSSEv1 29 application/vnd.exämple+json 43 ".encode() + STATEMENT,
    ),
    Vector(
        "an empty payload",
        True,
        (("A", "gSggCAaTLTYyRH6FIDBem6meyIynsYy8RTHVzwx9tnTb7Bg/1jMWnuVgI/gffqmbsC2VX5/jHfkkDqsj7CDbDg=="),),
        payload=b"",
        pae=b"DSSEv1 28 application/vnd.in-toto+json 0 ",
    ),
    Vector("two keys for a threshold of two", True, (("A", BY_A), ("B", BY_B)), trusted="AB", threshold=2),
    Vector("one key twice for a threshold of two", False, (("A", BY_A), ("A", BY_A)), trusted="AB", threshold=2),
    Vector("two keys that leave their ids out", True, ((None, BY_A), (None, BY_B)), trusted="AB", threshold=2),
)


def envelope(vector: Vector) -> Envelope:
    signatures = tuple(
        EnvelopeSignature("" if name is None else PublicKey(PUBLIC[name]).key_id, base64.b64decode(signature))
        for name, signature in vector.signatures
    )
    return Envelope(vector.payload_type, vector.payload, signatures)


def judges(vector: Vector) -> PolicyAdmission:
    keys = "".join(f'[keys.{name}]\npublic = "ed25519:{PUBLIC[name]}"\n' for name in vector.trusted)
    rule = f'[[rules]]\nmodels = ["*"]\nkeys = {list(vector.trusted)!r}\nthreshold = {vector.threshold}\n'
    return PolicyAdmission(parse_policy(keys + rule), lambda: 0)


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_a_published_vector_comes_out_as_published(vector: Vector) -> None:
    assert judges(vector).judge("any", envelope(vector)).admitted is vector.accepted


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if vector.pae], ids=str)
def test_what_is_signed_is_the_published_encoding(vector: Vector) -> None:
    assert encoding(vector.payload_type, vector.payload) == vector.pae


def test_a_valid_signature_over_an_empty_payload_type_gets_nobody_to_read_the_payload() -> None:
    signature = "iC3q/+3Rm0+lpAJRueDmDh15PnwCfxKmS0NAfKsbv+zgulXQC/WM9trc+j1XEqlwDIg/vf/uNfebeD6sxInrDg=="
    vector = Vector("an empty payload type", False, (("A", signature),), payload_type="")
    assert encoding("", STATEMENT) == b"DSSEv1 0  43 " + STATEMENT
    assert judges(vector).judge("any", envelope(vector)).admitted  # the signature is what it says it is,
    with pytest.raises(WireError, match="payload type '' is not known"):  # and no type of ours
        codec.unseal(envelope(vector))
