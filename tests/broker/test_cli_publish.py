"""`init`, `publish`, `release`, `rollback`, `models`, `show`, `history` as people run them, with every bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelcast import codec
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.testing.broker import unique_name
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.publishing import Content, Shell, image, stable_s, wide_model, write_model, write_rows
from tests.unit.registry_records import key_of, manifest, release, withdrawn

FIELDS = ("--fields", "amount,age")
DIGEST = "sha256:"


@pytest.fixture(scope="module", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELCAST_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as made:
        yield made


@pytest.fixture(scope="module")
def shell(broker: Broker, log: KafkaLog) -> Shell:
    """A repository that the tests of what fails share: `fraud` with version 1, not released."""
    made = Shell(broker.bootstrap_servers, unique_name("repository"))
    made.json("init", "--blob-partitions", "2")
    put(log, made, manifest(1, repository=uuid(log, made)))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return write_model(folder / "model.onnx")


@pytest.fixture(scope="module")
def rows(folder: Path) -> str:
    return write_rows(folder / "rows.csv")


@pytest.fixture
def own(broker: Broker, prefix: str) -> Shell:
    """A repository of the test's own."""
    made = Shell(broker.bootstrap_servers, prefix)
    made.json("init", "--blob-partitions", "2")
    return made


def ends(log: KafkaLog, shell: Shell) -> tuple[object, object]:
    """The true ends of registry and blobs: what was never written has not even left a marker."""
    topics = Topics(shell.prefix)
    stable_s(log, topics.registry)
    return log.end_offsets(topics.registry, committed=False), log.end_offsets(topics.blobs, committed=False)


def put(log: KafkaLog, shell: Shell, *payloads: codec.Payload) -> None:
    """Writes registry records as another publisher would."""
    topics = Topics(shell.prefix)
    with closing(log.writer()) as writer:
        for payload in payloads:
            value = codec.encode_envelope(codec.seal(payload))
            writer.send(topics.registry, key=key_of(payload), value=value, partition=0)
        writer.flush(60)


def uuid(log: KafkaLog, shell: Shell) -> str:
    repository = image(log, Topics(shell.prefix)).repository
    assert repository is not None
    return repository.uuid


# What works


def test_init_makes_a_repository_once(broker: Broker, log: KafkaLog, prefix: str) -> None:
    shell = Shell(broker.bootstrap_servers, prefix)
    first = shell.json("init", "--blob-partitions", "3", "--replication-factor", "1")
    assert list(first) == ["repository", "prefix", "created", "topics_created"]
    assert first["created"] is True
    assert first["topics_created"] == [f"{prefix}.{name}" for name in ("registry", "schemas", "blobs", "status")]
    assert log.topics()[f"{prefix}.blobs"] == 3
    again = shell.json("init", "--blob-partitions", "5")
    assert (again["repository"], again["created"], again["topics_created"]) == (first["repository"], False, [])
    assert log.topics()[f"{prefix}.blobs"] == 3
    assert f"Found repository {prefix}" in shell.says("init")


def test_publish_prints_one_json_object_and_says_that_nothing_is_live(own: Shell, source: str, rows: str) -> None:
    done = own.run("publish", "fraud", source, "--examples", rows, *FIELDS, "--metric", "auc=0.9", "--json")
    assert done.returncode == 0, done.stderr
    published = json.loads(done.stdout)
    assert list(published)[:5] == ["model", "version", "digest", "bytes_total", "bytes_sent"]
    assert (published["model"], published["version"]) == ("fraud", 1)
    assert published["digest"].startswith(DIGEST)
    assert published["bytes_sent"] == published["bytes_total"] > 0
    assert "Nothing goes live until it is released: modelcast release fraud 1" in done.stderr
    assert own.json("models") == {
        "models": [{"model": "fraud", "versions": 1, "latest": 1, "live": None, "live_since_ms": None}]
    }


def test_publishing_the_same_again_sends_nothing_and_gives_the_same_digest(own: Shell, source: str, rows: str) -> None:
    arguments = ("publish", "fraud", source, "--examples", rows, *FIELDS)
    first, second = own.json(*arguments), own.json(*arguments, "--release")
    assert (second["version"], second["bytes_sent"]) == (2, 0)
    assert second["digest"] == first["digest"]
    assert own.json("models")["models"][0]["live"] == 2


def test_publish_and_release_for_people(own: Shell, source: str, rows: str) -> None:
    said = own.says("publish", "fraud", source, "--examples", rows, *FIELDS, "--release")
    assert said.startswith("Published fraud@1, released\n  sha256:")
    assert "Nothing goes live" not in said
    said = own.says("publish", "--examples", rows, *FIELDS, "fraud", source)
    assert "Published fraud@2\n" in said
    assert "Nothing goes live until it is released" in said
    assert own.says("release", "fraud", "2") == "Released fraud@2 (release 2)\n"
    assert own.says("rollback", "fraud", "--message", "worse") == "Released fraud@1 again (release 3)\n"


