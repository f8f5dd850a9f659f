"""Bytes that readers once stumbled over, found by the fuzzers: refused by a declared error, or of no account."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from onnx import TensorProto, helper

from modelcast import codec
from modelcast.avro import Schema
from modelcast.consumer.dlq import Sent
from modelcast.consumer.quarantine import Quarantine
from modelcast.consumer.state import Marks
from modelcast.dev.state import STATE_FILE, DevState
from modelcast.errors import ConfigError, SourceError, StructureError, WireError
from modelcast.files.notes import Notes
from modelcast.fleet.fleet import Roster
from modelcast.fleet.table import versions
from modelcast.graph import inspect
from modelcast.group import Progress
from modelcast.json_data import read_json
from modelcast.log import LogRecord
from modelcast.records import InstanceStatus, ModelState, ModelStatus, Tolerance
from modelcast.trust.clock import FILE_NAME, SteadyClock
from modelcast.trust.keys import load
from modelcast.trust.policy import parse_policy

from .registry_records import manifest

DEEP = b'{"fraud": ' + b"[" * 100_000


def test_json_nested_without_end_is_a_value_error_like_any_other() -> None:
    with pytest.raises(ValueError, match="nested"):
        read_json(DEEP)


def test_f38_notes_nested_without_end_count_for_nothing(tmp_path: Path) -> None:
    """Three kilobytes of brackets in a folder that others write to must not end a process."""
    for name in ("note.json", STATE_FILE, FILE_NAME, f"crashes/{'1' * 64}.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(DEEP)
    assert not list(Notes(tmp_path).all())
    assert DevState.load(tmp_path) is None
    assert SteadyClock(tmp_path, system_ms=lambda: 7, monotonic_s=lambda: 0.0).now_ms() == 7
    assert [suspect.name for suspect in Quarantine(tmp_path).suspects()] == [""]
    assert Sent.read(Progress(3, DEEP.decode())) == Sent(3)


def test_f11_marks_nested_without_end_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks/0b7a4c1e.json").write_bytes(DEEP)
    with pytest.raises(ConfigError, match="nested"):
        Marks(tmp_path).get("0b7a4c1e", "fraud")


@pytest.mark.parametrize("size", ["1e999", "true", '"7"', "1.5"])
def test_a_cache_note_with_a_size_that_is_no_number_counts_for_nothing(tmp_path: Path, size: str) -> None:
    told = f'{{"repository": "r", "model": "m", "version": 1, "files": [["a", {size}, "sha256:{"0" * 64}"]]}}'
    (tmp_path / "note.json").write_text(told)
    assert not list(Notes(tmp_path).all())


@pytest.mark.parametrize("pid", [-1, 0, 1 << 31])
def test_a_dev_broker_without_a_process_of_its_own_is_not_known(tmp_path: Path, pid: int) -> None:
    """A signal to -1 goes to every process of the user."""
    state = {"port": 9092, "process": {"pid": pid, "started": "boot"}, "started_at": None, "ready": True}
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    assert DevState.load(tmp_path) is None


def fields(*entries: object) -> dict[str, object]:
    return {"type": "record", "name": "R", "fields": list(entries)}


@pytest.mark.parametrize(
    "definition",
    [
        fields({"name": 1, "type": "int"}),
        fields({"name": [], "type": "int"}),
        fields({"name": "\ud800", "type": "int"}),
        fields({"name": "a", "type": "int", "aliases": [7]}),
        fields({"name": "a", "type": "int", "aliases": "b"}),
        fields({"name": "a", "type": []}),
        fields({"name": "a", "type": {"type": "array", "items": []}}),
        {"type": "enum", "name": "E", "symbols": "AB"},
    ],
)
def test_f33_a_schema_with_names_that_are_no_text_or_a_union_of_nothing_is_none(definition: dict[str, object]) -> None:
    """Anybody who may write events may describe one: it must not end the scorers that read by it."""
    with pytest.raises(SourceError):
        Schema.parse(definition)


@pytest.mark.parametrize("bound", [math.nan, math.inf, -1.0])
def test_f23_a_tolerance_that_lets_everything_pass_is_out_of_bounds(bound: float) -> None:
    for tolerance in (Tolerance(relative=bound), Tolerance(absolute=bound)):
        envelope = codec.seal(replace(manifest(1), tolerance=tolerance))
        with pytest.raises(WireError, match="tolerance"):
            codec.unseal(envelope)


def graph() -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x_x_x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y_y_y", TensorProto.FLOAT, [1])
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="tensors/0.bin")
    body = helper.make_graph([helper.make_node("Relu_Relu", ["x_x_x"], ["y_y_y"])], "g", [x], [y], [weights])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", [b"x_x_x", b"y_y_y", b"Relu_Relu", b"tensors/0.bin", b"location"])
def test_f17_a_graph_with_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph().SerializeToString().replace(name, name[:-1] + b"\xff"))
    with pytest.raises(StructureError):
        inspect(path, ["model.onnx", "tensors/0.bin"])


@pytest.mark.parametrize(
    "text",
    [
        f"repository = {'9' * 5_000}",
        f'[[rules]]\nmodels = ["a"]\nkeys = ["b"]\nthreshold = 0x{"f" * 5_000}',
        f"[keys.a]\nexpires = [{2**63}]",
        f"{'.'.join('a' * 5_000)} = 1",
    ],
    ids=["decimal", "hexadecimal", "65 bits", "deep"],
)
def test_a_policy_with_a_number_beyond_64_bits_or_without_a_bottom_is_a_mistake(text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        parse_policy(text)


def test_a_private_key_of_an_unknown_kind_is_none(tmp_path: Path) -> None:
    body = "MC4CAQAwBQYDK0VwBCIEIGBPbRns29y+fI0nHP+Savl3aHb+rrTzOwpAZPEIWqJS"
    path = tmp_path / "alice.key"
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a private key") as refused:
        load(path, tmp_path)
    assert isinstance(refused.value.__cause__, (UnsupportedAlgorithm, ValueError))


def test_a_status_does_not_steer_the_terminal() -> None:
    model = ModelStatus("\x1b[2Jfraud", None, ModelState.LIVE, 3)
    status = InstanceStatus("r", "host.1", "host", 7, "scorer", "cpu", 0, {}, (model,))
    roster = Roster()
    roster.replay(LogRecord("s", 0, 0, 0, b"host.1", codec.encode_status(status)), 0)
    (line,) = versions(roster.fleet(1))
    assert "\x1b" not in line.plain
    assert "fraud" in line.plain
