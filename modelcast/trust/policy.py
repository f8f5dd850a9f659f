"""The trust policy: which keys may sign for which models, and how many of them must. A TOML file and its value.

    repository = "0b7a4c1e-…"            # optional: no other repository counts

    [keys.alice]
    public = "ed25519:d75a98…"
    expires = 2027-01-01                 # optional; a date or a time, UTC if it names no zone

    [keys.bob]
    public = "ed25519:3d4017…"
    revoked = "laptop stolen, 3 March"   # optional; its signatures count for nothing from now on

    [[rules]]                            # the first rule that matches a model's name decides
    models = ["fraud*"]                  # *, ? and [abc] as in a shell
    keys = ["alice", "bob"]
    threshold = 2                        # 1 if it is not said
    max_age = "30d"                      # optional; days or hours: the newest release may be no older than this
    when_stale = "stop"                  # optional; what happens when it is: "keep" (by default) or "stop"

- A model that no rule matches is refused.
- Whatever is not as above is a mistake: a policy is never half understood.
"""

from __future__ import annotations

import os
import re
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from modelcast.errors import ConfigError
from modelcast.trust.keys import PublicKey

ENV_TRUST_POLICY: Final = "MODELCAST_TRUST_POLICY"

# People write this file: a thousand keys and rules take some hundred kilobytes.
MAX_POLICY_BYTES: Final = 1 << 20
MAX_KEYS: Final = 1_000
MAX_RULES: Final = 1_000
# Every key of a rule may be tried on every signature of a record.
MAX_RULE_KEYS: Final = 100
MAX_RULE_PATTERNS: Final = 100
# Model names have at most 100 characters.
MAX_PATTERN_CHARS: Final = 200
MAX_WORDS_CHARS: Final = 1_000
# Ten years and more: whoever needs no more than that needs none.
MAX_AGE_DIGITS: Final = 5

_AGE: Final = re.compile(rf"([1-9][0-9]{{0,{MAX_AGE_DIGITS - 1}}})([dh])")
_UNITS_MS: Final = {"d": 24 * 3600 * 1000, "h": 3600 * 1000}


