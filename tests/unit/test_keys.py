"""Signing keys on disk: for their owner only, encrypted if wanted, and never mistaken for something else."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from modelcast.errors import ConfigError, MissingExtraError, UsageError
from modelcast.trust.keys import PublicKey, _sslib, generate, load, load_public
from modelcast.trust.signing import load_signers, signed

from .registry_records import manifest
from .trust_rig import key, sealed


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODELCAST_KEY_PASSPHRASE", raising=False)
    monkeypatch.delenv("MODELCAST_SIGNING_KEY", raising=False)
    monkeypatch.setenv("MODELCAST_CONFIG_DIR", str(tmp_path))


def pem(private: object) -> bytes:
    return private.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_key_signs_what_its_public_half_verifies(tmp_path: Path) -> None:
    made = generate("alice", tmp_path)
    again = load("alice", tmp_path)
    assert again.key_id == made.key_id
    signature = again.sign("a type", b"a payload")
    name, public = load_public("alice", tmp_path)
    assert (name, signature.key_id) == ("alice", public.key_id)
    assert public.verifies("a type", b"a payload", signature.signature)
    assert not public.verifies("a type", b"another payload", signature.signature)


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    generate("alice", tmp_path / "keys")
    assert (tmp_path / "keys" / "alice.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_a_key_that_everyone_can_read_is_not_used(tmp_path: Path) -> None:
    generate("alice", tmp_path)
    (tmp_path / "alice.key").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read or written by everyone"):
        load("alice", tmp_path)


def test_a_key_never_takes_the_place_of_another(tmp_path: Path) -> None:
    made = generate("alice", tmp_path)
    with pytest.raises(UsageError, match="there is a key"):
        generate("alice", tmp_path)
    assert load("alice", tmp_path).key_id == made.key_id


@pytest.mark.parametrize("name", ["", "../alice", "a/b", ".hidden", "a b"])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a name for a key"):
        generate(name, tmp_path / "keys")


def test_a_passphrase_comes_from_the_environment_or_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generate("alice", tmp_path, passphrase="open sesame")
    assert b"ENCRYPTED" in (tmp_path / "alice.key").read_bytes()
    assert load("alice", tmp_path, ask=lambda path: "open sesame").key_id == made.key_id
    with pytest.raises(ConfigError, match="the passphrase of key .* is wrong"):
        load("alice", tmp_path, ask=lambda path: "close sesame")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="nobody can be asked") as caught:
        load("alice", tmp_path)
    assert "MODELCAST_KEY_PASSPHRASE" in (caught.value.hint or "")
    monkeypatch.setenv("MODELCAST_KEY_PASSPHRASE", "open sesame")
    assert load("alice", tmp_path).key_id == made.key_id


def test_keys_of_other_tools_are_taken_where_they_are_ed25519(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    path = tmp_path / "release.pem"
    path.write_bytes(pem(private))
    path.chmod(0o600)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "release.pub").write_bytes(public)
    assert load(path, tmp_path).public == load_public(tmp_path / "release.pub", tmp_path)[1]
    path.write_bytes(pem(generate_private_key(65537, 2048)))
    with pytest.raises(ConfigError, match="holds no Ed25519 key"):
        load(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a key", b"\x00" * 100, b"x" * 20_000])
def test_what_is_no_key_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is not a private key"):
        load(path, tmp_path)


def test_a_private_key_is_never_taken_for_a_public_one(tmp_path: Path) -> None:
    generate("alice", tmp_path)
    with pytest.raises(UsageError, match="is a private key"):
        load_public(tmp_path / "alice.key", tmp_path)


def test_a_public_key_from_elsewhere_has_a_name_or_its_files(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pub"
    path.write_text(f"{key('alice').public}\n")
    assert load_public(path, tmp_path) == ("theirs", key("alice").public)
    path.write_text(f"{key('alice').public} \x1b[2Jalice\n")
    with pytest.raises(ConfigError, match="names its key"):
        load_public(path, tmp_path)


def test_a_key_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    generate("alice", tmp_path)
    with pytest.raises(UsageError, match="there is no key 'bob'") as caught:
        load("bob", tmp_path)
    assert "alice" in (caught.value.hint or "")


def test_a_keys_id_is_the_hash_of_what_it_is() -> None:
    public = key("alice").public
    canonical = json.dumps(
        {"keytype": "ed25519", "keyval": {"public": public.value}, "scheme": "ed25519"},
        sort_keys=True,
        separators=(",", ":"),
    )
    assert public.key_id == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:zz", "rsa:" + "0" * 64, "ed25519:" + "0" * 63])
def test_what_is_no_public_key_is_a_mistake(text: str) -> None:
    with pytest.raises(ConfigError):
        PublicKey.parse(text)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "securesystemslib.signer", None)
    _sslib.cache_clear()
    with pytest.raises(MissingExtraError) as caught:
        generate("alice", tmp_path)
    assert caught.value.hint == "pip install 'modelcast[signing]'"
    monkeypatch.undo()
    _sslib.cache_clear()


def test_signing_again_replaces_ones_own_signature_and_leaves_the_others() -> None:
    envelope = signed(sealed(manifest(1), "alice", "bob"), [key("alice")])
    assert [signature.key_id for signature in envelope.signatures] == [key("bob").key_id, key("alice").key_id]


def test_keys_to_sign_with_come_from_the_caller_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alice", "bob"):
        generate(name, tmp_path / "keys")
    assert load_signers(None) == ()
    monkeypatch.setenv("MODELCAST_SIGNING_KEY", "alice, bob,alice")
    assert [signer.name for signer in load_signers(None)] == ["alice", "bob"]
    assert [signer.name for signer in load_signers([tmp_path / "keys" / "bob.key"])] == ["bob"]
