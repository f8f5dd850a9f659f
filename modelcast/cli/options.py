"""Options every command takes, in one place.

    @app.command()
    @connected
    def release(context: CommandContext, name: ModelArgument, version: VersionArgument) -> None: ...

`connected` puts `-b/--bootstrap-servers`, `-F`, `-X`, `--prefix` and `--json` behind the command's own options and
hands the command a `CommandContext`; `plain` does the same with `--json` only, for commands that need no broker. The
root command takes them before a command's name too, and hands them on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from modelcast.cli.interruption import interruptible
from modelcast.cli.output import Output
from modelcast.config import (
    ENV_BOOTSTRAP,
    ENV_PREFIX,
    ENV_PROPERTIES_FILE,
    ENV_SCHEMA_REGISTRY,
    Connection,
    parse_property,
)

P = ParamSpec("P")

BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--bootstrap-servers",
        metavar="HOST:PORT,…",
        envvar=ENV_BOOTSTRAP,
        help="Kafka brokers. Default: the dev broker, if it runs.",
    ),
]
PropertiesFile = Annotated[
    Path | None,
    typer.Option(
        "-F",
        "--properties-file",
        metavar="FILE",
        envvar=ENV_PROPERTIES_FILE,
        help="client.properties with librdkafka settings.",
    ),
]
Properties = Annotated[
    list[str] | None,
    typer.Option("-X", "--property", metavar="KEY=VALUE", help="A librdkafka setting. Repeatable."),
]
Prefix = Annotated[
    str | None, typer.Option("--prefix", envvar=ENV_PREFIX, help="Topic prefix of the repository. Default: modelcast.")
]
# Of commands that read events; the variable is read with the properties, where this outweighs both.
SchemaRegistryUrl = Annotated[
    str | None,
    typer.Option(
        "--schema-registry",
        metavar="URL",
        help=f"Schema Registry that knows the events' schemas. Default: {ENV_SCHEMA_REGISTRY}.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, all else on standard error.")]


# The names of all of these: of those that take a value, and the other.
_VALUED = frozenset({"-b", "--bootstrap-servers", "-F", "--properties-file", "-X", "--property", "--prefix"})
_FLAG = "--json"


@dataclass(frozen=True)
class CommandContext:
    """What the common options came to; the connection is made when first asked for."""

    output: Output
    bootstrap_servers: str | None = None
    properties_file: Path | None = None
    properties: tuple[str, ...] = ()
    prefix: str | None = None

    @cached_property
    def connection(self) -> Connection:
        """Raises ConfigError, BrokerError."""
        return Connection.resolve(
            self.bootstrap_servers,
            properties_file=self.properties_file,
            properties=dict(parse_property(text) for text in self.properties),
            prefix=self.prefix,
        )


def connected(command: Callable[Concatenate[CommandContext, P], None]) -> Callable[..., None]:
    """Gives a command the connection options; see the module's docstring."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        bootstrap_servers: str | None = None,
        properties_file: Path | None = None,
        properties: list[str] | None = None,
        prefix: str | None = None,
        json: bool = False,
        **kwargs: Any,
    ) -> None:
        context = CommandContext(Output(json=json), bootstrap_servers, properties_file, tuple(properties or ()), prefix)
        with context.output.failures(), interruptible():
            command(context, *args, **kwargs)

    common = {
        "bootstrap_servers": (BootstrapServers, None),
        "properties_file": (PropertiesFile, None),
        "properties": (Properties, None),
        "prefix": (Prefix, None),
        "json": (Json, False),
    }
    return _with_options(wrapper, command, common)


def plain(command: Callable[Concatenate[CommandContext, P], None]) -> Callable[..., None]:
    """Gives a command `--json` only."""

    @functools.wraps(command)
    def wrapper(*args: Any, json: bool = False, **kwargs: Any) -> None:
        context = CommandContext(Output(json=json))
        with context.output.failures(), interruptible():
            command(context, *args, **kwargs)

    return _with_options(wrapper, command, {"json": (Json, False)})


def split_common(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The common options that words of a command line begin with, and the other words."""
    at = 0
    while at < len(words):
        word = words[at]
        if word in _VALUED:
            at += 2
        elif word == _FLAG or word.partition("=")[0] in _VALUED or (word[1:2] != "-" and word[:2] in _VALUED):
            at += 1
        else:
            break
    return list(words[:at]), list(words[at:])


def _with_options(
    wrapper: Callable[..., None], command: Callable[..., None], options: dict[str, tuple[Any, Any]]
) -> Callable[..., None]:
    # Typer reads a command from its signature: the context goes out of it, the common options come in.
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper
