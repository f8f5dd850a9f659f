"""Kafka's jars: fetched once, checked against the committed list of digests at every start.

- The list `kafka-<version>.sha256` fixes every file: nothing is resolved at run time, so nothing can drift. It was
  made by resolving `org.apache.kafka:kafka_2.13` and `org.apache.logging.log4j:log4j-slf4j-impl` *apart*: together,
  log4j's dependency management replaces `kafka-clients` by an older one, and nothing starts.
- Its lines are those of `sha256sum`, its paths those of a Maven repository; the cache folder is laid out so.
- Jars come through `jgo`, from where that is configured to fetch (its `[repositories]`, else its default). What the
  mirror says is never trusted: only the digest counts.
- A file is in its place only after its digest matched. Hashing 45 MB takes 50 ms, so that is done at every start, and
  a damaged cache is mended rather than run.
- A file lock makes one process fetch while others wait.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from modelcast.errors import BrokerError, MissingExtraError

from .folders import kafka_cache_dir

if TYPE_CHECKING:
    from jgo.maven import MavenContext

KAFKA_VERSION = "4.3.1"
PARALLEL_DOWNLOADS = 6  # as many as a browser opens to one server; more only adds to the server's load
DOWNLOAD_TRIES = 3  # 46 files: one reset connection should not lose the whole set
HTTP_TIMEOUT_S = 20  # of silence, not of a whole file

Progress = Callable[[int, int], None]
"""Called with how many jars are there and how many there will be; from one thread."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the list.

    Attributes:
        path: Where it lies in a Maven repository: `group/…/artifact/version/artifact-version.jar`.
        sha256: Its digest, in hex.
    """

    path: PurePosixPath
    sha256: str

    @property
    def coordinate(self) -> tuple[str, str, str]:
        """Group, artifact and version."""
        *group, artifact, version, _ = self.path.parts
        return ".".join(group), artifact, version


def listed_jars() -> tuple[Jar, ...]:
    """Returns the jars of the committed list."""
    text = resources.files("modelcast.dev").joinpath(f"kafka-{KAFKA_VERSION}.sha256").read_text("ascii")
    return tuple(Jar(PurePosixPath(path), digest) for digest, path in (line.split() for line in text.splitlines()))


def kafka_jars(*, cache_dir: Path | None = None, on_progress: Progress | None = None) -> tuple[Path, ...]:
    """Returns the paths of Kafka's jars, checked; fetches those that are missing or damaged.

    Args:
        cache_dir: Where they are kept; by default in the user's cache folder.
        on_progress: Told about a download; not called when nothing has to be fetched.

    Raises:
        BrokerError: A jar is not in the cache and can't be fetched, or what came is not what the list says.
        MissingExtraError: A jar is not in the cache and `jgo` is not installed.
    """
    folder = kafka_cache_dir() if cache_dir is None else cache_dir
    jars = listed_jars()
    if _missing(jars, folder):
        from filelock import FileLock  # 40 ms, paid only by the first start

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BrokerError(
                f"The cache folder {folder} for Kafka can't be made: {error.strerror}",
                hint="Set MODELCAST_CACHE_DIR to a folder that can be written",
            ) from error
        with FileLock(folder / ".lock"):
            missing = _missing(jars, folder)  # another process may have fetched them while this one waited
            if missing:
                _fetch_all(missing, folder, total=len(jars), on_progress=on_progress)
    return tuple(folder / jar.path for jar in jars)


def _missing(jars: Sequence[Jar], folder: Path) -> list[Jar]:
    return [jar for jar in jars if _sha256(folder / jar.path) != jar.sha256]


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _fetch_all(missing: Sequence[Jar], folder: Path, *, total: int, on_progress: Progress | None) -> None:
    done = total - len(missing)
    with (
        tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as staging,
        ThreadPoolExecutor(PARALLEL_DOWNLOADS, thread_name_prefix="modelcast-jars") as pool,
    ):
        context = _maven(Path(staging))
        fetches = [pool.submit(_fetch, context, jar, folder) for jar in missing]
        try:
            for fetch in as_completed(fetches):
                fetch.result()
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)


def _maven(staging: Path) -> MavenContext:
    try:
        from jgo.config import GlobalSettings
        from jgo.maven import MavenContext
    except ImportError as error:
        raise MissingExtraError(
            f"Kafka {KAFKA_VERSION} is not in the cache, and `jgo`, which fetches it, is not installed",
            hint="Install it with: pip install 'modelcast[broker]'",
        ) from error
    mirrors = GlobalSettings.load().repositories or None
    return MavenContext(repo_cache=staging, local_repos=[], remote_repos=mirrors, timeout=HTTP_TIMEOUT_S)


def _fetch(context: MavenContext, jar: Jar, folder: Path) -> None:
    group, artifact, version = jar.coordinate
    for attempt in range(1, DOWNLOAD_TRIES + 1):
        try:
            fetched = context.project(group, artifact).at_version(version).artifact().resolve()
            break
        except (OSError, RuntimeError) as error:  # what requests and jgo raise
            (context.repo_cache / jar.path).unlink(missing_ok=True)
            if attempt == DOWNLOAD_TRIES:
                raise BrokerError(
                    f"Kafka {KAFKA_VERSION} is not whole in the cache ({folder}), "
                    f"and {jar.path.name} can't be fetched: {error}",
                    hint="The first start needs a network; later ones do not",
                ) from error
    digest = _sha256(fetched)
    if digest != jar.sha256:
        raise BrokerError(
            f"{jar.path.name}, as fetched, has sha256 {digest}, not {jar.sha256}: it will not be run",
            hint="Check the mirror or proxy that jar came from",
        )
    target = folder / jar.path
    target.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(target)
