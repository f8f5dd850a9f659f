"""An application that forks beside a live `ModelClient`: `python -m tests.broker.forking SERVERS PREFIX FOLDER`.

Each child prints what it found, and ends as the interpreter ends, with everything destroyed that can be.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path

from modelcast.consumer import ModelClient
from modelcast.consumer.model import Model
from modelcast.errors import UsageError

ROWS = {"amount": [1.0], "age": [10]}


def make(servers: str, prefix: str, folder: Path) -> ModelClient:
    return ModelClient(
        servers, prefix=prefix, cache_dir=folder / "cache", state_dir=folder / "state", device="cpu", models=["fraud"]
    )


def use(models: ModelClient, fraud: Model) -> str:
    """What a fork is told, by every way in; the ways out say nothing."""
    told = []
    for call in (lambda: models["fraud"], lambda: models.stale_s, lambda: fraud.predict(ROWS), models.close):
        try:
            call()
        except UsageError as error:
            told.append(error.message)
    return f"{len(told)} times: {told[0]}"


def main() -> None:
    servers, prefix, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    models = make(servers, prefix, folder)
    fraud = models["fraud"]
    warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of forks beside threads
    for kind in ("uses", "drops", "exits"):
        child = os.fork()
        if child == 0:
            if kind == "uses":
                print(kind, use(models, fraud), flush=True)
                with make(servers, prefix, folder) as own:
                    print(kind, "its own", own["fraud"].predict(ROWS)["score"].tolist(), flush=True)
            elif kind == "drops":
                del models, fraud
                gc.collect()
                print(kind, flush=True)
            sys.exit(3)
        _, status = os.waitpid(child, 0)
        print(kind, "ended with", os.waitstatus_to_exitcode(status), flush=True)
    print("parent", fraud.predict(ROWS)["score"].tolist(), flush=True)
    models.close()


if __name__ == "__main__":
    main()
