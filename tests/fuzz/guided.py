"""The readers, or batches of events, under a fuzzer that follows which code its inputs reach.

    python -m tests.fuzz.guided events|readers FOLDER… -runs=N

Options are libFuzzer's. An input of `events` is a `Tape`: its first byte says the shape. One of `readers` is the number
of a reader, a byte, and what it is to read. What is found is written to a file; `python -m tests.fuzz --tape FILE` and
`--input FILE` play it again without the fuzzer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris

# What the readers of text and archives rest on is followed too: its branches are theirs.
with atheris.instrument_imports(include=["modelcast", "tomllib", "zipfile"]):
    import modelcast.consumer.decode.batch  # noqa: F401

    from .catalogue import readers
    from .harness import Player
    from .reader import Judge


def main() -> None:
    """Runs until libFuzzer's options say that it is enough, or something is found."""
    what = sys.argv.pop(1)
    play: Callable[[bytes], object] = Player().play if what == "events" else _play_reader()
    atheris.Setup(sys.argv, play)
    atheris.Fuzz()


def _play_reader() -> Callable[[bytes], object]:
    judges = [Judge(reader) for reader in readers()]

    def play(data: bytes) -> None:
        if data:
            judges[data[0] % len(judges)].judge(data[1:])

    return play


if __name__ == "__main__":
    main()
