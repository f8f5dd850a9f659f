"""Changing a policy file as a person would: what else stands in it, comments too, stays (only importer of tomlkit).

Every change is checked as a whole before it takes the file's place, by rename: who reads it meanwhile reads one or the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modelcast.errors import ConfigError, MissingExtraError, UsageError
from modelcast.replacing import replace_file
from modelcast.trust.keys import PublicKey
from modelcast.trust.policy import TrustPolicy, WhenStale, parse_policy, read_text

_HEADER = "Who may sign for which models. The first rule that matches a model's name decides; see docs/TRUST.md."


def trust_key(
    path: Path,
    name: str,
    public: PublicKey,
    models: Sequence[str],
    *,
    threshold: int | None = None,
    expires_ms: int | None = None,
    max_age: str | None = None,
    when_stale: WhenStale | None = None,
) -> TrustPolicy:
    """Adds a key to the rule for exactly these patterns; makes file, key and rule where they are not there yet.

    A new rule goes before the first one that would decide for its models.

    Args:
        threshold: Of the rule; None leaves it, which is 1 for a new one.
        expires_ms: When the key stops counting; None leaves it as it is.
        max_age: How old the newest release of the rule's models may be: `30d`, `36h`; None leaves it.
        when_stale: What happens with a model whose newest release is older; None leaves it.

    Raises:
        UsageError: The file has another key of that name.
        ConfigError: The file can't be read or written, or would hold a mistake.
        MissingExtraError: tomlkit is not installed.
    """

    def change(document: Any) -> None:
        tomlkit = _tomlkit()
        keys = document.setdefault("keys", tomlkit.table(is_super_table=True))
        entry = keys.get(name)
        if entry is None:
            entry = tomlkit.table()
            entry["public"] = str(public)
            keys[name] = entry
        elif PublicKey.parse(str(entry.get("public"))) != public:
            raise UsageError(
                f"{path} has another key named {name!r}",
                hint="Keys that were replaced stay in the file: give the new one another name, e.g. with its year.",
            )
        if expires_ms is not None:
            entry["expires"] = datetime.fromtimestamp(expires_ms / 1000, tz=UTC)
        rules = document.setdefault("rules", tomlkit.aot())
        rule = next((rule for rule in rules if list(rule.get("models", ())) == list(models)), None)
        if rule is None:
            rule = tomlkit.table()
            rule["models"] = list(models)
            rule["keys"] = [name]
            _insert(rules, rule, models)
        elif name not in rule["keys"]:
            rule["keys"].append(name)
        if threshold is not None:
            rule["threshold"] = threshold
        if max_age is not None:
            rule["max_age"] = max_age
        if when_stale is not None:
            rule["when_stale"] = str(when_stale)

    return _changed(path, change, new=True)


def revoke_key(path: Path, name: str, reason: str) -> TrustPolicy:
    """Says that a key's signatures count for nothing any more. Raises UsageError, ConfigError, MissingExtraError."""

    def change(document: Any) -> None:
        entry = document.get("keys", {}).get(name)
        if entry is None:
            known = ", ".join(sorted(document.get("keys", {}))) or "none"
            raise UsageError(f"{path} has no key {name!r}", hint=f"Its keys: {known}")
        entry["revoked"] = reason

    return _changed(path, change, new=False)


def _insert(rules: Any, rule: Any, models: Sequence[str]) -> None:
    for index, other in enumerate(rules):
        # A pattern that matches another as a text matches all that the other does, in all but contrived cases.
        if any(fnmatchcase(model, pattern) for model in models for pattern in other.get("models", ())):
            rules.insert(index, rule)
            return
    rules.append(rule)


def _changed(path: Path, change: Callable[[Any], None], *, new: bool) -> TrustPolicy:
    tomlkit = _tomlkit()
    if path.exists() or not new:
        text = read_text(path)
        parse_policy(text, source=str(path))
        document = tomlkit.parse(text)
    else:
        document = tomlkit.document()
        document.add(tomlkit.comment(_HEADER))
    change(document)
    text = _spaced(tomlkit.dumps(document))
    policy = parse_policy(text, source=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    except OSError as error:
        raise ConfigError(f"trust policy {path} can't be written: {error}") from error
    return policy


def _spaced(text: str) -> str:
    """With an empty line before each rule, which tomlkit leaves out."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("[[") and lines and lines[-1] and not lines[-1].startswith("#"):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> None:
    path = path.resolve()  # a link stays one
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    replace_file(path, text.encode(), mode=mode)


def _tomlkit() -> Any:
    try:
        import tomlkit
    except ImportError as error:
        raise MissingExtraError(
            "changing a trust policy needs tomlkit, which is not installed", hint="pip install 'modelcast[signing]'"
        ) from error
    return tomlkit
