"""A publisher that kills itself, or waits, at a wanted place: `… SERVERS PREFIX MODEL PREPARED.pickle [WHERE]`.

WHERE is one of:
- `chunk:K`: dies with K chunks acknowledged and none in flight.
- `flushed`: dies with both records of the transaction acknowledged, EndTxn not sent.
- `abandoned`: as `flushed`, in a transaction that the broker may end after a second.
- `commit:US`: dies that many microseconds after the commit began.
- `committed`: dies when EndTxn is answered.
- `wait-half`, `wait-flushed`: says so and waits for a line, with half of the chunks queued or as `flushed`.

It says `ready` and waits for a line before it publishes. SIGKILL leaves it no time to tell anybody. The last line it
prints is what was published, as JSON; else it exits as `modelcast publish` does.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
from pathlib import Path

from modelcast.errors import ModelcastError
from modelcast.kafka import KafkaLog, transaction
from modelcast.kafka.writer import KafkaTransactionalWriter
from modelcast.log import Log
from modelcast.publisher import upload
from modelcast.publisher.session import RegistryWriter
from modelcast.topics import Topics

FLUSH_S = 60.0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(word: str) -> None:
    print(word, flush=True)
    sys.stdin.readline()


class DyingSender(upload._Sender):
    """Dies with exactly `wanted` chunks on the topic."""

    wanted = 0
    sent = 0

    def __init__(self, log: Log, topic: str) -> None:
        super().__init__(log, topic)
        self._die_at_wanted()

    def send(self, digest: str, partition: int, key: bytes, chunk: bytes) -> None:
        super().send(digest, partition, key, chunk)
        self.flush()
        type(self).sent += 1
        self._die_at_wanted()

    def _die_at_wanted(self) -> None:
        if self.sent == self.wanted:
            die()


class DyingWriter(KafkaTransactionalWriter):
    """Dies in the commit."""

    where = ""

    def commit(self) -> None:
        if self.where in ("flushed", "abandoned"):
            self.flush(FLUSH_S)
            die()
        if self.where == "wait-flushed":
            self.flush(FLUSH_S)
            wait("flushed")
            type(self).where = ""  # another attempt goes through
        if self.where.startswith("commit:"):
            threading.Timer(int(self.where.partition(":")[2]) / 1e6, die).start()
        super().commit()
        if self.where == "committed":
            die()


# On a machine that does much else; the publisher's own patience is for a cluster, where another broker takes over.
BROKER_BACK_S = 150.0


class DyingLog(KafkaLog):
    def transactional_writer(self, transactional_id: str, *, timeout_ms: int) -> KafkaTransactionalWriter:
        if DyingWriter.where == "abandoned":
            timeout_ms = 1_000
        writer = super().transactional_writer(transactional_id, timeout_ms=timeout_ms)
        writer.__class__ = DyingWriter
        return writer


class Half:
    """Waits once, with half of the bytes queued."""

    waited = False

    def __call__(self, _: str, done: int, total: int) -> None:
        if not self.waited and done >= total / 2:
            self.waited = True
            wait("half")


def main(servers: str, prefix: str, model: str, prepared: str, where: str = "") -> int:
    if where.startswith("chunk:"):
        DyingSender.wanted = int(where.partition(":")[2])
        upload._Sender = DyingSender  # type: ignore[misc]
    DyingWriter.where = where
    if where == "wait-flushed":
        transaction.COMMIT_TIMEOUT_S = BROKER_BACK_S  # type: ignore[misc]
    content = pickle.loads(Path(prepared).read_bytes())
    progress = Half() if where == "wait-half" else None
    wait("ready")
    with DyingLog({"bootstrap.servers": servers}) as log:
        registry = RegistryWriter(log, Topics(prefix))
        try:
            published = registry.publish(model, content, release=True, progress=progress)
        except ModelcastError as error:
            print(error, file=sys.stderr)
            return int(error.exit_code)
    version, digest = published.manifest.version, published.manifest.digest
    print(json.dumps({"version": version, "digest": digest, "bytes_sent": published.bytes_sent}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
