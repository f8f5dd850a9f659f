"""Names: of models, versions, and what Avro allows of them and of texts.

- A model name matches `[A-Za-z0-9][A-Za-z0-9._-]{0,99}`; `/` separates keys, so it is not allowed.
- A version is an integer from 1, per model. `fraud@3` names one; `fraud` alone means the live one.
- An ONNX name becomes an Avro name by replacing every illegal character with `_`.

    >>> ModelRef.parse("fraud@3")
    ModelRef(model='fraud', version=3)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelcast.errors import UsageError

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"0*[1-9][0-9]{0,9}")
_AVRO_ILLEGAL = re.compile(r"[^A-Za-z0-9_]")


def check_model_name(name: str) -> str:
    """Returns `name`, or raises UsageError saying what is allowed."""
    if not _MODEL_NAME.fullmatch(name):
        raise UsageError(
            f"{name[:200]!r} is not a model name",
            hint="Use 1 to 100 letters, digits, '.', '_' and '-', starting with a letter or digit.",
        )
    return name


def check_text(text: str, what: str) -> str:
    """Returns `text`, or raises UsageError if it has no UTF-8: in a command's arguments, bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} {text[:200]!r} is not valid UTF-8",
            hint="Write it in UTF-8: check the terminal's or script's encoding.",
        ) from error
    return text


def avro_name(onnx_name: str) -> str:
    """The Avro name of an ONNX output: illegal characters become `_`, a leading digit gets one before it."""
    name = _AVRO_ILLEGAL.sub("_", onnx_name)
    return f"_{name}" if not name or name[0].isdigit() else name


@dataclass(frozen=True, slots=True, order=True)
class ModelVersion:
    """One version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a user names: a model (its live version) or one version of it."""

    model: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parses `NAME` or `NAME@VERSION`.

        Raises:
            UsageError: The name is not a model name, or the version is not a positive integer.
        """
        name, at, version = text.partition("@")
        check_model_name(name)
        if not at:
            return cls(name)
        if not _VERSION.fullmatch(version):
            raise UsageError(f"{text[:200]!r} names no version", hint="Write NAME or NAME@NUMBER, numbers start at 1.")
        return cls(name, int(version))

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}@{self.version}"
