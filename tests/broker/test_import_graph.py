"""What a scorer's process loads, asked of a real one: nothing of ours unpickles, nor is there anything that does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.faults.scorer_processes import Stage
from tests.unit.test_layering import imports

# What reads pickles for people: joblib and the frameworks that models are trained with among them. Python's own
# `pickle` is loaded by its libraries (multiprocessing, numpy), which give it nothing unless they are asked to.
UNPICKLERS = frozenset(
    {"cloudpickle", "dill", "joblib", "shelve", "sklearn", "skl2onnx", "torch", "xgboost", "lightgbm"}
)
PICKLES = frozenset({*UNPICKLERS, "pickle", "marshal"})


@pytest.fixture(scope="module")
def loaded(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The modules that `modelcast score` and the child it tries models in had imported at their end."""
    stage = Stage(broker.bootstrap_servers, "imports", tmp_path_factory.mktemp("imports"))
    stage.publish(0.5)
    stage.send(100)
    done = subprocess.run(
        [
            sys.executable, "-m", "modelcast", "score", "fraud", "--events", stage.events,
            "--predictions", stage.predictions, "--until-end",
        ],
        env={**stage.environment(), "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return frozenset(lines)


def test_nothing_that_unpickles_is_loaded_beside_a_scorer(loaded: frozenset[str]) -> None:
    assert {"modelcast.consumer.scorer", "modelcast.consumer.loader", "onnxruntime"} <= loaded, "it did its work"
    assert not {name.partition(".")[0] for name in loaded} & UNPICKLERS
    assert not [name for name in loaded if name.startswith("modelcast.publisher")]


def test_no_module_of_ours_that_a_scorer_loads_unpickles(loaded: frozenset[str]) -> None:
    ours = sorted(name for name in loaded if name.partition(".")[0] == "modelcast")
    assert len(ours) > 100
    for name in ours:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None, name
        source = Path(found.origin)
        assert not {module.partition(".")[0] for module in imports(source)} & PICKLES, name
        # numpy's archives may hold pickles; it is told that ours don't.
        text = source.read_text()
        assert "allow_pickle=True" not in text, name
        assert "np.load(" not in text, name
