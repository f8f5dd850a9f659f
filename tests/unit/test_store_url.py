"""Which stores there are, and which of them a process may read: a URL from a topic chooses nothing by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.errors import ConfigError, StoreNotAllowedError, UsageError
from modelcast.files.store_url import MAX_URL_CHARS, NO_STORES, Stores, StoreUrl
from modelcast.names import ModelVersion

FRAUD = ModelVersion("fraud", 3)

SEGMENT = st.text("abcXYZ019-_. ü@", min_size=1, max_size=8).filter(lambda part: part not in {".", ".."}).map(str.strip)
SEGMENTS = st.lists(SEGMENT.filter(lambda part: part not in {"", ".", ".."}), max_size=4)
URLS = st.one_of(
    st.tuples(st.just("file://"), SEGMENTS).map(lambda parts: f"{parts[0]}/{'/'.join(parts[1])}"),
    st.tuples(st.sampled_from(["s3", "gs"]), st.from_regex(r"[a-z][a-z0-9-]{2,10}", fullmatch=True), SEGMENTS).map(
        lambda parts: f"{parts[0]}://{'/'.join((parts[1], *parts[2]))}"
    ),
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("s3://models", "s3://models"),
        ("s3://models/", "s3://models"),
        ("S3://models/team/", "s3://models/team"),
        ("s3a://models/team", "s3://models/team"),
        ("file:///srv/models/", "file:///srv/models"),
        ("file:/srv/models", "file:///srv/models"),
        ("local:///srv/models", "file:///srv/models"),
        ("file:///", "file:///"),
        ("https://Store.Example:8443/models", "https://store.example:8443/models"),
        ("s3://Legacy_Bucket/x", "s3://Legacy_Bucket/x"),
    ],
)
def test_one_place_has_one_name(text: str, normal: str) -> None:
    assert str(StoreUrl.parse(text)) == normal
    assert StoreUrl.parse(normal) == StoreUrl.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models",
        "/srv/models",
        "s3:models",
        "s3:/models",
        "s3://",
        "s3:///models",
        "file:models",
        "file://models",
        "file://./models",
        "file://host/models",
        "file:///srv/../etc",
        "file:///srv/./models",
        "file:///srv//models",
        "s3://models/../other",
        "s3://models/a//b",
        "s3://models/%2e%2e/other",
        "s3://models/*",
        "s3://models/a\\b",
        "s3://models/a,b",
        "s3://models/a\nb",
        "s3://models/a\tb",
        " s3://models",
        "simplecache::s3://models",
        "https://host:port/models",
        "s3://models/" + "x" * 1000,
    ],
)
def test_what_is_not_the_plain_url_of_a_folder_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        StoreUrl.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:secret@models/team",
        "s3://secret@models",
        "s3:secret@models",
        "https://key:secret@host:bad/x",
        "s3://models/team?token=secret",
        "s3://models/team?",
        "https://host:bad/models#secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_never_shown(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        StoreUrl.parse(text)
    assert "secret" not in str(refused.value).replace("may be a secret", "")
    assert "Leave it out" in str(refused.value)


def test_a_refusal_is_for_people_however_long_the_url() -> None:
    for text in ("s3://bucket/" + "x" * 100_000 + "?y", "x" * 100_000 + "://a@b"):
        with pytest.raises(UsageError) as refused:
            StoreUrl.parse(text)
        assert len(refused.value.message) < 2 * MAX_URL_CHARS


@given(URLS)
def test_the_normal_form_stays_as_it_is(text: str) -> None:
    store = StoreUrl.parse(text)
    assert StoreUrl.parse(str(store)) == store


@given(URLS, SEGMENTS)
def test_a_store_holds_itself_and_what_lies_below(text: str, below: list[str]) -> None:
    store = StoreUrl.parse(text)
    assert store.holds(store)
    assert store.holds(StoreUrl.parse(f"{text.removesuffix('/')}/{'/'.join(below)}"))


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ("s3://bucket", "s3://bucket-evil"),
        ("s3://bucket", "s3://bucket.evil.example/x"),
        ("s3://bucket/team", "s3://bucket/team-b"),
        ("s3://bucket/team", "s3://bucket"),
        ("s3://bucket/team", "s3://bucket/Team"),
        ("s3://bucket", "gs://bucket"),
        ("file:///data", "file:///database"),
        ("file:///data", "file:///data/../etc"),
        ("file:///data", "file:///"),
        ("s3://data", "file:///data"),
        ("https://host/models", "https://host:444/models"),
        ("https://host/models", "http://host/models"),
        ("s3://bucket", "s3://bucket@evil.example/x"),
        ("s3://bucket", "not a url"),
    ],
)
def test_a_store_beside_an_allowed_one_is_refused(allowed: str, asked: str) -> None:
    with pytest.raises(StoreNotAllowedError, match="fraud@3"):
        Stores.of([allowed]).check(asked, FRAUD)


def test_without_a_word_no_store_may_be_read_and_the_refusal_says_how_to_allow_it() -> None:
    with pytest.raises(StoreNotAllowedError) as refused:
        NO_STORES.check("s3://models/team/", FRAUD)
    words = str(refused.value)
    assert "s3://models/team" in words
    assert "MODELCAST_STORES" in words
    assert "--store-allowed" in words
    assert refused.value.reason == "store-not-allowed"
    assert not refused.value.retriable


def test_what_the_caller_says_goes_before_the_environment() -> None:
    environment = {"MODELCAST_STORES": " s3://a/x , file:///srv/models,"}
    assert [str(url) for url in Stores.resolve(None, environment=environment).allowed] == [
        "s3://a/x",
        "file:///srv/models",
    ]
    assert [str(url) for url in Stores.resolve(["gs://b"], environment=environment).allowed] == ["gs://b"]
    assert Stores.resolve("gs://b") == Stores.of(["gs://b"])
    assert Stores.resolve([], environment=environment) == NO_STORES
    assert Stores.resolve(None, environment={}) == NO_STORES


def test_an_environment_that_holds_no_url_is_named() -> None:
    with pytest.raises(ConfigError, match="MODELCAST_STORES: 'models'"):
        Stores.resolve(None, environment={"MODELCAST_STORES": "models"})


def test_a_hint_can_be_pasted_whatever_a_manifest_names() -> None:
    with pytest.raises(StoreNotAllowedError) as raised:
        NO_STORES.check("s3://models/$(id);x", FRAUD)
    assert raised.value.hint is not None
    assert "--store-allowed 's3://models/$(id);x' or" in raised.value.hint
