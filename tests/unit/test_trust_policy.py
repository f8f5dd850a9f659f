"""The trust policy file: what it may say, what is a mistake, and that changing it leaves the rest of it alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcast.errors import ConfigError, UsageError
from modelcast.trust.policy import (
    MAX_POLICY_BYTES,
    WhenStale,
    age_ms,
    age_words,
    parse_policy,
    policy_path,
    read_policy,
)
from modelcast.trust.writing import revoke_key, trust_key

from .trust_rig import key, policy_text

UUID = "0b7a4c1e-0000-4000-8000-000000000001"


def test_a_whole_policy_says_what_it_says() -> None:
    text = policy_text(
        "fraud* churn: alice bob: 2",
        "*: carol",
        top=f'repository = "{UUID.upper()}"',
        alice="expires = 2027-01-01",
        bob='revoked = "left"',
        carol="expires = 2027-01-01T02:00:00+02:00",
    )
    policy = parse_policy(text)
    assert policy.repository == UUID
    assert policy.keys["alice"].expires_ms == policy.keys["carol"].expires_ms == 1_798_761_600_000
    assert policy.keys["bob"].revoked == "left"
    assert [(rule.models, rule.keys, rule.threshold) for rule in policy.rules] == [
        (("fraud*", "churn"), ("alice", "bob"), 2),
        (("*",), ("carol",), 1),
    ]
    assert policy.rule_for("anything") is policy.rules[1]


@pytest.mark.parametrize(("words", "hours"), [("36h", 36), ("48h", 48), ("30d", 30 * 24)])
def test_a_rule_says_how_old_a_release_may_be_and_what_happens_then(words: str, hours: int) -> None:
    rule = parse_policy(policy_text() + f'max_age = "{words}"').rules[0]
    assert (rule.max_age_ms, rule.when_stale) == (hours * 3_600_000, WhenStale.KEEP)
    assert age_ms(age_words(hours * 3_600_000)) == rule.max_age_ms
    assert parse_policy(policy_text() + f'max_age = "{words}"\nwhen_stale = "stop"').rules[0].when_stale == "stop"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys = 1\nrules == 2", "at line 2"),
        ("[rule]\n", "has a 'rule', which is not one of keys, repository, rules"),
        ('repository = "here"', "repository 'here' is not a UUID"),
        ("keys = 3", "keys is not a table"),
        ("[keys.a]\n", "keys.a.public is not a text"),
        ('[keys.a]\npublic = "ed25519:12"', "keys.a has no usable public key"),
        (policy_text(alice='expires = "soon"'), "keys.alice.expires is not a date or time: 'soon'"),
        (policy_text(alice="expires = true"), "keys.alice.expires is not a date or time: True"),
        (policy_text(alice="revoked = true"), "keys.alice.revoked is not a text"),
        (policy_text(alice="expire = 2027-01-01"), "keys.alice has a 'expire', which is not one of"),
        (policy_text("fraud*: alice dave"), "rule 1 (fraud*) names key 'dave', and there is no [keys.dave]"),
        (policy_text("a: alice", "b: alice: 2"), "rule 2 (b) has the threshold 2: it is from 1 to 1"),
        (policy_text("a: alice: 0"), "rule 1 (a) has the threshold 0"),
        (policy_text("a: alice: true"), "rule 1 (a) has the threshold True"),
        (policy_text("a: alice alice"), "rule 1 (a): keys has one of them twice"),
        ('[[rules]]\nmodels = "fraud"\nkeys = []', "rule 1: models is not a list of 1 to"),
        ('[[rules]]\nmodels = ["fraud"]\nkeys = []', "rule 1 (fraud): keys is not a list of 1 to"),
        ('[rules]\nmodels = ["fraud"]', "rules is not a list of at most"),
        (policy_text() + f'[keys.twin]\npublic = "{key("alice").public}"', "keys.twin is the same public key as"),
        (policy_text() + "max_age = 30", "rule 1 (fraud*) has max_age = 30: write days or hours"),
        (policy_text() + 'max_age = "0d"', "has max_age = '0d'"),
        (policy_text() + 'max_age = "1 week"', "has max_age = '1 week'"),
        (policy_text() + 'max_age = "1d"\nwhen_stale = "die"', "has when_stale = 'die': it is 'keep' or 'stop'"),
        (policy_text() + 'when_stale = "stop"', "says what happens after max_age"),
        (policy_text("x" * 201 + ": alice"), "has a pattern of more than 200 characters"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, source="trust.toml")
    assert caught.value.message.startswith("trust.toml")
    assert words in caught.value.message


def test_a_file_that_is_no_policy_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_policy(path)
    with pytest.raises(ConfigError, match="can't be read"):
        read_policy(tmp_path / "absent.toml")


def test_the_caller_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy_path(None) is None
    monkeypatch.setenv("MODELCAST_TRUST_POLICY", "/etc/trust.toml")
    assert policy_path(None) == Path("/etc/trust.toml")
    assert policy_path("mine.toml") == Path("mine.toml")


class TestWriting:
    def test_the_first_key_makes_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "trust.toml"
        trust_key(path, "alice", key("alice").public, ["fraud*"])
        policy = read_policy(path)
        assert policy.keys["alice"].public == key("alice").public
        assert [(rule.models, rule.keys, rule.threshold) for rule in policy.rules] == [(("fraud*",), ("alice",), 1)]

    def test_comments_order_and_everything_else_stay(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        text = policy_text("fraud*: alice", keys=("alice",)).replace("threshold = 1", "threshold = 1 # for now")
        path.write_text("# ours; ask Eve\n" + text)
        trust_key(path, "bob", key("bob").public, ["fraud*"], threshold=2, expires_ms=1_798_761_600_000)
        text = path.read_text()
        assert text.startswith("# ours; ask Eve\n")
        assert "threshold = 2 # for now" in text
        assert read_policy(path).rules[0].keys == ("alice", "bob")
        assert read_policy(path).keys["bob"].expires_ms == 1_798_761_600_000

    def test_a_rule_for_fewer_models_goes_before_the_one_that_would_decide_for_them(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        trust_key(path, "alice", key("alice").public, ["*"])
        trust_key(path, "bob", key("bob").public, ["fraud*"])
        trust_key(path, "carol", key("carol").public, ["fraud-eu"])
        policy = trust_key(path, "alice", key("alice").public, ["fraud*"])
        assert [rule.models for rule in policy.rules] == [("fraud-eu",), ("fraud*",), ("*",)]
        assert policy.rules[1].keys == ("bob", "alice")

    def test_how_old_a_release_may_be_is_set_and_stays_until_it_is_set_again(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        trust_key(path, "alice", key("alice").public, ["*"], max_age="7d", when_stale=WhenStale.STOP)
        policy = trust_key(path, "bob", key("bob").public, ["*"])
        assert (policy.rules[0].max_age_ms, policy.rules[0].when_stale) == (7 * 24 * 3_600_000, WhenStale.STOP)
        with pytest.raises(ConfigError, match="has max_age = 'soon'"):
            trust_key(path, "bob", key("bob").public, ["*"], max_age="soon")
        assert read_policy(path) == policy

    def test_doing_it_again_changes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        once = trust_key(path, "alice", key("alice").public, ["fraud*"])
        assert trust_key(path, "alice", key("alice").public, ["fraud*"]) == once

    def test_a_name_is_not_given_to_another_key(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        trust_key(path, "alice", key("alice").public, ["fraud*"])
        with pytest.raises(UsageError, match="has another key named 'alice'"):
            trust_key(path, "alice", key("bob").public, ["fraud*"])

    def test_what_would_be_a_mistake_is_not_written(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        trust_key(path, "alice", key("alice").public, ["fraud*"])
        before = path.read_text()
        with pytest.raises(ConfigError, match="threshold 5"):
            trust_key(path, "bob", key("bob").public, ["fraud*"], threshold=5)
        assert path.read_text() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["trust.toml"]

    def test_a_file_that_is_broken_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        path.write_text("[[rules]]\nmodels = 3\n")
        with pytest.raises(ConfigError, match="rule 1"):
            trust_key(path, "alice", key("alice").public, ["fraud*"])
        assert path.read_text() == "[[rules]]\nmodels = 3\n"

    def test_revoking_says_why(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.toml"
        trust_key(path, "alice", key("alice").public, ["fraud*"])
        assert revoke_key(path, "alice", "laptop stolen").keys["alice"].revoked == "laptop stolen"
        with pytest.raises(UsageError, match="has no key 'bob'"):
            revoke_key(path, "bob", "left")