class WhenStale(StrEnum):
    """What an instance does with a model when what it knows of it is too old."""

    KEEP = "keep"  # go on with what is live, and say so
    STOP = "stop"  # let go of it: no prediction is better than an old one


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key of the policy.

    Attributes:
        expires_ms: From then on its signatures count for nothing; None if it does not expire.
        revoked: Why its signatures count for nothing; None if they count.
    """

    name: str
    public: PublicKey
    expires_ms: int | None = None
    revoked: str | None = None

    def expired(self, now_ms: int) -> bool:
        return self.expires_ms is not None and now_ms >= self.expires_ms

    def counts(self, now_ms: int) -> bool:
        """Whether its signatures count."""
        return self.revoked is None and not self.expired(now_ms)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who signs for the models whose names match; `number` counts the file's rules from 1.

    Attributes:
        max_age_ms: How old a model's newest release may be; None if that is not said.
        when_stale: What happens with a model whose newest release is older.
    """

    number: int
    models: tuple[str, ...]
    keys: tuple[str, ...]
    threshold: int
    max_age_ms: int | None = None
    when_stale: WhenStale = WhenStale.KEEP

    def matches(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def __str__(self) -> str:
        return f"rule {self.number} ({', '.join(self.models)})"


@dataclass(frozen=True)
class TrustPolicy:
    """Keys by name, and rules in order; made by `parse_policy`."""

    keys: Mapping[str, TrustedKey]
    rules: tuple[Rule, ...]
    repository: str | None = None
    source: str = field(default="the trust policy", compare=False)

    def rule_for(self, model: str) -> Rule | None:
        """The first rule that matches."""
        return next((rule for rule in self.rules if rule.matches(model)), None)

    @cached_property
    def by_id(self) -> Mapping[str, TrustedKey]:
        """Keys by key id."""
        return {key.public.key_id: key for key in self.keys.values()}

    def expired(self, now_ms: int) -> frozenset[str]:
        """The names of the keys that have expired."""
        return frozenset(name for name, key in self.keys.items() if key.expired(now_ms))


def policy_path(given: Path | str | None) -> Path | None:
    """The policy file to use: what was given, else `MODELCAST_TRUST_POLICY`, else none."""
    text = str(given) if given is not None else os.environ.get(ENV_TRUST_POLICY, "")
    return Path(text).expanduser() if text else None


def read_policy(path: Path) -> TrustPolicy:
    """Reads a policy file.

    Raises:
        ConfigError: It can't be read, or something in it is wrong; the message names the line, key or rule.
        MissingExtraError: securesystemslib is not installed.
    """
    return parse_policy(read_text(path), source=str(path))


def read_text(path: Path) -> str:
    """The bounded text of a policy file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
        if len(data) > MAX_POLICY_BYTES:
            raise ConfigError(f"trust policy {path} is larger than {MAX_POLICY_BYTES:,} bytes")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"trust policy {path} can't be read: {error.strerror}",
            hint=f"Check the path, or make one with: modelcast keys trust NAME --models PATTERN --policy {path}",
        ) from error


def parse_policy(text: str, *, source: str = "the trust policy") -> TrustPolicy:
    """Reads the text of a policy. Raises ConfigError, as `read_policy`."""
    try:
        found = tomllib.loads(text)
        if not _is_within_64_bits(found):
            raise ValueError("an integer needs more than 64 bits")
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits it is not TOML's own
        raise ConfigError(f"{source} is not TOML: {error}") from None
    reader = _PolicyReader(source)
    reader.known(found, "the file", {"repository", "keys", "rules"})
    repository = found.get("repository")
    if repository is not None:
        repository = reader.repository(repository)
    keys = reader.keys(found.get("keys", {}))
    return TrustPolicy(keys, reader.rules(found.get("rules", []), keys), repository, source)


def _is_within_64_bits(value: object) -> bool:
    """As TOML asks of integers; Python reads longer ones, and can't write those of thousands of digits."""
    if isinstance(value, dict):
        return all(map(_is_within_64_bits, value.values()))
    if isinstance(value, list):
        return all(map(_is_within_64_bits, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


class _PolicyReader:
    """Checks what TOML gave; every complaint names the file and the place in it."""

    def __init__(self, source: str) -> None:
        self._source = source

    def repository(self, value: object) -> str:
        try:
            return str(uuid.UUID(self.words(value, "repository")))
        except ValueError:
            raise self.mistake("repository", f"{value!r} is not a UUID") from None

    def keys(self, table: object) -> Mapping[str, TrustedKey]:
        if not isinstance(table, dict) or len(table) > MAX_KEYS:
            raise self.mistake("keys", f"is not a table of at most {MAX_KEYS} keys")
        keys: dict[str, TrustedKey] = {}
        names: dict[str, str] = {}
        for name, entry in table.items():
            key = self._key(name, entry)
            twin = names.setdefault(key.public.value, name)
            if twin != name:  # one person would count for two
                raise self.mistake(f"keys.{name}", f"is the same public key as keys.{twin}")
            keys[name] = key
        return keys

    def rules(self, entries: object, keys: Mapping[str, TrustedKey]) -> tuple[Rule, ...]:
        if not isinstance(entries, list) or len(entries) > MAX_RULES:
            raise self.mistake("rules", f"is not a list of at most {MAX_RULES} tables: write [[rules]]")
        return tuple(self._rule(number, entry, keys) for number, entry in enumerate(entries, start=1))

    def known(self, table: Mapping[str, Any], where: str, names: set[str]) -> None:
        for name in table:
            if name not in names:
                raise self.mistake(where, f"has a {name!r}, which is not one of {', '.join(sorted(names))}")

    def words(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_WORDS_CHARS:
            raise self.mistake(where, f"is not a text of 1 to {MAX_WORDS_CHARS} characters")
        return value

    def mistake(self, where: str, what: str) -> ConfigError:
        return ConfigError(f"{self._source}: {where} {what}", hint="docs/TRUST.md shows a whole policy.")

    def _key(self, name: str, entry: object) -> TrustedKey:
        where = f"keys.{name}"
        if not isinstance(entry, dict):
            raise self.mistake(where, "is not a table")
        self.known(entry, where, {"public", "expires", "revoked"})
        try:
            public = PublicKey.parse(self.words(entry.get("public"), f"{where}.public"))
            _ = public.key_id
        except ConfigError as error:
            raise self.mistake(where, f"has no usable public key: {error.message}") from None
        expires = entry.get("expires")
        revoked = entry.get("revoked")
        return TrustedKey(
            name,
            public,
            None if expires is None else self._time_ms(expires, f"{where}.expires"),
            None if revoked is None else self.words(revoked, f"{where}.revoked"),
        )

    def _rule(self, number: int, entry: object, keys: Mapping[str, TrustedKey]) -> Rule:
        where = f"rule {number}"
        if not isinstance(entry, dict):
            raise self.mistake(where, "is not a table")
        self.known(entry, where, {"models", "keys", "threshold", "max_age", "when_stale"})
        models = self._texts(entry.get("models"), f"{where}: models", MAX_RULE_PATTERNS)
        where = f"rule {number} ({', '.join(models)[:MAX_PATTERN_CHARS]})"
        for pattern in models:
            if len(pattern) > MAX_PATTERN_CHARS:
                raise self.mistake(where, f"has a pattern of more than {MAX_PATTERN_CHARS} characters")
        names = self._texts(entry.get("keys"), f"{where}: keys", MAX_RULE_KEYS)
        for name in names:
            if name not in keys:
                raise self.mistake(where, f"names key {name!r}, and there is no [keys.{name}]")
        threshold = entry.get("threshold", 1)
        if type(threshold) is not int or not 1 <= threshold <= len(names):
            raise self.mistake(where, f"has the threshold {threshold!r}: it is from 1 to {len(names)}, its keys")
        max_age, when_stale = entry.get("max_age"), entry.get("when_stale")
        if when_stale is not None and (max_age is None or when_stale not in list(WhenStale)):
            raise self.mistake(
                where, f"has when_stale = {when_stale!r}: it is 'keep' or 'stop', and says what happens after max_age"
            )
        return Rule(
            number,
            models,
            names,
            threshold,
            None if max_age is None else self._age_ms(max_age, where),
            WhenStale(when_stale or WhenStale.KEEP),
        )

    def _texts(self, value: object, where: str, most: int) -> tuple[str, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise self.mistake(where, f"is not a list of 1 to {most} texts")
        texts = tuple(self.words(entry, where) for entry in value)
        if len(set(texts)) != len(texts):
            raise self.mistake(where, "has one of them twice")
        return texts

    def _age_ms(self, value: object, where: str) -> int:
        try:
            return age_ms(value)
        except ValueError:
            raise self.mistake(where, f"has max_age = {value!r}: write days or hours, as '30d' or '36h'") from None

    def _time_ms(self, value: object, where: str) -> int:
        try:
            return epoch_ms(value)
        except (ValueError, OverflowError):
            raise self.mistake(where, f"is not a date or time: {value!r}") from None


def epoch_ms(value: object) -> int:
    """A date (its beginning) or a time, or the ISO text of one, as epoch milliseconds; UTC if it names no zone.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError(value)
    return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)


def age_ms(value: object) -> int:
    """Days or hours in words (`30d`, `36h`) as milliseconds. Raises ValueError."""
    found = _AGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(value)
    return int(found[1]) * _UNITS_MS[found[2]]


def age_words(age: int) -> str:
    """Milliseconds of whole hours as `age_ms` reads them."""
    day = _UNITS_MS["d"]
    return f"{age // day}d" if age % day == 0 else f"{age // _UNITS_MS['h']}h"


def names_of(policy: TrustPolicy, key_ids: Sequence[str]) -> tuple[str, ...]:
    """Names of keys where the policy has them, and the beginnings of ids where it has not."""
    return tuple(policy.by_id[key].name if key in policy.by_id else f"{key[:12]}…" for key in key_ids)
