"""A process that fetches: `… SERVERS PREFIX MODEL CACHE [DIE_AFTER_BYTES]`, to run beside others of one host.

It says `ready` and waits for a line. Then it fetches the champion, killing itself once that many bytes came and a file
is whole, and prints as JSON how many bytes of chunks it read and whether the files are what the manifest declares.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from modelcast import digest
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.log import Log, LogReader, LogRecord
from modelcast.names import ModelRef
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics

CATCH_UP_S = 60.0


class CountingLog:
    """A log that counts the bytes read of one topic, and how often it was asked for it."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log, self._topic = log, topic
        self.bytes = 0
        self.readers = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def reader(self, topic: str, *args: object, **kwargs: object) -> LogReader:
        reader = self._log.reader(topic, *args, **kwargs)
        if topic == self._topic:
            self.readers += 1
            poll = reader.poll

            def counted(timeout_s: float) -> Sequence[LogRecord]:
                records = poll(timeout_s)
                self.bytes += sum(len(record.value or b"") for record in records)
                return records

            reader.poll = counted
        return reader


def main(servers: str, prefix: str, model: str, folder: str, die_after: str = "") -> None:
    topics = Topics(prefix)
    with KafkaLog({"bootstrap.servers": servers}) as kafka, closing(Cache(Path(folder))) as cache:
        log = CountingLog(kafka, topics.blobs)
        with closing(RegistryReader(log, topics)) as reader:
            record = reader.catch_up(CATCH_UP_S).resolve(ModelRef(model))

        def on_progress(done: int, total: int) -> None:
            if die_after and done > int(die_after) and any(cache.has(entry) for entry in record.manifest.files):
                os.kill(os.getpid(), signal.SIGKILL)

        print("ready", flush=True)
        sys.stdin.readline()
        view = Fetcher(log, topics, cache).fetch(record, on_progress)
        right = all(digest.of_file(view / entry.path) == entry.digest for entry in record.manifest.files)
        print(json.dumps({"bytes": log.bytes, "right": right}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
