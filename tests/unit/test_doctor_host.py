"""This host, looked at: folders that really can't be written, policies that really can't be read, a real runtime."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from modelcast.doctor.look_host import look_at_folder, look_at_policy, look_at_runtime
from modelcast.errors import ConfigError, MissingExtraError
from tests.small_disk import small_disk

from .trust_rig import policy_text

CACHE = ("model cache", "MODELCAST_CACHE_DIR")


def error_of(folder: Path) -> str:
    return look_at_folder(CACHE[0], folder, CACHE[1]).error


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    seen = look_at_folder(CACHE[0], tmp_path, CACHE[1])
    assert seen.error == ""
    assert seen.free_bytes is not None
    assert seen.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert error_of(tmp_path / "not" / "yet") == ""
    assert not (tmp_path / "not").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    assert error_of(tmp_path / "models") == "Not a directory"


def test_a_place_where_nobody_may_write() -> None:
    assert error_of(Path("/proc/modelcast")) != ""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        assert error_of(disk.folder) == ""
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "fill").write_bytes(b"\0" * (2 << 20))
        assert error_of(disk.folder) == "No space left on device"
        assert [path.name for path in disk.folder.iterdir()] == ["fill"]


def test_a_runtime_for_the_cpu_says_that_it_has_no_cuda() -> None:
    seen = look_at_runtime("cuda")
    if "onnxruntime-gpu" in seen.packages:
        pytest.skip("the GPU build is installed here")
    assert isinstance(seen.gpu_fault, MissingExtraError)
    assert seen.resolved == ""
    assert look_at_runtime("auto").resolved == "cpu"
    assert look_at_runtime("cpu").gpu_fault is None


def test_the_runtime_is_the_installed_one_and_its_limits_are_known() -> None:
    seen = look_at_runtime("auto")
    assert seen.version in seen.packages.values()
    assert seen.limits is not None
    assert seen.limits.opsets[""] >= 17


def test_two_builds_of_the_runtime_are_both_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "onnxruntime_gpu-1.22.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.22.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert look_at_runtime("cpu").packages["onnxruntime-gpu"] == "1.22.0"


def test_a_policy_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text("[keys.alice]\npublic = 'no key'\n")
    seen = look_at_policy(path)
    assert isinstance(seen.error, ConfigError)
    assert str(path) in seen.error.message


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    assert look_at_policy(tmp_path / "trust.toml").error is not None


def test_a_policy_tells_its_keys_and_who_may_write_it(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(policy_text("fraud*: alice bob: 2", alice="expires = 2027-01-01", bob='revoked = "lost"'))
    path.chmod(0o600)
    seen = look_at_policy(path)
    assert seen.error is None
    assert seen.expiries_ms == {"alice": 1_798_761_600_000}
    assert seen.revoked == {"bob"}
    assert seen.rule_keys == {"rule 1 (fraud*)": (2, ("alice", "bob"))}
    assert not seen.is_open
    path.chmod(0o666)
    assert look_at_policy(path).is_open
