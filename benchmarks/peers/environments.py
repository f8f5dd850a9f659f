"""The peers' environments, made once below the user's cache folder and named after the digest of what pins them.

What can't be made on a machine is said with its reason, never guessed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_LOCK = _HERE / "quix.txt"
_PROJECT = _HERE / "kafka-streams"
_MADE = ".made"
# Downloads and a compiler on a busy machine.
_TIMEOUT_S = 900.0
_REASON_LINES = 3
# Versions that are told.
_QUIX_NAMES = ("quixstreams", "confluent-kafka", "onnxruntime")
_STREAMS_NAMES = ("kafka-streams", "onnxruntime", "avro", "jackson-core")
_JVM = ("-Xmx1g", "-XX:+UseParallelGC")


class AbsentError(Exception):
    """A peer that can't be run here; says why."""


@dataclass(frozen=True)
class Environment:
    """What runs a peer.

    Attributes:
        command: What its arguments are put behind.
        versions: Of the packages that matter, by name.
    """

    command: tuple[str, ...]
    versions: dict[str, str]


def quix(cache: Path) -> Environment:
    """Quix Streams in a virtual environment. Raises AbsentError."""
    folder = cache / f"quix-{_digest([_LOCK])}"
    python = folder / "bin" / "python"
    if not (folder / _MADE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], "making Quix Streams' environment")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        _run([str(python), *install, "-r", str(_LOCK)], "installing Quix Streams")
        (folder / _MADE).touch()
    pinned = dict(line.split(" ")[0].split("==") for line in _LOCK.read_text().splitlines() if "==" in line[:60])
    return Environment((str(python),), {name: pinned[name] for name in _QUIX_NAMES})


def kafka_streams(cache: Path) -> Environment:
    """Kafka Streams with ONNX Runtime for Java, built by Maven. Raises AbsentError."""
    maven, java = shutil.which("mvn"), shutil.which("java")
    if maven is None or java is None:
        raise AbsentError(f"there is no {'mvn' if maven is None else 'java'} on the PATH")
    sources = sorted(path for path in _PROJECT.rglob("*") if path.is_file() and "target" not in path.parts)
    folder = cache / f"kafka-streams-{_digest(sources)}"
    if not (folder / _MADE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(_PROJECT, folder, ignore=shutil.ignore_patterns("target"))
        _run([maven, "-q", "-B", "-f", str(folder / "pom.xml"), "package"], "building the Kafka Streams side")
        (folder / _MADE).touch()
    classes = os.pathsep.join([str(folder / "target" / "scoring.jar"), str(folder / "target" / "lib" / "*")])
    pinned = _pinned(_PROJECT / "pom.xml")
    return Environment((java, *_JVM, "-cp", classes), {name: pinned[name] for name in _STREAMS_NAMES})


def _pinned(pom: Path) -> dict[str, str]:
    space = "{http://maven.apache.org/POM/4.0.0}"
    found = ET.parse(pom).getroot().iter(f"{space}dependency")
    return {str(one.findtext(f"{space}artifactId")): str(one.findtext(f"{space}version")) for one in found}


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: Sequence[str], doing: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{doing} failed: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()[:_REASON_LINES]
        raise AbsentError(f"{doing} failed: {' / '.join(lines) or done.returncode}")
