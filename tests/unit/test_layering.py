"""Who may import whom: the architecture, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("publisher", "consumer")

# Foreign package -> the only places that may import it.
ONE_PLACE = {
    "confluent_kafka": ("modelcast/kafka/", "modelcast/schema_registry.py"),
    "mlflow": ("publisher/references/mlflow.py",),
    "huggingface_hub": ("publisher/references/hub.py",),
    "joblib": ("publisher/pickles.py", "modelcast/demo/"),
    "fastavro": ("modelcast/avro.py",),
    "simdjson": ("consumer/decode/json_arrays.py",),
    "google": ("modelcast/protobuf.py",),
    "fsspec": ("modelcast/files/store.py",),
    "onnxruntime": ("modelcast/runtime/",),
    "securesystemslib": ("modelcast/trust/keys.py",),
    "cryptography": ("modelcast/trust/keys.py",),
    "lightgbm": ("publisher/convert/",),
    "onnxmltools": ("publisher/convert/",),
    "pytest": ("modelcast/testing/fixtures.py",),
    "skl2onnx": ("publisher/convert/", "modelcast/demo/"),
    "tomlkit": ("modelcast/trust/writing.py",),
    "torch": ("publisher/convert/",),
    "xgboost": ("publisher/convert/",),
}


def modules(folder: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not any((ROOT / "modelcast" / side) in path.parents for side in (*SIDES, "schemas")):
            yield path


def imports(path: Path, *, module_level: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("side", SIDES)
def test_the_sides_never_import_each_other(side: str) -> None:
    (other,) = set(SIDES) - {side}
    for path in modules(side):
        for module in imports(path):
            assert not module.startswith(f"modelcast.{other}"), f"{name(path)} imports {module}"


def test_what_both_share_imports_neither_side_at_module_level() -> None:
    for path in modules("modelcast"):
        for module in imports(path, module_level=True):
            assert not module.startswith(("modelcast.publisher", "modelcast.consumer")), f"{name(path)}: {module}"


def test_nobody_imports_a_side_by_its_folder_name() -> None:
    for folder in ("modelcast", "publisher", "consumer", "schemas", "tests", "benchmarks"):
        for path in modules(folder):
            for module in imports(path):
                assert module.split(".")[0] not in SIDES, f"{name(path)} imports {module}"


@pytest.mark.parametrize("package", ONE_PLACE)
def test_each_foreign_client_is_imported_in_one_place(package: str) -> None:
    for folder in ("modelcast", "publisher", "consumer", "schemas"):
        for path in modules(folder):
            if not name(path).startswith(ONE_PLACE[package]):
                assert not any(module.split(".")[0] == package for module in imports(path)), name(path)


@pytest.mark.parametrize("package", ["pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"])
def test_the_consumer_never_unpickles(package: str) -> None:
    for folder in ("consumer", "modelcast", "schemas"):
        for path in modules(folder):
            if not name(path).startswith(("modelcast/demo/",)):  # the demo trains models
                assert not any(module.split(".")[0] == package for module in imports(path)), name(path)


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    for folder in ("modelcast", "publisher", "consumer", "schemas", "benchmarks"):
        for path in modules(folder):
            assert len(path.read_text().splitlines()) <= 520, name(path)
