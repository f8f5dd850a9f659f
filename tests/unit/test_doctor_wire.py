"""Kafka's frames and logins as `doctor` speaks them: by the protocol's own examples, and whatever else may answer."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.doctor import wire
from modelcast.doctor.login import Scram, plain
from modelcast.doctor.tls import Validity, validities, validity
from modelcast.errors import WireError
from tests.secured import Authority

# TxnOffsetCommit 0-3 and one feature, as KIP-584 writes them.
API_VERSIONS_3 = (
    b"\x00\x00\x02\x00\x1c\x00\x00\x00\x03\x00\x00\x00\x00\x00\x01\x02\x14\x02\x0egroup.version\x00\x01\x00\x01\x00"
)
API_VERSIONS_0 = b"\x00\x23\x00\x00\x00\x01\x00\x12\x00\x00\x00\x02"
READERS = {
    "ApiVersions": lambda answer: wire.read_api_versions(answer, version=3),
    "old ApiVersions": lambda answer: wire.read_api_versions(answer, version=0),
    "Metadata": wire.read_brokers,
    "DescribeQuorum": wire.read_quorum_time,
    "FindCoordinator": wire.read_find_coordinator,
    "SaslHandshake": wire.read_sasl_handshake,
    "SaslAuthenticate": wire.read_sasl_authenticate,
}


def test_a_broker_says_what_it_speaks_and_which_features_are_on() -> None:
    error, found = wire.read_api_versions(wire.Answer(API_VERSIONS_3), version=3)
    assert (error, found.apis, found.features) == (0, {28: (0, 3)}, {"group.version": 1})


def test_an_old_broker_refuses_the_question_and_says_which_one_it_knows() -> None:
    error, found = wire.read_api_versions(wire.Answer(API_VERSIONS_0), version=3)
    assert (error, found.apis, found.features) == (wire.UNSUPPORTED_VERSION, {18: (0, 2)}, {})


def test_a_request_begins_with_its_size_and_names_its_client() -> None:
    message = wire.request(wire.API_VERSIONS, 0, 7, b"body")
    assert struct.unpack(">ihhi", message[:12]) == (len(message) - 4, 18, 0, 7)
    assert message[12:] == wire.text("modelcast-doctor") + b"body"


@pytest.mark.parametrize("name", READERS)
@given(data=st.binary(max_size=200))
def test_whatever_answers_is_read_or_refused_by_name(name: str, data: bytes) -> None:
    with suppress(WireError):
        READERS[name](wire.Answer(data))


@pytest.mark.parametrize("count", [b"\x7f\xff\xff\xff", b"\x00\x10\x00\x00"])
def test_no_array_is_longer_than_its_answer(count: bytes) -> None:
    with pytest.raises(WireError, match="claims"):
        wire.read_brokers(wire.Answer(count + b"\x00" * 20))


def test_scram_proves_the_password_as_rfc_7677_shows() -> None:
    scram = Scram("SCRAM-SHA-256", "user", "pencil", nonce="rOprNGfwEbeRWgbNEkqO")
    assert scram.first() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    answer = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert scram.final(answer) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"r=other,s=W22Z,i=4096",
        b"r=mine-and-theirs,s=W22Z,i=2000000000",
        b"r=mine-and-theirs,s=***,i=4096",
        b"r=mine-and-theirs,s=W22Z,i=many",
        b"\xff",
    ],
)
def test_scram_answers_nobody_who_is_not_the_other_side(answer: bytes) -> None:
    with pytest.raises(WireError):
        Scram("SCRAM-SHA-512", "ann", "secret", nonce="mine").final(answer)


def test_plain_is_user_and_password() -> None:
    assert plain("ann", "s3") == b"\0ann\0s3"


def test_a_certificate_says_when_it_is_valid(tmp_path_factory: pytest.TempPathFactory) -> None:
    from cryptography import x509

    authority = Authority(tmp_path_factory.mktemp("certificates"))
    pem = authority.issue("expired", days=-1).certificate.read_bytes() + authority.certificate.read_bytes()
    expected = tuple(
        Validity(*(int(at.timestamp() * 1000) for at in (one.not_valid_before_utc, one.not_valid_after_utc)))
        for one in x509.load_pem_x509_certificates(pem)
    )
    assert validities(b"some words before\n" + pem) == expected


@given(data=st.binary(max_size=100))
def test_what_is_no_certificate_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(WireError):
        validity(data)
