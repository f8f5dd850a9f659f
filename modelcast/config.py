"""Which broker, which repository, which client properties.

Order of precedence, setting by setting: what the caller says, then `MODELCAST_*` environment variables, then the
properties file, then the running dev broker. librdkafka's properties keep their own dotted names and pass through.

    MODELCAST_BOOTSTRAP_SERVERS   host:port[,host:port…]
    MODELCAST_PROPERTIES_FILE     a client.properties file
    MODELCAST_PREFIX              the repository's topic prefix
    MODELCAST_SCHEMA_REGISTRY     the URL of a Schema Registry

Properties `schema.registry.…` are settings of that registry's client, and never reach librdkafka.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelcast.errors import BrokerError, ConfigError
from modelcast.group import GroupLog
from modelcast.topics import DEFAULT_PREFIX, Topics

BOOTSTRAP = "bootstrap.servers"
ENV_BOOTSTRAP = "MODELCAST_BOOTSTRAP_SERVERS"
ENV_PROPERTIES_FILE = "MODELCAST_PROPERTIES_FILE"
ENV_PREFIX = "MODELCAST_PREFIX"
ENV_SCHEMA_REGISTRY = "MODELCAST_SCHEMA_REGISTRY"
SCHEMA_REGISTRY_PREFIX = "schema.registry."
_SCHEMA_REGISTRY_URL = f"{SCHEMA_REGISTRY_PREFIX}url"


@dataclass(frozen=True)
class Connection:
    """A resolved connection: librdkafka properties (with `bootstrap.servers`) and the repository's prefix.

    Attributes:
        schema_registry: Settings of the Schema Registry's client, without their prefix; `url` says that there is one.
    """

    settings: Mapping[str, str] = field(repr=False)  # may hold passwords
    prefix: str = DEFAULT_PREFIX
    schema_registry: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold passwords, too

    @classmethod
    def resolve(
        cls,
        bootstrap_servers: str | None = None,
        *,
        properties_file: Path | str | None = None,
        properties: Mapping[str, str] | None = None,
        prefix: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Connection:
        """Puts the sources together.

        Raises:
            ConfigError: The file can't be read, or a line of it is not `key=value`.
            BrokerError: No broker is named anywhere and no dev broker runs.
        """
        path = _path(properties_file or environment.get(ENV_PROPERTIES_FILE))
        settings = dict(read_properties(path)) if path else {}
        if environment.get(ENV_BOOTSTRAP):
            settings[BOOTSTRAP] = environment[ENV_BOOTSTRAP]
        if environment.get(ENV_SCHEMA_REGISTRY):
            settings[_SCHEMA_REGISTRY_URL] = environment[ENV_SCHEMA_REGISTRY]
        settings.update(properties or {})
        if bootstrap_servers:
            settings[BOOTSTRAP] = bootstrap_servers
        if not settings.get(BOOTSTRAP):
            settings[BOOTSTRAP] = _dev_broker()
        topics = Topics(prefix or environment.get(ENV_PREFIX) or DEFAULT_PREFIX)
        registry = {
            key.removeprefix(SCHEMA_REGISTRY_PREFIX): settings.pop(key)
            for key in list(settings)
            if key.startswith(SCHEMA_REGISTRY_PREFIX)
        }
        return cls(settings, topics.prefix, registry)

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def bootstrap_servers(self) -> str:
        return self.settings[BOOTSTRAP]

    def with_defaults(self, properties: Mapping[str, str]) -> Connection:
        """With these properties where the user gave none of the name."""
        return replace(self, settings={**properties, **self.settings})

    def registry_settings(self, url: str | None = None) -> Mapping[str, str]:
        """Settings of the Schema Registry at `url`, or at the one that is configured; empty if there is none."""
        settings = {**self.schema_registry, "url": url} if url else self.schema_registry
        return settings if "url" in settings else {}

    def open_log(self) -> GroupLog:
        """Connects. Raises BrokerError."""
        from modelcast.kafka import KafkaLog

        return KafkaLog(self.settings)


def parse_property(text: str) -> tuple[str, str]:
    """`key=value` as a pair. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r} is not key=value", hint="Write e.g. -X security.protocol=SSL")
    return key.strip(), value.strip()


def read_properties(path: Path) -> Mapping[str, str]:
    """Reads `key=value` lines; blank lines and lines starting with `#` or `!` are skipped. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read properties file {path}: {error}", hint="Check the path given to -F.") from error
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text[0] in "#!":
            continue
        try:
            key, value = parse_property(text)
        except ConfigError:
            # The line itself may hold a password: it is named, not shown.
            raise ConfigError(f"line {number} of {path} is not key=value", hint="Mend the line.") from None
        pairs[key] = value
    return pairs


def _dev_broker() -> str:
    from modelcast.dev.state import running_bootstrap_servers

    servers = running_bootstrap_servers()
    if servers is None:
        raise BrokerError(
            "no broker is named and no dev broker is running",
            hint="Start one with: modelcast dev up, or name yours: -b HOST:PORT, bootstrap_servers=…, or "
            "MODELCAST_BOOTSTRAP_SERVERS.",
        )
    return servers


def _path(text: Path | str | None) -> Path | None:
    return Path(text) if text else None
