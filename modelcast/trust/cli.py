"""`keys`: signing keys of this user, and the policy that says whom to trust."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from modelcast import folders
from modelcast.cli.options import CommandContext, plain
from modelcast.cli.output import printable
from modelcast.errors import ConfigError, ExitCode, UsageError
from modelcast.trust import clock, keys
from modelcast.trust.policy import (
    ENV_TRUST_POLICY,
    MAX_WORDS_CHARS,
    Rule,
    TrustPolicy,
    WhenStale,
    age_words,
    epoch_ms,
    policy_path,
    read_policy,
)
from modelcast.trust.signing import key_folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make signing keys, and say whose signatures count.",
    epilog="docs/TRUST.md is a short guide: signing, second approvals, what to do after a leak.",
)

PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        "--trust-policy",
        metavar="FILE",
        help="The trust policy. Default: MODELCAST_TRUST_POLICY, else trust.toml in the user's config folder.",
        show_default=False,
    ),
]


@app.command()
@plain
def new(
    context: CommandContext,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The key's name, or a path to write it to: ./ci/release.key")
    ],
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help="Encrypt it with a passphrase: asked for, or MODELCAST_KEY_PASSPHRASE if that is set."
        ),
    ] = False,
) -> None:
    """Make a key. The private half stays in a file that only this user can read."""
    is_path = "/" in name or name.endswith(keys.PRIVATE_SUFFIX)
    path = Path(name).expanduser() if is_path else key_folder() / name
    stem = path.name.removesuffix(keys.PRIVATE_SUFFIX)
    secret = keys.passphrase_from_environment()
    if passphrase and secret is None:
        secret = _asked_twice()
    made = keys.generate(stem, path.parent, passphrase=secret)
    private, public = path.parent / f"{stem}{keys.PRIVATE_SUFFIX}", path.parent / f"{stem}{keys.PUBLIC_SUFFIX}"
    context.output.result(
        {
            "name": stem,
            "key_id": made.key_id,
            "public": str(made.public),
            "private_file": str(private),
            "public_file": str(public),
            "encrypted": secret is not None,
        },
        f"Made key [bold]{escape(stem)}[/bold] {made.key_id}\n"
        f"  private  {escape(str(private))}{'' if secret is None else ' (encrypted)'}\n"
        f"  public   {escape(str(public))}",
    )
    context.output.say(
        f"Sign with [bold]--sign {escape(name)}[/bold]; let others trust it with "
        f"[bold]modelcast keys trust {escape(str(public))} --models NAME[/bold]"
    )


@app.command()
@plain
def show(
    context: CommandContext,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A key's name or file; all of this user's if none is named.")
    ] = None,
) -> None:
    """Show the public halves of this user's keys."""
    folder = key_folder()
    named: list[str | Path] = [name] if name is not None else sorted(folder.glob(f"*{keys.PUBLIC_SUFFIX}"))
    rows = []
    for entry in named:
        given = Path(f"{entry}".removesuffix(keys.PRIVATE_SUFFIX) + keys.PUBLIC_SUFFIX) if _is_private(entry) else entry
        found, public = keys.load_public(given, folder)
        rows.append({"name": found, "key_id": public.key_id, "public": str(public)})
    if context.output.json:
        context.output.result({"folder": str(folder), "keys": rows})
    elif rows:
        context.output.table(("NAME", "KEY ID", "PUBLIC KEY"), ((r["name"], r["key_id"], r["public"]) for r in rows))
    else:
        context.output.say(f"No keys in {escape(str(folder))}. Make one with: [bold]modelcast keys new NAME[/bold]")


@app.command()
@plain
def trust(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.pub", help="The public key: of this user, or from a file.")],
    models: Annotated[
        list[str] | None,
        typer.Option("--models", metavar="PATTERN", help="Models it may sign for: fraud, 'fraud*', '*'. Repeatable."),
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option("--threshold", min=1, help="How many of the rule's keys must sign. Default: as it is, or 1."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="DATE", help="When the key stops counting: 2027-06-30, or a time. UTC."),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", metavar="AGE", help="How old these models' newest release may be: 30d, 36h."),
    ] = None,
    when_stale: Annotated[
        WhenStale | None, typer.Option("--when-stale", help="What happens with a model whose newest release is older.")
    ] = None,
    policy: PolicyFile = None,
) -> None:
    """Let a key sign for models: adds it to a trust policy, and leaves all else there as it is."""
    from modelcast.trust.writing import trust_key

    if not models:
        raise UsageError(
            "no models are named", hint="Name them: --models fraud, --models 'fraud*' or, for all, --models '*'"
        )
    named, public = keys.load_public(name, key_folder())
    path = _policy_file(policy)
    written = trust_key(
        path,
        named,
        public,
        models,
        threshold=threshold,
        expires_ms=_expires_ms(expires),
        max_age=max_age,
        when_stale=when_stale,
    )
    rule = next(rule for rule in written.rules if list(rule.models) == list(models))
    _told(context, path, written, f"{rule}: {rule.threshold} of {', '.join(rule.keys)}{_age(rule)}")
    if len(rule.keys) > rule.threshold == 1:
        context.output.say("Each of them is enough alone; ask for more with [bold]--threshold[/bold]")
    trusted = next(key for key in written.keys.values() if key.public == public)
    if trusted.revoked is not None:
        context.output.warn(
            f"{trusted.name} is still revoked ({trusted.revoked}) and signs for nothing: "
            f"make another key, or take that line out of {path}"
        )
    _warn_of_dead_rules(context, written)


