"""docs/PROTOCOL.md is enough: a client that has nothing else works with the package, both ways, on a real broker."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from onnx import external_data_helper

from modelcast.consumer import ModelClient
from modelcast.testing.broker import unique_name
from tests.brokers import Broker
from tests.protocol_client.avro import ProtocolError, frame, unframe
from tests.protocol_client.files import content_digest, digest_of, read_examples, run, run_golden, write_examples
from tests.protocol_client.image import (
    ENVELOPE,
    MANIFEST,
    REPOSITORY,
    TYPES,
    WITHDRAWN,
    Entry,
    Image,
    key_id,
    load,
    signers,
)
from tests.protocol_client.topics import Topics
from tests.protocol_client.writer import CHUNK_BYTES, Writer
from tests.publishing import Shell, wide_model, write_model, write_rows
from tests.unit.control_rig import wait_until

ROOT = Path(__file__).parents[2]
WIRE = sorted((ROOT / "tests/unit/wire").glob("*.bin"))
INPUTS = {"x": np.array([[1, 2], [3, 4], [5, 6]], np.float32)}
COLUMNS = {"amount": [1.0, 3.0, 5.0], "age": [2.0, 4.0, 6.0]}
# 2.4 MB, so three chunks; inline too: tensors need not be external data.
WIDE = 300_000
SIGNATURE: dict[str, Any] = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 2], "fields": ["amount", "age"]}],
    "outputs": [{"name": "score", "dtype": "float32", "shape": [None], "field": "score"}],
    "ir_version": 10,
    "opsets": {"": 21},
    "tolerance": {"relative": 1e-5, "absolute": 1e-6},
}


@pytest.fixture(scope="module")
def shell(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A repository of this file's, made by the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELCAST_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setenv("MODELCAST_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        made = Shell(broker.bootstrap_servers, unique_name("protocol"))
        made.says("init")
        yield made


@pytest.fixture
def topics(shell: Shell) -> Iterator[Topics]:
    with closing(Topics(shell.servers, shell.prefix)) as opened:
        yield opened


@pytest.fixture
def model() -> str:
    return unique_name("model")


@pytest.fixture
def writer(shell: Shell, model: str) -> Writer:
    return Writer(shell.servers, shell.prefix, model)


def made_files(width: int = 4, bias: float = 0.0) -> dict[str, bytes]:
    files = {"model.onnx": wide_model(width, bias=bias).SerializeToString()}
    return with_examples(files)


def with_examples(files: Mapping[str, bytes]) -> dict[str, bytes]:
    arrays = {"inputs/x": INPUTS["x"], "outputs/score": run(files, INPUTS)["score"]}
    return {**files, "examples.npz": write_examples(arrays)}


def client_of(shell: Shell, folder: Path, **options: Any) -> ModelClient:
    return ModelClient(
        shell.servers, prefix=shell.prefix, cache_dir=folder / "cache", state_dir=folder / "state", **options
    )


def pulled(shell: Shell, name: str, folder: Path) -> dict[str, bytes]:
    shell.says("pull", name, "-o", str(folder))
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    del found["manifest.json"]
    return found


def send(shell: Shell, topic: str, key: bytes, value: bytes | None, partition: int) -> None:
    """As anybody may who can write to the topic."""
    with Producer({"bootstrap.servers": shell.servers}) as producer:
        producer.produce(f"{shell.prefix}.{topic}", value, key, partition)
        assert producer.flush(60) == 0


def hinted(shell: Shell, entry: Entry, hints: list[dict[str, Any]]) -> None:
    """The version's record again, with other hints; they are not signed, nor part of what counts once."""
    key = f"version/{entry.value['model']}/{entry.value['version']}".encode()
    send(shell, "registry", key, frame(ENVELOPE[0], {**entry.envelope, "hints": hints}), 0)


