"""Whether this host has the room, the packages, the runtime and the policy that models need. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from modelcast.errors import MissingExtraError, ModelcastError
from modelcast.files.limit import LIMIT_VARIABLE
from modelcast.folders import CACHE_VARIABLE

from .findings import Finding, fault, ok, warning
from .mending import day, modelcast
from .sights import FolderSight, HostSight, PolicySight, Question, RuntimeSight, VersionNeeds

# Long enough to have a new key agreed on and its policy rolled out.
KEY_ENDS_SOON_MS: Final = 14 * 24 * 3600 * 1000
_CPU, _GPU = "onnxruntime", "onnxruntime-gpu"


def check_host(question: Question, host: HostSight, released: Sequence[VersionNeeds], at_ms: int) -> Iterator[Finding]:
    """Folders, packages, runtime and device, trust policy."""
    for folder in host.folders:
        yield from _folder(folder, sum(version.bytes for version in released))
    for wanted in host.requirements:
        if not wanted.is_met:
            yield fault(
                "packages",
                f"{wanted.package} {wanted.installed} is installed, and modelcast needs {wanted.wanted}",
                f"pip install '{wanted.package}{wanted.wanted}'",
            )
    if host.requirements and all(wanted.is_met for wanted in host.requirements):
        yield ok("packages", f"{len(host.requirements)} packages are of versions that modelcast takes")
    yield from _runtime(host.runtime)
    yield from _needs(question, host.runtime, released)
    yield from _policy(host.policy, at_ms)


def _folder(folder: FolderSight, needed_bytes: int) -> Iterator[Finding]:
    check = "cache" if folder.variable == CACHE_VARIABLE else "state"
    free = "" if folder.free_bytes is None else f", {_size(folder.free_bytes)} free"
    clear = " (modelcast cache clear)" if check == "cache" else ""
    if folder.error:
        yield fault(
            check,
            f"nothing can be written to the {folder.purpose} folder {folder.path}: {folder.error}{free}",
            f"Make it a folder this user may write, free some space{clear}, or set {folder.variable} to another.",
        )
    elif check == "cache" and folder.free_bytes is not None and folder.free_bytes < needed_bytes:
        yield warning(
            check,
            f"released models take {_size(needed_bytes)}, and the disk of the {folder.purpose} {folder.path} has "
            f"{_size(folder.free_bytes)} free",
            f"Free some space, set {folder.variable} to a larger disk, or {LIMIT_VARIABLE} to what it may take.",
        )
    else:
        yield ok(check, f"the {folder.purpose} folder {folder.path} can be written{free}")


def _runtime(runtime: RuntimeSight) -> Iterator[Finding]:
    if runtime.error is not None:
        yield _of("runtime", runtime.error, "pip install 'modelcast[cpu]'")
        return
    both = {_CPU, _GPU} <= runtime.packages.keys()
    if both:
        yield warning(
            "runtime",
            f"{' and '.join(f'{name} {version}' for name, version in sorted(runtime.packages.items()))} are both "
            "installed, and are one module: the one that came last has overwritten the other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'modelcast[gpu]' (or [cpu])",
        )
    else:
        yield ok("runtime", f"ONNX Runtime {runtime.version}")
    fault_of_gpu = runtime.gpu_fault
    if fault_of_gpu is None:
        yield ok("gpu", f"models run on {runtime.resolved}")
    elif runtime.device != "auto":
        yield _of("gpu", fault_of_gpu, "--device cpu")
    elif runtime.has_gpu or not isinstance(fault_of_gpu, MissingExtraError):
        why = fault_of_gpu.message.partition(", and ")[2] or fault_of_gpu.message
        what = "a CUDA device is here" if runtime.has_gpu else "this ONNX Runtime has CUDA"
        yield warning(
            "gpu",
            f"{what}, and models run on the CPU: {why}",
            fault_of_gpu.hint or "See docs/GPU.md, or use --device cpu.",
        )
    else:
        yield ok("gpu", "models run on the CPU; no CUDA device is here")


def _needs(question: Question, runtime: RuntimeSight, released: Sequence[VersionNeeds]) -> Iterator[Finding]:
    """Whether the runtime reads what is released."""
    limits = runtime.limits
    if limits is None:
        return
    unread: dict[str, list[str]] = {}
    for version in released:
        beyond = [
            f"operator set {number} of {domain or 'ai.onnx'}, and this runtime knows {limits.opsets[domain]}"
            for domain, number in version.opsets.items()
            if number > limits.opsets.get(domain, number)
        ]
        if version.ir_version > limits.ir_version:
            beyond.append(f"ONNX format {version.ir_version}, and this runtime knows {limits.ir_version}")
        if beyond:
            unread.setdefault("; ".join(beyond), []).append(f"{version.model}@{version.version}")
    for why, versions in unread.items():
        named = ", ".join(versions[:3]) + (f" and {len(versions) - 3} more" if len(versions) > 3 else "")
        package = _GPU if _GPU in runtime.packages else _CPU
        yield fault(
            "opset",
            f"{named} can't be loaded by ONNX Runtime {runtime.version} here: needs {why}",
            f"pip install -U {package}, or roll back meanwhile: "
            + modelcast(question, "rollback", versions[0].partition("@")[0]),
        )
    if released and not unread:
        yield ok("opset", f"this runtime reads all {len(released)} released version(s)")


def _policy(policy: PolicySight, at_ms: int) -> Iterator[Finding]:
    if policy.path is None:
        return
    if policy.error is not None:
        yield _of(
            "trust-policy", policy.error, f"Mend {policy.path}, or set MODELCAST_TRUST_POLICY to one that is right."
        )
        return
    gone = policy.revoked | {name for name, until_ms in policy.expiries_ms.items() if until_ms <= at_ms}
    wrong = False
    if policy.is_open:
        wrong = True
        yield warning(
            "trust-policy",
            f"others than its owner may write {policy.path}: they decide whom this host believes",
            f"chmod go-w {policy.path}",
        )
    for rule, (threshold, keys) in policy.rule_keys.items():
        left = [name for name in keys if name not in gone]
        ending = [
            name for name in left if policy.expiries_ms.get(name, at_ms + KEY_ENDS_SOON_MS) < at_ms + KEY_ENDS_SOON_MS
        ]
        if len(left) < threshold:
            wrong = True
            yield fault(
                "trust-policy",
                f"{policy.path}, {rule}: {threshold} signature(s) are asked for and {len(left)} key(s) count; "
                f"{', '.join(sorted(set(keys) & gone))} expired or revoked",
                f"modelcast keys trust NAME --policy {policy.path}, and sign anew: modelcast sign MODEL",
            )
        elif len(left) - len(ending) < threshold:
            wrong = True
            until = ", ".join(f"{name} ({day(policy.expiries_ms[name])})" for name in ending)
            yield warning(
                "trust-policy",
                f"{policy.path}, {rule}: too few keys are left when these expire: {until}",
                f"modelcast keys trust NAME --policy {policy.path}, and sign anew: modelcast sign MODEL",
            )
    if not wrong:
        yield ok("trust-policy", f"{policy.path} can be used")


def _of(check: str, error: ModelcastError, otherwise: str) -> Finding:
    return fault(check, error.message, error.hint or otherwise)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