@app.command()
@plain
def revoke(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key, as the policy calls it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why: whoever is refused a version is told.")] = "revoked",
    policy: PolicyFile = None,
) -> None:
    """Let a key's signatures count for nothing any more, also those it made before."""
    from modelcast.trust.writing import revoke_key

    if not reason.strip() or len(reason) > MAX_WORDS_CHARS:
        raise UsageError(f"a reason has 1 to {MAX_WORDS_CHARS} characters", hint="Write e.g. --reason 'laptop stolen'")
    path = _policy_file(policy)
    written = revoke_key(path, name, reason)
    _told(context, path, written, f"{name} is revoked: {reason}")
    _warn_of_dead_rules(context, written)


@app.command()
@plain
def check(context: CommandContext, policy: PolicyFile = None) -> None:
    """Check a trust policy, and show what it says."""
    path = _policy_file(policy)
    found = read_policy(path)
    now_ms = _now_ms()
    _warn_of_dead_rules(context, found)
    if not found.rules:
        context.output.warn(f"{path} has no rules: every model is refused")
    if context.output.json:
        context.output.result(_as_json(path, found))
        return
    state = {
        name: f"revoked: {key.revoked}" if key.revoked is not None else "expired" if key.expired(now_ms) else ""
        for name, key in found.keys.items()
    }
    context.output.table(
        ("KEY", "KEY ID", "EXPIRES", ""),
        ((name, key.public.key_id, _time(key.expires_ms), state[name]) for name, key in found.keys.items()),
    )
    context.output.stdout.print()
    context.output.table(
        ("RULE", "MODELS", "SIGNATURES", "OF", "NEWEST RELEASE"),
        (
            (str(r.number), ", ".join(r.models), str(r.threshold), ", ".join(r.keys), _age(r).removeprefix(", "))
            for r in found.rules
        ),
    )
    if found.repository is not None:
        context.output.say(f"Only repository {found.repository} counts")


@app.command("reset-clock")
@plain
def reset_clock(context: CommandContext) -> None:
    """Forget the latest time seen: after a clock was wrongly far ahead, so that keys count as expired too early.

    Services that run keep it in memory: restart them afterwards.
    """
    path = folders.state_folder() / clock.FILE_NAME
    try:
        forgotten = clock.reset(folders.state_folder())
    except OSError as error:
        raise ConfigError(f"{path} can't be deleted: {error}") from error
    text = f"Forgot the latest time seen ({escape(str(path))})" if forgotten else "No time was remembered"
    context.output.result({"file": str(path), "forgotten": forgotten}, text)


def _policy_file(given: Path | None) -> Path:
    return policy_path(given) or folders.config_folder() / "trust.toml"


def _told(context: CommandContext, path: Path, policy: TrustPolicy, what: str) -> None:
    context.output.result(_as_json(path, policy), f"[bold]{escape(str(path))}[/bold]\n  {escape(printable(what))}")
    if policy_path(None) != path:
        context.output.say(
            f"Services use it with [bold]--trust-policy {escape(str(path))}[/bold] or {ENV_TRUST_POLICY}; "
            "those that have it read it again within seconds"
        )


def _warn_of_dead_rules(context: CommandContext, policy: TrustPolicy) -> None:
    now_ms = _now_ms()
    for rule in policy.rules:
        keys_of_rule = [policy.keys[name] for name in rule.keys]
        left = sum(key.revoked is None and not key.expired(now_ms) for key in keys_of_rule)
        if left < rule.threshold:
            context.output.warn(
                f"{rule} admits nothing: it wants {_count(rule.threshold, 'signature')}, "
                f"and {_count(left, 'key')} of it may still sign"
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _now_ms() -> int:
    return clock.SteadyClock(folders.state_folder()).now_ms()


def _as_json(path: Path, policy: TrustPolicy) -> dict[str, object]:
    return {
        "policy": str(path),
        "repository": policy.repository,
        "keys": [
            {
                "name": name,
                "key_id": key.public.key_id,
                "public": str(key.public),
                "expires_ms": key.expires_ms,
                "revoked": key.revoked,
            }
            for name, key in policy.keys.items()
        ],
        "rules": [
            {
                "models": list(rule.models),
                "keys": list(rule.keys),
                "threshold": rule.threshold,
                "max_age_ms": rule.max_age_ms,
                "when_stale": None if rule.max_age_ms is None else str(rule.when_stale),
            }
            for rule in policy.rules
        ],
    }


def _age(rule: Rule) -> str:
    return "" if rule.max_age_ms is None else f", at most {age_words(rule.max_age_ms)} old, else {rule.when_stale}"


def _expires_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return epoch_ms(text)
    except (ValueError, OverflowError):
        raise UsageError(f"--expires {text!r} is not a date", hint="Write e.g. --expires 2027-06-30") from None


def _time(ms: int | None) -> str:
    return "never" if ms is None else datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def _is_private(entry: str | Path) -> bool:
    return str(entry).endswith(keys.PRIVATE_SUFFIX)


def _asked_twice() -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody can be asked for a passphrase: this is no terminal",
            hint="Put it into MODELCAST_KEY_PASSPHRASE.",
        )
    try:
        first: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    except typer.Abort:  # Ctrl-C: its exit code is not that of a fault
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return first