@dataclass(frozen=True)
class Repeated:
    """A version with a file of three chunks, pulled again and again."""

    shell: Shell
    model: str
    files: Mapping[str, bytes]
    hints: Mapping[str, Mapping[str, Any]]  # as they were when written

    @property
    def digest(self) -> str:
        return digest_of(self.files["model.onnx"])

    def pulled_anew(self, folder: Path) -> dict[str, bytes]:
        """Pulled with an empty cache."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MODELCAST_CACHE_DIR", str(folder / "cache"))
            return pulled(self.shell, self.model, folder / "files")


@pytest.fixture(scope="module")
def repeated(shell: Shell) -> Repeated:
    model, files = unique_name("repeated"), made_files(WIDE)
    assert Writer(shell.servers, shell.prefix, model).publish(files, SIGNATURE, release=True) == 1
    with closing(Topics(shell.servers, shell.prefix)) as topics:
        hints = topics.catch_up().versions[model, 1].envelope["hints"]
    return Repeated(shell, model, files, {hint["digest"]: hint for hint in hints})


@pytest.mark.parametrize("path", WIRE, ids=lambda path: path.name)
def test_every_golden_record_is_read_and_written_alike(path: Path) -> None:
    data = path.read_bytes()
    schema, value = unframe(data, load("instance_status") if path.name.startswith("instance_status") else ENVELOPE)
    assert frame(schema, value) == data
    if "payload" in value:
        schema, payload = unframe(value["payload"], TYPES[value["payload_type"]])
        assert frame(schema, payload) == value["payload"]
        assert not payload.keys() - TYPES[value["payload_type"]][0].completed(payload).keys()


def test_the_fingerprints_written_down_are_those_of_the_schemas() -> None:
    rows = [line.strip("|").split("|") for line in (ROOT / "docs/PROTOCOL.md").read_text().splitlines()]
    written = {row[0].strip(): re.findall(r"`([0-9a-f]{16})`", "|".join(row[1:])) for row in rows}
    for path in (ROOT / "schemas").glob("*.avsc"):
        assert written[path.stem] == [schema.fingerprint.hex() for schema in load(path.stem)]


def test_a_version_of_the_package_is_followed_fetched_verified_and_run(
    shell: Shell, topics: Topics, model: str, tmp_path: Path
) -> None:
    made = [sys.executable, "-m", "modelcast", "keys", "new", str(tmp_path / "release.key")]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    line = (tmp_path / "release.pub").read_text()
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(line.split()[0].removeprefix("ed25519:")))
    rows = write_rows(tmp_path / "rows.csv")
    publish = ("publish", model, write_model(tmp_path / "m.onnx", WIDE), "--examples", rows, "--release")
    shell.says(*publish, "--sign", str(tmp_path / "release.key"))

    image = topics.catch_up()
    champion = image.champion(model)
    version = image.versions[model, champion.value["version"]]
    for entry in (champion, version):
        assert signers(entry.envelope, [public]) == {key_id(public)}
        assert signers({**entry.envelope, "payload": entry.envelope["payload"] + b" "}, [public]) == set()

    files = topics.fetch(version)
    assert files == pulled(shell, model, tmp_path / "pulled")
    assert content_digest(version.value["files"]) == shell.json("show", model)["digest"]
    golden = read_examples(files["examples.npz"])
    np.testing.assert_array_equal(golden["inputs/x"], INPUTS["x"])
    np.testing.assert_array_equal(run_golden(files, version.value)["score"], golden["outputs/score"])
    for hint in version.envelope["hints"]:
        found = topics.records(topics.blobs, hint["partition"], hint["first_offset"], hint["last_offset"] + 1)
        assert {(record.key() or b"").decode().split("/")[1] for record in found} == {hint["digest"]}

    nobody = Image(trusted=(Ed25519PrivateKey.generate().public_key(),))
    for record in topics.records(topics.registry, 0, 0, 2**63 - 1):
        nobody.apply(record.key() or b"", record.value())
    assert nobody.repository == image.repository
    assert not nobody.versions
    assert not nobody.releases

    shell.says(*publish[:2], write_model(tmp_path / "m.onnx", WIDE, bias=1.0), *publish[3:])
    second = topics.catch_up().champion(model, acted_on=champion.value["sequence"])
    assert second.value["version"] == 2  # followed, by the same reader
    with pytest.raises(ProtocolError, match="replayed"):
        image.champion(model, acted_on=second.value["sequence"] + 1)


def test_a_version_of_the_writer_is_listed_pulled_and_goes_live(
    shell: Shell, writer: Writer, model: str, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    policy = tmp_path / "trust.toml"  # docs/TRUST.md
    public = key.public_key().public_bytes_raw().hex()
    policy.write_text(f'[keys.other]\npublic = "ed25519:{public}"\n[[rules]]\nmodels = ["*"]\nkeys = ["other"]\n')
    big = wide_model(WIDE)
    external_data_helper.convert_model_to_external_data(big, location="weights/all.bin", size_threshold=1_000)
    (tmp_path / "weights").mkdir()
    onnx.save(big, tmp_path / "model.onnx")
    files = {name: (tmp_path / name).read_bytes() for name in ("model.onnx", "weights/all.bin")}
    files = with_examples({**files, "notes/empty": b""})

    assert replace(writer, key=key).publish(files, SIGNATURE, release=True) == 1

    listed = {entry["model"]: entry for entry in shell.json("models")["models"]}[model]
    assert (listed["versions"], listed["latest"], listed["live"]) == (1, 1, 1)
    (version,) = shell.json("history", model)["versions"]
    assert version["created_by"] == "another client"
    assert {entry["path"]: entry["bytes"] for entry in version["files"]} == {k: len(v) for k, v in files.items()}
    assert pulled(shell, model, tmp_path / "pulled") == files
    with client_of(shell, tmp_path, trust_policy=policy) as client:
        np.testing.assert_array_equal(client[model].predict(COLUMNS)["score"], run(files, INPUTS)["score"])


def test_a_graph_with_tensors_outside_the_version_is_not_run() -> None:
    graph = wide_model(WIDE)
    external_data_helper.set_external_data(graph.graph.initializer[0], location="../secrets")
    with pytest.raises(ProtocolError, match="secrets"):
        run({"model.onnx": graph.SerializeToString()}, INPUTS)


def test_rollbacks_of_either_side_are_followed_by_the_other(
    shell: Shell, topics: Topics, writer: Writer, model: str, tmp_path: Path
) -> None:
    for bias in (1.0, 2.0, 3.0):
        writer.publish(made_files(bias=bias), SIGNATURE, release=True)
    with client_of(shell, tmp_path) as client:
        live = client[model].wait_live()

        def released() -> tuple[int, int, int | None]:
            champion = topics.catch_up().champion(model).value
            wait_until(lambda: live.version == champion["version"], f"{model}@{champion['version']}")
            return champion["sequence"], champion["version"], champion["restores"]

        writer.rollback()
        assert released() == (4, 2, 2)
        shell.says("release", model, "3")
        assert released() == (5, 3, None)
        writer.rollback()  # to 4, which repeated 2
        assert released() == (6, 2, 2)
        shell.says("rollback", model)
        assert released() == (7, 1, 1)
        writer.release(3)
        writer.release(9)  # of what does not exist: nothing goes live, and nobody goes back to it
        writer.release(1)
        shell.says("rollback", model)
        assert released() == (11, 3, 8)
        with pytest.raises(ProtocolError, match="was released"):
            replace(writer, model=unique_name("model")).rollback()


def test_a_writer_that_was_fenced_begins_again_with_the_next_number(
    shell: Shell, topics: Topics, writer: Writer, model: str, tmp_path: Path
) -> None:
    rows, attempts = write_rows(tmp_path / "rows.csv"), []

    def fenced_at_first(attempt: int) -> None:
        attempts.append(attempt)
        if attempt == 0:
            shell.says("publish", model, write_model(tmp_path / "m.onnx"), "--examples", rows, "--release")

    assert replace(writer, on_attempt=fenced_at_first).publish(made_files(bias=1.0), SIGNATURE) == 2
    assert attempts == [0, 1]
    assert {place[1] for place in topics.catch_up().versions if place[0] == model} == {1, 2}


def test_a_reader_does_not_end_before_what_lies_behind_an_open_transaction(
    shell: Shell, topics: Topics, writer: Writer, model: str
) -> None:
    writer.publish(made_files(), SIGNATURE, release=True)
    topics.catch_up()
    identity = f"{shell.prefix}.publisher.{unique_name('other')}"
    with Producer({"bootstrap.servers": shell.servers, "transactional.id": identity}) as other:
        other.init_transactions(60)

        def opened(attempt: int) -> None:
            other.begin_transaction()
            other.produce(topics.registry, b"never committed", "version/other/1", 0)
            assert other.flush(60) == 0

        replace(writer, on_attempt=opened).release(1)
        with pytest.raises(TimeoutError, match="a transaction is open"):
            topics.catch_up(timeout_s=0.5)
        assert topics.image.champion(model).value["sequence"] == 1  # why that may not be acted on
        other.abort_transaction(60)
    image = topics.catch_up()
    assert image.champion(model).value["sequence"] == 2
    assert "version/other/1" not in image.refused
    assert topics.catch_up() is image  # nothing new, and a marker at the end


def test_a_withdrawn_version_is_gone_for_good(shell: Shell, topics: Topics, writer: Writer, model: str) -> None:
    for bias in (1.0, 2.0, 3.0):
        writer.publish(made_files(bias=bias), SIGNATURE, release=bias < 3)
    manifest = topics.catch_up().versions[model, 3].envelope
    shell.says("delete", f"{model}@3")
    shell.says("delete", f"{model}@1", "--force")
    send(shell, "registry", f"version/{model}/3".encode(), frame(ENVELOPE[0], manifest), 0)  # it does not come back

    image = topics.catch_up()
    assert [image.withdrawn(model, number) for number in (1, 2, 3)] == [True, False, True]
    assert image.rollback_target(model) is None
    with pytest.raises(ProtocolError, match="withdrawn"):
        topics.fetch(image.versions[model, 3])
    with pytest.raises(ProtocolError, match="nothing to go back to"):
        writer.rollback()
    assert writer.publish(made_files(bias=3.0), SIGNATURE, release=True) == 4
    assert topics.fetch(topics.catch_up().versions[model, 4]) == made_files(bias=3.0)


@pytest.mark.parametrize("lie", ["none", "beyond", "elsewhere", "nowhere", "backwards", "everything", "half"])
def test_hints_that_lie_cost_a_scan(shell: Shell, topics: Topics, repeated: Repeated, tmp_path: Path, lie: str) -> None:
    version = topics.catch_up().versions[repeated.model, 1]
    true = repeated.hints[repeated.digest]
    elsewhere = (true["partition"] + 1) % topics.partitions
    places = {
        "none": [],
        "beyond": [(true["partition"], 10**9, 10**10)],
        "elsewhere": [(elsewhere, 0, 3)],
        "nowhere": [(10**6, 0, 3)],
        "backwards": [(true["partition"], true["last_offset"], true["first_offset"] - 1)],
        "everything": [(true["partition"], -1, 2**63 - 1)],
        "half": [(true["partition"], true["first_offset"], true["first_offset"])],
    }[lie]
    names = ("partition", "first_offset", "last_offset")
    hinted(shell, version, [{"digest": repeated.digest, **dict(zip(names, place, strict=True))} for place in places])
    version = topics.catch_up().versions[repeated.model, 1]
    assert len(version.envelope["hints"]) == len(places)
    assert topics.fetch(version) == repeated.files
    assert repeated.pulled_anew(tmp_path) == repeated.files


def test_chunks_written_again_covered_or_tombstoned_leave_the_version_whole(
    shell: Shell, topics: Topics, repeated: Repeated, tmp_path: Path
) -> None:
    stem = f"{repeated.model}/{repeated.digest}"
    partition = zlib.crc32(stem.encode()) % topics.partitions
    good = repeated.files["model.onnx"][:CHUNK_BYTES]

    def covered(index: object, value: bytes | None) -> None:
        send(shell, "blobs", f"{stem}/{CHUNK_BYTES}/{index}".encode(), value, partition)

    version = topics.catch_up().versions[repeated.model, 1]
    hinted(shell, version, [])
    version = topics.catch_up().versions[repeated.model, 1]
    covered(0, good)
    covered(0, None)
    covered(1, b"of another length")
    covered(9, b"beyond the file")
    covered("00", b"no index")
    assert topics.fetch(version) == repeated.files
    assert repeated.pulled_anew(tmp_path / "covered") == repeated.files

    covered(0, bytes(CHUNK_BYTES))  # of its length, and wrong
    with pytest.raises(ProtocolError, match=r"model\.onnx is not whole"):
        topics.fetch(version)
    covered(0, good)
    assert topics.fetch(version) == repeated.files
    assert repeated.pulled_anew(tmp_path / "mended") == repeated.files


def test_what_does_not_count_changes_nothing(shell: Shell, topics: Topics, writer: Writer, model: str) -> None:
    writer.publish(made_files(), SIGNATURE, release=True)
    before = topics.catch_up().versions[model, 1]
    key = f"version/{model}/1".encode()
    kind = next(name for name, schemas in TYPES.items() if schemas is WITHDRAWN)
    stranger = {**before.value, "repository": "00000000-0000-4000-8000-000000000000"}
    forged = frame(WITHDRAWN[0], {name: stranger[name] for name in WITHDRAWN[0].completed(stranger)})
    for value in (
        None,
        b"",
        b"not Avro",
        frame(ENVELOPE[0], dict(before.envelope)) + b"!",
        frame(ENVELOPE[0], {**before.envelope, "payload_type": kind}),
        frame(ENVELOPE[0], {**before.envelope, "payload_type": kind, "payload": forged}),
        frame(ENVELOPE[0], {**before.envelope, "payload": before.envelope["payload"][:10]}),
        frame(ENVELOPE[0], {**before.envelope, "payload": before.envelope["payload"][:-1] + b"\2\0"}),
    ):
        send(shell, "registry", key, value, 0)
    send(shell, "registry", f"version/{model}/2".encode(), frame(ENVELOPE[0], dict(before.envelope)), 0)
    send(shell, "registry", f"version/{model}/03".encode(), frame(ENVELOPE[0], dict(before.envelope)), 0)
    assert topics.catch_up().versions[model, 1] == before
    assert [place for place in topics.image.versions if place[0] == model] == [(model, 1)]
    listed = {entry["model"]: entry for entry in shell.json("models")["models"]}[model]
    assert (listed["versions"], listed["latest"], listed["live"]) == (1, 1, 1)
    assert writer.publish(made_files(bias=1.0), SIGNATURE) == 2


FILE = {"path": "file", "size": 1, "digest": "sha256:" + "0" * 64}
MANIFESTS: dict[str, tuple[bool, dict[str, Any]]] = {  # what they declare -> whether they count
    "nothing unusual": (True, {}),
    "two files": (True, {"files": [FILE, {**FILE, "path": "other"}]}),
    "no file": (False, {"files": []}),
    "files out of order": (False, {"files": [{**FILE, "path": "other"}, FILE]}),
    "a path twice": (False, {"files": [FILE, FILE]}),
    "another digest": (False, {"files": [{**FILE, "digest": "sha256:" + "A" * 64}]}),
    "less than nothing": (False, {"files": [{**FILE, "size": -1}]}),
    "the largest file": (True, {"files": [{**FILE, "size": 2**40}]}),
    "a file too large": (False, {"files": [{**FILE, "size": 2**40 + 1}]}),
    "too much in all": (False, {"files": [{**FILE, "path": name, "size": 2**40} for name in "abcde"]}),
    "empty chunks": (False, {"chunk_bytes": 0}),
    "the largest chunks": (True, {"chunk_bytes": 1_000_000}),
    "chunks too large": (False, {"chunk_bytes": 1_000_001}),
    "too many chunks": (True, {"files": [{**FILE, "size": 2**24 + 1}], "chunk_bytes": 1}),
    "a path that leads elsewhere": (True, {"files": [{**FILE, "path": "../file"}]}),
    "a file below a file": (True, {"files": [FILE, {**FILE, "path": "file/file"}]}),
    "too many fields": (False, {"inputs": [{**SIGNATURE["inputs"][0], "fields": [f"{i}" for i in range(100_001)]}]}),
    "a field many times": (True, {"inputs": [{**SIGNATURE["inputs"][0], "fields": ["f"] * 100_001}]}),
}


def test_both_sides_agree_who_a_repository_is(shell: Shell, prefix: str) -> None:
    config = {"cleanup.policy": "compact", "retention.ms": "-1"}
    wanted = [NewTopic(f"{prefix}.{name}", 1, 1, config=config) for name in ("registry", "schemas", "blobs", "status")]
    admin = AdminClient({"bootstrap.servers": shell.servers})
    for made in admin.create_topics(wanted).values():
        made.result(60)
    named = "0b5f8a52-6d0e-4c53-9d2b-6a1f0c9e7d11"
    kind = next(name for name, schemas in TYPES.items() if schemas is REPOSITORY)
    for uuid in ("nobody", named.upper(), named.replace("-", ""), named, "00000000-0000-4000-8000-000000000000"):
        payload = frame(REPOSITORY[0], {"uuid": uuid, "created_ms": 1, "format_version": 1})
        envelope = {"payload_type": kind, "payload": payload, "signatures": [], "hints": []}
        send(replace(shell, prefix=prefix), "registry", b"repository", frame(ENVELOPE[0], envelope), 0)
    assert replace(shell, prefix=prefix).json("init")["repository"] == named
    with closing(Topics(shell.servers, prefix)) as topics:
        assert topics.catch_up().repository == named


def test_both_sides_agree_which_manifests_take_a_number(
    shell: Shell, topics: Topics, model: str, tmp_path: Path
) -> None:
    kind = next(name for name, schemas in TYPES.items() if schemas is MANIFEST)
    common = {
        "repository": topics.catch_up().repository,
        "model": model,
        "created_ms": 1,
        "created_by": "",
        "message": "",
    }
    for number, (_, declared) in enumerate(MANIFESTS.values(), start=1):
        value = {**common, "version": number, "files": [FILE], "chunk_bytes": 10**6, **SIGNATURE, **declared}
        payload = frame(MANIFEST[0], MANIFEST[0].completed(value))
        envelope = {"payload_type": kind, "payload": payload, "signatures": [], "hints": []}
        send(shell, "registry", f"version/{model}/{number}".encode(), frame(ENVELOPE[0], envelope), 0)
    counting = [number for number, (counts, _) in enumerate(MANIFESTS.values(), start=1) if counts]
    assert [number for name, number in topics.catch_up().versions if name == model] == counting
    assert sorted(version["version"] for version in shell.json("history", model)["versions"]) == counting
    for unusable in ("too many chunks", "a path that leads elsewhere", "a file below a file"):
        number = list(MANIFESTS).index(unusable) + 1
        assert shell.call("pull", f"{model}@{number}", "-o", str(tmp_path / "never"))[0] == 5
        with pytest.raises(ProtocolError, match="too many chunks"):
            topics.fetch(topics.image.versions[model, number])
