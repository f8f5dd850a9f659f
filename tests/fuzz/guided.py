"""The harness under a fuzzer that follows which code its inputs reach: `python -m tests.fuzz.guided CORPUS -runs=N`.

Options are libFuzzer's. An input is a `Tape`: its first byte says the shape. What is found is written to a file, which
`python -m tests.fuzz --tape FILE` plays again without the fuzzer.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["modelcast.consumer.decode", "modelcast.consumer.dead_letters"]):
    import modelcast.consumer.dead_letters
    import modelcast.consumer.decode.batch  # noqa: F401

from .harness import Player


def main() -> None:
    """Runs until libFuzzer's options say that it is enough, or something is found."""
    player = Player()
    atheris.Setup(sys.argv, player.play)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
