"""This host, looked at: folders, packages, the runtime and its device, the trust policy. Leaves nothing behind."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from modelcast.errors import MissingExtraError, ModelcastError, UsageError
from modelcast.files.cache import default_root
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE, state_folder
from modelcast.runtime import limits, resolve, versions
from modelcast.runtime.cuda import driver_fault
from modelcast.trust.policy import policy_path, read_policy

from .sights import FolderSight, HostSight, PolicySight, Requirement, RuntimeSight

# A small file needs a block; a disk on which this fails is full.
_TRIAL_BYTES: Final = 64 << 10
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([<>=!~0-9.,a-z *]*)")
_BOUND: Final = re.compile(r"(>=|<=|==|<|>)\s*([0-9]+(?:\.[0-9]+)*)")
# Distributions that bring one and the same module: of two, the one installed last has overwritten the other.
_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


def look_at_host(*, device: str = "auto", policy: Path | None = None) -> HostSight:
    """Everything about this host.

    Args:
        device: Where models are to run.
        policy: The trust policy given; else that of `MODELCAST_TRUST_POLICY`, or the user's.
    """
    return HostSight(
        folders=(
            look_at_folder("model cache", default_root(), CACHE_VARIABLE),
            look_at_folder("state", state_folder(), STATE_VARIABLE),
        ),
        requirements=tuple(_requirements()),
        runtime=look_at_runtime(device),
        policy=look_at_policy(policy),
    )


def look_at_folder(purpose: str, folder: Path, variable: str) -> FolderSight:
    """Whether something can be written there: tried, because permissions alone do not say (full, read-only, quota)."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free_bytes, error = None, ""
    try:
        free_bytes = shutil.disk_usage(there).free
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=there) as file:
            file.write(b"\0" * _TRIAL_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        error = problem.strerror or str(problem)
    return FolderSight(purpose, str(folder), variable, error, free_bytes)


def look_at_runtime(device: str) -> RuntimeSight:
    """ONNX Runtime and its device: a graph of one addition is run where there is one."""
    packages = dict(_installed(_RUNTIMES))
    has_gpu = driver_fault(0) is None
    try:
        version = versions()["onnxruntime"]
    except MissingExtraError as error:
        return RuntimeSight(device, error=error, packages=packages, has_gpu=has_gpu)
    resolved, gpu_fault = "", None
    try:
        resolved = str(resolve(device if device.startswith("cuda") else "cuda" if device == "auto" else device))
    except UsageError as error:
        gpu_fault = error
        if device == "auto":
            resolved = "cpu"
    return RuntimeSight(device, version, None, packages, resolved, gpu_fault, has_gpu, limits())


def look_at_policy(given: Path | None) -> PolicySight:
    """The trust policy, if one is named."""
    path = policy_path(given)
    if path is None:
        return PolicySight()
    try:
        policy = read_policy(path)
        mode = path.stat().st_mode
    except ModelcastError as error:
        return PolicySight(str(path), error)
    except OSError as error:
        return PolicySight(str(path), UsageError(f"trust policy {path} can't be read: {error.strerror}"))
    return PolicySight(
        str(path),
        None,
        {name: key.expires_ms for name, key in policy.keys.items() if key.expires_ms is not None},
        frozenset(name for name, key in policy.keys.items() if key.revoked is not None),
        {str(rule): (rule.threshold, rule.keys) for rule in policy.rules},
        bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and sys.platform != "win32",
    )


def _requirements() -> Iterator[Requirement]:
    """Packages that are there beside the versions modelcast asks for; of extras, what is absent is no fault."""
    try:
        lines = importlib.metadata.requires("modelcast") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder of source
        return
    for line in lines:
        text = line.partition(";")[0].strip()
        match = _REQUIREMENT.match(text)
        if match is None or match[1] == "modelcast":
            continue
        for package, installed in _installed([match[1]]):
            yield Requirement(package, match[2].strip(), installed, meets(installed, match[2]))


def _installed(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def meets(installed: str, wanted: str) -> bool:
    """Whether a version is within bounds such as `>=2.0,<3`, by its numbers."""
    have = _numbers(installed)
    for sign, bound in _BOUND.findall(wanted):
        limit = _numbers(bound)
        padded = have + (0,) * (len(limit) - len(have))
        is_met = {
            ">=": padded >= limit,
            ">": padded > limit,
            "<": padded < limit,
            "<=": padded[: len(limit)] <= limit,
            "==": padded[: len(limit)] == limit,
        }[sign]
        if not is_met:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(number) for number in leading[0].split(".")) if leading else ()
