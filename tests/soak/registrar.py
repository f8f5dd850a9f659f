"""The process that changes the registry all the time: `… SEED FOLDER`; releases, rolls back and publishes for ever.

One line of JSON on standard output for whatever it did. An error that a busy registry and a broken cluster do not
explain ends it with a traceback.
"""

from __future__ import annotations

import json
import random
import sys
import time
from contextlib import closing
from pathlib import Path

from modelcast.config import Connection
from modelcast.errors import BrokerError, FencedError, ModelcastError, NotFoundError, UsageError
from modelcast.log import Log
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.image import VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics

from .models import soak_model
from .stage import MODEL

RELEASE_EVERY_S = 1.0
CATCH_UP_S = 60.0
# The newest versions only: as on a real registry, and old ones can be deleted.
RECENT = 12
# So that there is something to swap, and to delete.
VERSIONS_LEAST = 3
PUBLISHED, ROLLED_BACK = 0.06, 0.2  # shares of all changes; the others are releases


def change(
    chance: random.Random, log: Log, topics: Topics, writer: RegistryWriter, folder: Path, *, first: bool
) -> dict[str, object]:
    """One change; what was done. Raises ModelcastError."""
    drawn = chance.random()
    standing = [] if first else _standing(log, topics)
    if drawn < PUBLISHED or len(standing) < VERSIONS_LEAST:
        seed, heavy = chance.randrange(1 << 32), chance.random() < 0.3
        prepared = soak_model(folder / "made" / str(seed), seed, heavy=heavy)
        made = writer.publish(MODEL, prepared, release=first or chance.random() < 0.5)
        return {"did": "published", "version": made.manifest.version, "sent": made.bytes_sent}
    if drawn < ROLLED_BACK:
        return {"did": "rolled back", "version": writer.rollback(MODEL).version}
    version = chance.choice(standing[-RECENT:])
    return {"did": "released", "version": version, "sequence": writer.release(MODEL, version).sequence}


def _standing(log: Log, topics: Topics) -> list[int]:
    with closing(RegistryReader(log, topics)) as reader:
        versions = reader.catch_up(CATCH_UP_S).model(MODEL).versions
    return sorted(number for number, record in versions.items() if isinstance(record, VersionRecord))


def main(seed: str, folder: str, first: str) -> None:
    chance = random.Random(int(seed))
    connection = Connection.resolve()
    is_first = first == "first"
    with closing(connection.open_log()) as log:
        writer = RegistryWriter(log, connection.topics)
        while True:
            try:
                done = change(chance, log, connection.topics, writer, Path(folder), first=is_first)
                is_first = False
            # A version deleted meanwhile, nothing to go back to, an id that others took.
            except (BrokerError, FencedError, NotFoundError, UsageError) as error:
                done = {"did": "failed", "error": type(error).__name__, "message": str(error)}
            except ModelcastError as error:
                done = {"did": "refused", "error": type(error).__name__, "message": str(error)}
            print(json.dumps({"clock": time.strftime("%H:%M:%S"), **done}), flush=True)
            time.sleep(RELEASE_EVERY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
