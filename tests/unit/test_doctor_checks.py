"""What is said of what was seen: each check by values, the border cases of its rule among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from modelcast.access.acl import Acl, Operation, ResourceKind
from modelcast.doctor.check_connection import CLOCK_REFUSED_MS, CLOCK_TOLERATED_MS, EXPIRES_SOON_MS
from modelcast.doctor.contact import Contact, Obstacle
from modelcast.doctor.examine import findings
from modelcast.doctor.findings import Finding, Level, exit_code, fault, ok, warning
from modelcast.doctor.look_host import meets
from modelcast.doctor.sights import (
    ClusterSight,
    FolderSight,
    GroupSight,
    HostSight,
    PolicySight,
    Question,
    RepositorySight,
    Requirement,
    RuntimeSight,
    Sight,
    TopicSight,
    VersionNeeds,
)
from modelcast.doctor.tls import Validity
from modelcast.doctor.wire import BrokerVersions
from modelcast.errors import BrokerError, ConfigError, ExitCode, MissingExtraError, UsageError
from modelcast.fleet.fleet import Fleet, Instance, Presence
from modelcast.records import InstanceStatus
from modelcast.runtime import RuntimeLimits

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
NAMES = ("modelcast.registry", "modelcast.schemas", "modelcast.blobs", "modelcast.status")
COMPACT = {"cleanup.policy": "compact", "max.message.bytes": "1048588", "min.insync.replicas": "1"}
NEW = BrokerVersions({2: (1, 11), 11: (0, 9), 19: (2, 7), 28: (0, 5), 68: (0, 1)}, {"group.version": 1})
QUESTION = Question("kafka:9092", {}, chunk_bytes=525_312)
WELL = Contact("kafka:9092", clock_ms=NOW_MS, versions=NEW, ahead_ms=3)


def topic(name: str, **configs: str) -> TopicSight:
    return TopicSight(name, 1, 1, 1, 0, {**COMPACT, **{key.replace("_", "."): value for key, value in configs.items()}})


def cluster(*topics: TopicSight, **more: Any) -> ClusterSight:
    named = {sight.name: sight for sight in (*(topic(name) for name in NAMES), *topics)}
    return ClusterSight({1: "kafka:9092"}, {}, topics=named, **more)


def sight(**more: Any) -> Sight:
    usual: Mapping[str, Any] = {"contacts": (WELL,), "brokers": (WELL,), "cluster": cluster()}
    return Sight(NOW_MS, **{**usual, **more})


def wrong(question: Question, seen: Sight) -> list[Finding]:
    return [found for found in findings(question, seen) if found.is_wrong]


def only(found: Iterable[Finding]) -> Finding:
    (one,) = found
    return one


def test_where_nothing_is_wrong_nothing_is_told() -> None:
    assert wrong(QUESTION, sight()) == []


def test_a_finding_of_something_wrong_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="what to do"):
        Finding("clock", Level.FAULT, "it is late")


def test_the_exit_code_tells_a_cluster_that_is_out_of_reach_from_all_else() -> None:
    late, away = warning("clock", "late", "mend"), fault("broker", "away", "mend")
    assert exit_code([ok("broker", "there"), late]) is ExitCode.DONE
    assert exit_code([late], strict=True) is ExitCode.GATE
    assert exit_code([late, fault("acl", "no", "mend")]) is ExitCode.GATE
    assert exit_code([fault("acl", "no", "mend"), away]) is ExitCode.BROKER


class TestConnection:
    def test_one_server_of_several_that_is_away_is_a_warning(self) -> None:
        gone = Contact("other:9092", Obstacle.REFUSED, "Connection refused")
        found = only(wrong(QUESTION, sight(contacts=(WELL, gone))))
        assert (found.check, found.level) == ("broker", Level.WARNING)
        assert "other:9092" in found.message

    def test_an_address_told_to_clients_that_leads_nowhere_is_a_fault(self) -> None:
        told = Contact("internal:9092", Obstacle.UNKNOWN_HOST, "Name or service not known")
        found = only(wrong(QUESTION, sight(brokers=(told,))))
        assert (found.check, found.level) == ("advertised", Level.FAULT)
        assert "advertised.listeners" in (found.mend or "")

    def test_what_the_client_library_got_over_is_not_wrong(self) -> None:
        refused = Contact("kafka:9092", Obstacle.OUR_CERTIFICATE, "TLSV13_ALERT_CERTIFICATE_REQUIRED")
        assert wrong(QUESTION, sight(contacts=(refused,))) == []

    def test_what_only_the_client_library_meets_is_told_in_its_words(self) -> None:
        error = BrokerError("can't look at the cluster", hint="Do this.")
        found = only(wrong(QUESTION, sight(cluster=None, login_error=error)))
        assert found == fault("broker", "can't look at the cluster", "Do this.")
        error = ConfigError("no such property")
        assert only(wrong(QUESTION, sight(cluster=None, login_error=error))).check == "properties"

    @pytest.mark.parametrize(
        ("lifetime_days", "left_ms", "is_told"),
        [
            (365, EXPIRES_SOON_MS - 1, True),
            (365, EXPIRES_SOON_MS, False),
            (1, DAY_MS // 2, False),
            (1, DAY_MS // 5, True),
        ],
    )
    def test_a_certificate_that_ends_soon_is_a_warning(self, lifetime_days: int, left_ms: int, is_told: bool) -> None:
        until_ms = NOW_MS + left_ms
        contact = replace(WELL, certificate=Validity(until_ms - lifetime_days * DAY_MS, until_ms))
        found = wrong(QUESTION, sight(contacts=(contact,)))
        assert [one.check for one in found] == (["certificate"] if is_told else [])

    def test_of_our_own_certificate_only_its_time_is_told_where_that_is_over(self) -> None:
        refused = Contact("kafka:9092", Obstacle.OUR_CERTIFICATE, "SSLV3_ALERT_CERTIFICATE_UNKNOWN")
        ours = (("ssl.certificate.location", "me.pem", (Validity(0, NOW_MS - 1),)),)
        found = only(wrong(QUESTION, sight(contacts=(refused,), cluster=None, certificates=ours)))
        assert "me.pem" in found.message
        assert "expired" in found.message

    def test_a_bundle_of_authorities_may_hold_some_that_have_ended(self) -> None:
        ours = (("ssl.ca.location", "ca.pem", (Validity(0, NOW_MS - 1), Validity(0, NOW_MS + 1_000 * DAY_MS))),)
        assert wrong(QUESTION, sight(certificates=ours)) == []

    @pytest.mark.parametrize(("api", "release"), [(28, "2.5"), (19, "2.4"), (11, "2.3"), (2, "0.11")])
    def test_a_broker_that_lacks_something_is_older_than_its_release(self, api: int, release: str) -> None:
        old = replace(WELL, versions=BrokerVersions({**NEW.apis, api: (0, 1)}))
        found = only(wrong(QUESTION, sight(contacts=(old,), brokers=(old,))))
        assert found.check == "broker-version"
        assert f"older than Kafka {release}" in found.message

    def test_the_new_group_protocol_takes_a_cluster_that_has_it_on(self) -> None:
        off = replace(WELL, versions=BrokerVersions(NEW.apis, {"group.version": 0}))
        seen = sight(contacts=(off,), brokers=())
        assert wrong(QUESTION, seen) == []
        found = only(wrong(replace(QUESTION, properties={"group.protocol": "consumer"}), seen))
        assert "kafka-features.sh" in (found.mend or "")

    @pytest.mark.parametrize(
        ("ahead_ms", "level"),
        [
            (CLOCK_TOLERATED_MS, Level.OK),
            (CLOCK_TOLERATED_MS + 1, Level.WARNING),
            (-CLOCK_TOLERATED_MS - 1, Level.WARNING),
            (CLOCK_REFUSED_MS, Level.FAULT),
            (-CLOCK_REFUSED_MS, Level.FAULT),
        ],
    )
    def test_a_clock_that_differs(self, ahead_ms: int, level: Level) -> None:
        contact = replace(WELL, ahead_ms=ahead_ms)
        found = only(one for one in findings(QUESTION, sight(contacts=(contact,))) if one.check == "clock")
        assert found.level is level

    def test_the_clock_of_an_instance_that_differs_is_named(self) -> None:
        repository = RepositorySight(uuid="u", skews_ms={"web-0": -30_000, "web-1": 5}, fleet=Fleet(NOW_MS))
        found = only(wrong(QUESTION, sight(repository=repository)))
        assert "'web-0' is 30 s behind ours" in found.message


class TestTopics:
    def test_a_repository_that_is_not_there_is_made_by_init(self) -> None:
        found = only(wrong(replace(QUESTION, prefix="other"), sight()))
        assert (found.check, found.mend) == ("repository", "modelcast init --prefix other")

    @pytest.mark.parametrize("name", NAMES[:3])
    def test_a_topic_of_models_that_deletes_by_age_is_a_fault(self, name: str) -> None:
        seen = sight(cluster=cluster(topic(name, cleanup_policy="compact,delete")))
        found = only(wrong(QUESTION, seen))
        assert found.check == "cleanup-policy"
        assert name in found.message
        assert (found.mend or "").endswith(f"--entity-name {name} --add-config cleanup.policy=compact")

    def test_predictions_that_replace_each_other_are_a_fault_and_events_a_warning(self) -> None:
        question = replace(QUESTION, events=("events",), outputs=("scores",))
        compacted = cluster(topic("events", cleanup_policy="compact"), topic("scores", cleanup_policy="compact"))
        levels = {found.message.split("'")[1]: found.level for found in wrong(question, sight(cluster=compacted))}
        assert levels == {"scores": Level.FAULT, "events": Level.WARNING}

    @pytest.mark.parametrize(
        ("name", "limit", "level"),
        [
            ("modelcast.blobs", 525_311, Level.FAULT),
            ("modelcast.blobs", 525_312, None),
            ("modelcast.registry", 999_999, Level.WARNING),
            ("scores", 999_999, Level.FAULT),
            ("scores", 1_000_000, None),
        ],
    )
    def test_a_topic_that_takes_too_little(self, name: str, limit: int, level: Level | None) -> None:
        question = replace(QUESTION, outputs=("scores",))
        small = cluster(
            topic("scores", cleanup_policy="delete"), topic(name, **_delete(name), max_message_bytes=str(limit))
        )
        found = wrong(question, sight(cluster=small))
        assert [one.level for one in found] == ([] if level is None else [level])

    def test_a_client_that_sends_or_receives_too_little(self) -> None:
        question = replace(QUESTION, properties={"message.max.bytes": "1000", "receive.message.max.bytes": "1000000"})
        found = wrong(question, sight(cluster=cluster(topic("modelcast.blobs", max_message_bytes="999500"))))
        assert ["-X message.max.bytes" in (one.mend or "") for one in found].count(True) == 1
        assert all(one.check == "message-limit" for one in found)

    def test_replication_that_copies_large_records_one_by_one_is_a_warning(self) -> None:
        seen = replace(cluster(), configs={"replica.fetch.max.bytes": "1000"}, brokers={1: "a", 2: "b"})
        large = replace(topic("modelcast.blobs"), replicas=2, in_sync=2)
        found = only(wrong(QUESTION, sight(cluster=replace(seen, topics={**seen.topics, "modelcast.blobs": large}))))
        assert (found.level, "replica.fetch.max.bytes" in found.message) == (Level.WARNING, True)

    @pytest.mark.parametrize(
        ("change", "level"),
        [
            ({"leaderless": 1}, Level.FAULT),
            ({"configs": {**COMPACT, "min.insync.replicas": "2"}}, Level.FAULT),
            ({"replicas": 3, "in_sync": 1, "configs": {**COMPACT, "min.insync.replicas": "2"}}, Level.FAULT),
            ({"replicas": 3, "in_sync": 2, "configs": {**COMPACT, "min.insync.replicas": "2"}}, Level.WARNING),
        ],
    )
    def test_replicas_that_are_away(self, change: dict[str, Any], level: Level) -> None:
        found = only(wrong(QUESTION, sight(cluster=cluster(replace(topic("modelcast.registry"), **change)))))
        assert (found.check, found.level) == ("replicas", level)

    def test_one_replica_on_many_brokers_is_a_warning(self) -> None:
        seen = replace(cluster(), brokers={1: "a", 2: "b", 3: "c"})
        assert {found.level for found in wrong(QUESTION, sight(cluster=seen))} == {Level.WARNING}

    def test_internal_topics_that_can_not_be_made_are_a_fault_unless_they_are_there(self) -> None:
        seen = replace(cluster(), configs={"transaction.state.log.replication.factor": "3"})
        found = only(wrong(QUESTION, sight(cluster=seen)))
        assert "no transaction can begin" in found.message
        there = replace(seen, all_topics=frozenset({"__transaction_state"}))
        assert wrong(QUESTION, sight(cluster=there)) == []


def _delete(name: str) -> dict[str, str]:
    return {"cleanup_policy": "delete"} if name == "scores" else {}


class TestAccess:
    READ = Acl(ResourceKind.TOPIC, "modelcast.registry", Operation.READ)
    CONFIGS = Acl(ResourceKind.TOPIC, "modelcast.registry", Operation.DESCRIBE_CONFIGS)

    def test_what_is_missing_is_one_line_a_resource(self) -> None:
        question = replace(QUESTION, needed=(self.READ, self.CONFIGS), properties={"sasl.username": "ann"})
        seen = cluster(replace(topic("modelcast.registry"), operations=frozenset({"Write"})))
        found = only(wrong(question, sight(cluster=seen)))
        assert found.mend == (
            "kafka-acls.sh --bootstrap-server kafka:9092 --add --allow-principal User:ann --operation Read "
            "--operation DescribeConfigs --topic modelcast.registry"
        )

    def test_what_is_there_is_not_asked_for(self) -> None:
        seen = cluster(replace(topic("modelcast.registry"), operations=frozenset({"Read", "DescribeConfigs"})))
        assert wrong(replace(QUESTION, needed=(self.READ, self.CONFIGS)), sight(cluster=seen)) == []

    def test_nobody_has_to_make_a_topic_that_is_there(self) -> None:
        create = Acl(ResourceKind.TOPIC, "modelcast.registry", Operation.CREATE)
        seen = cluster(replace(topic("modelcast.registry"), operations=frozenset()))
        assert wrong(replace(QUESTION, needed=(create,)), sight(cluster=seen)) == []

    def test_a_group_that_may_not_be_looked_at_and_one_that_nobody_is_in(self) -> None:
        join = Acl(ResourceKind.GROUP, "scorers", Operation.READ)
        question = replace(QUESTION, needed=(join,))
        denied = cluster(groups={"scorers": GroupSight("scorers", denied=True)})
        assert "--group scorers" in (only(wrong(question, sight(cluster=denied))).mend or "")
        empty = findings(question, sight(cluster=cluster(groups={"scorers": GroupSight("scorers")})))
        assert [found.level for found in empty if found.check == "acl"] == [Level.UNKNOWN]

    def test_a_transactional_id_that_may_not_be_used(self) -> None:
        write = Acl(ResourceKind.TRANSACTIONAL_ID, "modelcast.scorer.", Operation.WRITE, prefixed=True)
        question = replace(QUESTION, needed=(write,))
        denied = replace(WELL, denied_ids=frozenset({"modelcast.scorer."}))
        mend = only(wrong(question, sight(contacts=(denied,)))).mend or ""
        assert "--transactional-id modelcast.scorer. --resource-pattern-type prefixed" in mend
        assert wrong(question, sight(contacts=(replace(WELL, denied_ids=frozenset()),))) == []

    def test_what_only_doing_it_would_tell_is_said_to_be_so(self) -> None:
        question = replace(QUESTION, needed=(Acl(ResourceKind.TOPIC, "not-there", Operation.WRITE),))
        found = only(one for one in findings(question, sight()) if one.check == "acl")
        assert found.level is Level.UNKNOWN


class TestRepository:
    def test_a_repository_of_a_newer_format(self) -> None:
        error = ConfigError("repository u is of format 2, and this modelcast knows 1", hint="Upgrade modelcast here.")
        found = only(wrong(QUESTION, sight(repository=RepositorySight(error))))
        assert (found.check, found.mend) == ("version", "Upgrade modelcast here.")

    def test_records_and_instances_of_a_newer_modelcast(self) -> None:
        seen = RepositorySight(uuid="u", newer=("fraud",), fleet=Fleet(NOW_MS, unreadable=("web-0",)))
        found = wrong(QUESTION, sight(repository=seen))
        assert [(one.check, one.level) for one in found] == [("version", Level.WARNING)] * 2

    def test_instances_with_different_runtimes(self) -> None:
        def instance(name: str, version: str) -> Instance:
            status = InstanceStatus("u", name, "h", 1, "scorer", "cpu", NOW_MS, {"onnxruntime": version}, ())
            return Instance(status, NOW_MS, Presence.RUNNING)

        fleet = Fleet(NOW_MS, (instance("a", "1.30.0"), instance("b", "1.31.1")))
        found = only(wrong(QUESTION, sight(repository=RepositorySight(uuid="u", fleet=fleet))))
        assert "1.30.0 on 1, 1.31.1 on 1" in found.message

    def test_a_model_that_is_not_there(self) -> None:
        seen = RepositorySight(uuid="u", missing_models=("fruad",), fleet=Fleet(NOW_MS))
        assert only(wrong(QUESTION, sight(repository=seen))).check == "model"


class TestHost:
    LIMITS = RuntimeLimits(10, {"": 21, "ai.onnx.ml": 5}, frozenset())

    def of(self, released: tuple[VersionNeeds, ...] = (), **host: Any) -> list[Finding]:
        repository = RepositorySight(uuid="u", released=released, fleet=Fleet(NOW_MS))
        return wrong(QUESTION, sight(host=HostSight(**host), repository=repository))

    def test_a_folder_that_can_not_be_written(self) -> None:
        found = only(self.of(folders=(FolderSight("model cache", "/c", "MODELCAST_CACHE_DIR", "No space left", 0),)))
        assert (found.check, found.level) == ("cache", Level.FAULT)
        assert "MODELCAST_CACHE_DIR" in (found.mend or "")

    def test_a_disk_with_less_room_than_the_released_models_take(self) -> None:
        folder = FolderSight("model cache", "/c", "MODELCAST_CACHE_DIR", "", 999)
        needs = VersionNeeds("fraud", 1, 8, {}, 1_000)
        assert only(self.of((needs,), folders=(folder,))).level is Level.WARNING
        assert self.of((needs,), folders=(replace(folder, free_bytes=1_000),)) == []

    @pytest.mark.parametrize(
        ("installed", "wanted", "is_met"),
        [
            ("2.16.1", ">=2.13", True),
            ("2.9", ">=2.13", False),
            ("2.13", ">=2.13.0", True),
            ("3.0.1", ">=2.0,<3", False),
            ("2.9.9", ">=2.0,<3", True),
            ("0.0.3", "==0.0.3", True),
            ("0.0.4", "==0.0.3", False),
            ("2.0rc1", ">=2.0", True),
            ("1.2.3", "<=1.2", True),
        ],
    )
    def test_versions_within_bounds(self, installed: str, wanted: str, is_met: bool) -> None:
        assert meets(installed, wanted) is is_met

    def test_a_package_of_a_version_that_does_not_do(self) -> None:
        found = only(self.of(requirements=(Requirement("onnx", ">=1.21", "1.19.0", is_met=False),)))
        assert (found.check, found.mend) == ("packages", "pip install 'onnx>=1.21'")

    def test_no_runtime_at_all(self) -> None:
        error = MissingExtraError("no ONNX Runtime is installed", hint="pip install 'modelcast[cpu]'")
        assert only(self.of(runtime=RuntimeSight(error=error))).check == "runtime"

    def test_two_runtimes_that_overwrite_each_other(self) -> None:
        packages = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
        found = only(self.of(runtime=RuntimeSight(packages=packages, resolved="cpu")))
        assert (found.check, found.level) == ("runtime", Level.WARNING)

    def test_a_device_that_is_asked_for_and_not_to_be_had_is_a_fault(self) -> None:
        error = UsageError("device 'cuda' is asked for, and can't be used: no driver", hint="Mend the driver.")
        found = only(self.of(runtime=RuntimeSight("cuda", gpu_fault=error)))
        assert found == fault("gpu", error.message, "Mend the driver.")

    def test_a_gpu_that_the_runtime_has_no_library_for_is_a_warning_and_none_at_all_is_nothing(self) -> None:
        error = MissingExtraError(
            "device 'cuda' is asked for, and the installed ONNX Runtime has no CUDA", hint="pip …"
        )
        assert self.of(runtime=RuntimeSight(gpu_fault=error)) == []
        found = only(self.of(runtime=RuntimeSight(gpu_fault=error, has_gpu=True)))
        assert "the installed ONNX Runtime has no CUDA" in found.message

    def test_the_gpu_build_without_its_libraries_is_a_warning(self) -> None:
        error = UsageError("device 'cuda' is asked for, and can't be used: its CUDA or cuDNN libraries can't be loaded")
        assert only(self.of(runtime=RuntimeSight(gpu_fault=error))).level is Level.WARNING

    @pytest.mark.parametrize(
        "needs",
        [
            VersionNeeds("fraud", 7, 10, {"": 22}, 1),
            VersionNeeds("fraud", 7, 10, {"ai.onnx.ml": 6}, 1),
            VersionNeeds("fraud", 7, 11, {"": 21}, 1),
        ],
    )
    def test_a_released_version_that_this_runtime_can_not_read(self, needs: VersionNeeds) -> None:
        runtime = RuntimeSight(version="1.22.0", limits=self.LIMITS, resolved="cpu")
        found = only(self.of((needs, VersionNeeds("other", 1, 10, {"": 21}, 1)), runtime=runtime))
        assert found.check == "opset"
        assert "fraud@7" in found.message
        assert "modelcast rollback fraud" in (found.mend or "")

    @pytest.mark.parametrize(
        ("expiries_ms", "revoked", "threshold", "level"),
        [
            ({}, frozenset(), 2, None),
            ({"bob": NOW_MS}, frozenset(), 2, Level.FAULT),
            ({"bob": NOW_MS}, frozenset(), 1, None),
            ({"bob": NOW_MS + DAY_MS}, frozenset(), 2, Level.WARNING),
            ({}, frozenset({"alice"}), 2, Level.FAULT),
        ],
    )
    def test_a_trust_policy_whose_keys_do_not_suffice(
        self, expiries_ms: dict[str, int], revoked: frozenset[str], threshold: int, level: Level | None
    ) -> None:
        rules = {"rule 1 (fraud*)": (threshold, ("alice", "bob"))}
        found = self.of(policy=PolicySight("trust.toml", None, expiries_ms, revoked, rules))
        assert [one.level for one in found] == ([] if level is None else [level])
