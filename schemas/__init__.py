"""Every Avro schema of the registry and status topics, one `.avsc` a record.

- Registry and status records are read with these schemas only, never with one that came over a topic.
- A schema that changes leaves what it was in `earlier/<name>.<n>.avsc`: what was ever written is read for ever, by
  Avro's resolution of the writer's schema to today's. So a change adds fields with defaults, or symbols, and no more.

    >>> load("manifest").definition["name"]
    'Manifest'
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from modelcast.avro import Schema

NAMES = ("repository", "envelope", "manifest", "withdrawn", "release", "instance_status")


@cache
def load(name: str) -> Schema:
    """The schema in `<name>.avsc`."""
    return Schema.parse(resources.files(__name__).joinpath(f"{name}.avsc").read_bytes())


@cache
def versions(name: str) -> tuple[Schema, ...]:
    """Every schema records of this name were written with: today's, then earlier ones."""
    earlier = (entry for entry in resources.files(__name__).joinpath("earlier").iterdir())
    texts = sorted((entry for entry in earlier if entry.name.startswith(f"{name}.")), key=lambda entry: entry.name)
    return load(name), *(Schema.parse(entry.read_bytes()) for entry in texts)