def test_rolling_back_twice_goes_further_back(own: Shell, folder: Path, rows: str) -> None:
    for bias in (1.0, 2.0, 3.0):
        model = write_model(folder / f"bias-{bias}.onnx", bias=bias)
        own.json("publish", "fraud", model, "--examples", rows, *FIELDS, "--release")
    first = own.json("rollback", "fraud")
    assert first == {"model": "fraud", "version": 2, "sequence": 4, "restores": 2}
    assert own.json("rollback", "fraud")["version"] == 1
    assert "no earlier champion" in own.fails("rollback", "fraud", status=2)
    history = own.json("history", "fraud")
    assert [entry["version"] for entry in history["releases"]] == [1, 2, 3, 2, 1]
    assert own.json("release", "fraud", "3")["sequence"] == 6
    assert own.json("rollback", "fraud")["version"] == 1


def test_models_show_and_history_tell_what_was_published(own: Shell, source: str, rows: str) -> None:
    assert "No models yet" in own.says("models")
    assert own.json("models") == {"models": []}
    options = ("--metric", "auc=0.91", "--metric", "rows=1e6", "--message", "[bold]first[/bold]", "--release")
    published = own.json("publish", "fraud", source, "--examples", rows, *FIELDS, *options)
    own.json("publish", "fraud", source, "--examples", rows, *FIELDS)

    shown = own.json("show", "fraud")
    assert (shown["version"], shown["live"], shown["digest"]) == (1, True, published["digest"])
    assert shown["metrics"] == {"auc": 0.91, "rows": 1e6}
    assert shown["bytes"] == published["bytes_total"] == sum(file["bytes"] for file in shown["files"])
    assert shown["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 2], "fields": ["amount", "age"]}]
    assert shown["outputs"] == [{"name": "score", "dtype": "float32", "shape": [None], "field": "score"}]
    assert own.json("show", "fraud@2")["live"] is False

    said = own.says("show", "fraud")
    for words in (
        "fraud@1  live",
        "[bold]first[/bold]",
        "auc=0.91",
        "x: float32[N, 2] ← amount, age",
        "score: float32",
    ):
        assert words in said
    assert "fraud@2  not live" in own.says("show", "fraud@2")

    history = own.json("history", "fraud")
    assert [version["version"] for version in history["versions"]] == [2, 1]
    assert [(entry["sequence"], entry["version"], entry["restores"]) for entry in history["releases"]] == [(1, 1, None)]
    said = own.says("history", "fraud")
    assert "1 (live)" in said
    assert "auc=0.91 rows=1e+06" in said
    assert "fraud" in own.says("models")


def test_what_other_publishers_wrote_is_shown_however_strange(own: Shell, log: KafkaLog) -> None:
    repository = uuid(log, own)
    put(
        log,
        own,
        replace(manifest(1, repository=repository), created_ms=1 << 62, message="\x1b[2Jclear\nline"),
        replace(manifest(2, repository=repository), created_ms=-(1 << 62)),
        replace(withdrawn(3), repository=repository),
        replace(release(1, 1), repository=repository, created_ms=1 << 62),
    )
    for command in (("models",), ("show", "fraud"), ("show", "fraud@2"), ("history", "fraud")):
        assert "\x1b" not in own.says(*command)
        own.json(*command)
    assert "withdrawn: trained on the wrong data" in own.says("history", "fraud")
    assert "was withdrawn" in own.fails("show", "fraud@3", status=4)
    assert "was withdrawn" in own.fails("release", "fraud", "3", status=4)


# What is refused


def test_f17_external_data_that_names_what_is_not_the_models_is_refused_by_name(
    shell: Shell, log: KafkaLog, folder: Path, rows: str
) -> None:
    secrets = folder / "secrets"
    (secrets / "model").mkdir(parents=True)
    for place in (secrets, secrets / "model"):
        (place / ".env").write_bytes(b"PASSWORD")
    (secrets / "model" / "link.bin").symlink_to(secrets / ".env")
    before = ends(log, shell)
    for location in (".env", "../.env", str(secrets / ".env"), "link.bin", "sub/../../.env", "*/_ORT_MEM_ADDR_/*"):
        model = wide_model(1)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            tensor.external_data.add(key=key, value=value)
        path = secrets / "model" / "model.onnx"
        path.write_bytes(model.SerializeToString())
        said = shell.fails("publish", "fraud", str(path), "--examples", rows, *FIELDS, "--release", status=5)
        assert repr(location) in said
        assert "PASSWORD" not in said
    assert ends(log, shell) == before


def test_f19_a_graph_of_144_bytes_that_asks_for_gigabytes_is_stopped_by_its_limit(
    shell: Shell, log: KafkaLog, folder: Path, rows: str
) -> None:
    shape = helper.make_node("ConstantOfShape", ["size"], ["big"])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["size"], value_ints=[1 << 30]),
            shape,
            helper.make_node("ReduceMax", ["big"], ["m"], keepdims=0),
            helper.make_node("Add", ["x", "m"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
    )
    bomb = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    bomb.producer_name = ""
    path = folder / "bomb.onnx"
    path.write_bytes(bomb.SerializeToString())
    assert path.stat().st_size < 200
    before = ends(log, shell)
    said = shell.fails("publish", "fraud", str(path), "--examples", rows, *FIELDS, status=5)
    assert "memory" in said
    assert ends(log, shell) == before


def not_finite(path: Path) -> str:
    """Logarithm of a sum that is 0 in one row of the examples."""
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path.write_bytes(model.SerializeToString())
    return str(path)


BAD_PUBLICATIONS: dict[str, tuple[list[str], int, str]] = {
    "a source that is not there": (["fraud", "absent.onnx", "--examples", "rows.csv"], 2, "absent.onnx"),
    "a folder as source": (["fraud", ".", "--examples", "rows.csv"], 2, "is a folder"),
    "a source that is no model": (["fraud", "noise.onnx", "--examples", "rows.csv"], 2, "noise.onnx"),
    "a pickle that is none": (["fraud", "noise.joblib", "--examples", "rows.csv"], 2, "noise.joblib"),
    "a source of another kind": (["fraud", "rows.csv", "--examples", "rows.csv"], 2, "rows.csv"),
    "no examples": (["fraud", "model.onnx"], 2, "--examples"),
    "examples that are not there": (["fraud", "model.onnx", "--examples", "absent.csv"], 2, "absent.csv"),
    "examples that are no arrays": (["fraud", "model.onnx", "--examples", "noise.npz"], 2, "noise.npz"),
    "examples without rows": (["fraud", "model.onnx", "--examples", "empty.csv"], 2, "no rows"),
    "examples without a field": (
        ["fraud", "model.onnx", "--examples", "less.csv", *FIELDS], 5, "'age'",
    ),
    "examples of another kind": (["fraud", "model.onnx", "--examples", "texts.csv", *FIELDS], 5, "'age'"),
    "fields of another number": (
        ["fraud", "model.onnx", "--examples", "rows.csv", "--fields", "amount"], 2, "names 1 field",
    ),
    "a field twice": (["fraud", "model.onnx", "--examples", "rows.csv", "--fields", "age,age"], 2, "twice"),
    "outputs that are not finite": (["fraud", "log.onnx", "--examples", "zero.csv", *FIELDS], 5, "finite"),
    "a metric without a value": (
        ["fraud", "model.onnx", "--examples", "rows.csv", *FIELDS, "--metric", "auc"], 2, "'auc' is not KEY=NUMBER",
    ),
    "a metric that is no number": (
        ["fraud", "model.onnx", "--examples", "rows.csv", *FIELDS, "--metric", "auc=good"], 2, "'auc=good'",
    ),
    "a metric without a name": (
        ["fraud", "model.onnx", "--examples", "rows.csv", *FIELDS, "--metric", "=1"], 2, "'=1'",
    ),
    "a metric that is not finite": (
        ["fraud", "model.onnx", "--examples", "rows.csv", *FIELDS, "--metric", "auc=nan"], 2, "auc",
    ),
    "a message that is no UTF-8": (
        ["fraud", "model.onnx", "--examples", "rows.csv", *FIELDS, "--message", "told \udcff"], 2, "not valid UTF-8",
    ),
    "a name that can't be a model's": (["a/b", "model.onnx", "--examples", "rows.csv", *FIELDS], 2, "a/b"),
    "a name with a version": (["fraud@2", "model.onnx", "--examples", "rows.csv", *FIELDS], 2, "fraud@2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(folder: Path, source: str, rows: str) -> Path:
    """Everything the bad publications name."""
    noise = np.random.default_rng(1).bytes(500)
    for name in ("noise.onnx", "noise.joblib", "noise.npz"):
        (folder / name).write_bytes(noise)
    write_rows(folder / "empty.csv", "amount,age\n")
    write_rows(folder / "less.csv", "amount\n1\n2\n")
    write_rows(folder / "texts.csv", "amount,age\n1,old\n2,young\n")
    write_rows(folder / "zero.csv", "amount,age\n1,2\n3,0\n")
    not_finite(folder / "log.onnx")
    return folder


@pytest.mark.parametrize("case", BAD_PUBLICATIONS)
def test_bad_input_of_publish_is_one_message_and_nothing_on_the_topics(
    shell: Shell, log: KafkaLog, files: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    arguments, status, words = BAD_PUBLICATIONS[case]
    monkeypatch.chdir(files)
    before = ends(log, shell)
    assert words in shell.fails("publish", *arguments, "--release", status=status)
    assert ends(log, shell) == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("release", "absent", "1"), 4, "no model 'absent'"),
        (("rollback", "absent"), 4, "no model 'absent'"),
        (("show", "absent"), 4, "no model 'absent'"),
        (("show", "absent@3"), 4, "no model 'absent'"),
        (("history", "absent"), 4, "no model 'absent'"),
        (("release", "fraud", "9"), 4, "no version 9"),
        (("show", "fraud@9"), 4, "no version 9"),
        (("rollback", "fraud"), 2, "no earlier champion"),
        (("show", "fraud@0"), 2, "fraud@0"),
        (("show", "fraud@x"), 2, "fraud@x"),
        (("history", "fraud@1"), 2, "fraud@1"),
        (("release", "a/b", "1"), 2, "a/b"),
    ],
)
def test_what_does_not_exist_is_named_and_nothing_is_written(
    shell: Shell, log: KafkaLog, arguments: tuple[str, ...], status: int, words: str
) -> None:
    before = Content.of(log, Topics(shell.prefix))
    assert words in shell.fails(*arguments, status=status)
    assert Content.of(log, Topics(shell.prefix)) == before


COMMANDS = {
    "publish": ["publish", "fraud", "model.onnx", "--examples", "rows.csv", *FIELDS],
    "release": ["release", "fraud", "1"],
    "rollback": ["rollback", "fraud"],
    "models": ["models"],
    "show": ["show", "fraud"],
    "history": ["history", "fraud"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_repository_every_command_says_how_to_make_one(
    broker: Broker, log: KafkaLog, prefix: str, files: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(files)
    said = Shell(broker.bootstrap_servers, prefix).fails(*COMMANDS[command], status=4)
    assert f"modelcast init --prefix {prefix}" in said
    assert not [topic for topic in log.topics() if topic.startswith(prefix)]


@pytest.mark.parametrize("command", ["init", *COMMANDS])
def test_a_broker_that_is_not_there_is_said_by_every_command(
    prefix: str, files: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(files)
    # Port 9 is the discard service's, which nothing offers; a few seconds of trying are left out of the test's time.
    monkeypatch.setattr("modelcast.kafka.connection.METADATA_TIMEOUT_S", 1.0)
    assert "127.0.0.1:9" in Shell("127.0.0.1:9", prefix).fails(*COMMANDS.get(command, [command]), status=3)


@pytest.mark.parametrize("topic", ["registry", "schemas", "blobs"])
def test_a_topic_that_would_lose_models_is_refused_with_the_command_that_mends_it(
    broker: Broker, log: KafkaLog, prefix: str, files: Path, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    monkeypatch.chdir(files)
    for spec in Topics(prefix).specs(blob_partitions=1, replication_factor=1):
        wrong = {"cleanup.policy": "delete"} if spec.name.endswith(topic) else {}
        log.create(TopicSpec(spec.name, spec.partitions, 1, {**spec.configs, **wrong}))
    shell = Shell(broker.bootstrap_servers, prefix)
    for arguments in (["init"], COMMANDS["publish"], COMMANDS["release"]):
        said = shell.fails(*arguments, status=3)
        assert f"{prefix}.{topic}" in said
        assert "--add-config cleanup.policy=compact" in said
    for name in ("registry", "blobs"):
        assert log.end_offsets(f"{prefix}.{name}", committed=False) == {0: 0}


def test_a_topic_of_blobs_that_takes_no_chunk_is_refused_before_the_first_byte(
    broker: Broker, log: KafkaLog, prefix: str, source: str, rows: str
) -> None:
    for spec in Topics(prefix).specs(blob_partitions=1, replication_factor=1):
        small = {"max.message.bytes": "1000"} if spec.name.endswith("blobs") else {}
        log.create(TopicSpec(spec.name, spec.partitions, 1, {**spec.configs, **small}))
    shell = Shell(broker.bootstrap_servers, prefix)
    shell.json("init")
    said = shell.fails("publish", "fraud", source, "--examples", rows, *FIELDS, "--release", status=3)
    assert "max.message.bytes=1000" in said
    assert log.end_offsets(f"{prefix}.blobs", committed=False) == {0: 0}
    assert shell.json("models") == {"models": []}


def test_the_model_a_publication_left_is_whole(own: Shell, log: KafkaLog, source: str, rows: str) -> None:
    published = own.json("publish", "fraud", source, "--examples", rows, *FIELDS, "--release")
    record = image(log, Topics(own.prefix)).models["fraud"].version(1)
    assert record.manifest.digest == published["digest"]
    assert {hint.digest for hint in record.hints} == {file.digest for file in record.manifest.files}
    assert onnx.load(source).ir_version == record.manifest.ir_version
