"""Every Avro schema of the registry and status topics, one `.avsc` a record.

Registry and status records are read with these schemas only, never with one that came over a topic.

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
