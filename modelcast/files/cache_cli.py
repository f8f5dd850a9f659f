"""`cache`: the models this host keeps, and taking them off."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from modelcast.cli.durations import age
from modelcast.cli.options import CommandContext, plain
from modelcast.cli.output import printable
from modelcast.errors import UsageError
from modelcast.files.cache import Cache, default_root, is_cache
from modelcast.files.inventory import CachedVersion, Inventory, take_inventory
from modelcast.files.limit import LIMIT_VARIABLE

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Show the models this host keeps, so that a restart needs no fetch; clear them.",
    epilog="docs/CACHE.md tells what is kept, for how long, and what happens when the disk is full.",
)

CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        help="A folder that an application was told to use. Default: models in MODELCAST_CACHE_DIR, else the user's.",
        show_default=False,
    ),
]


@app.callback()
@plain
def cache(invoked: CommandContext, context: typer.Context, cache_dir: CacheFolder = None) -> None:
    """Show the models this host keeps: their size, who uses them, and since when nobody did.

    Unused files go, the longest unused first, when all together outgrow MODELCAST_CACHE_BYTES or the disk is short.
    """
    if context.invoked_subcommand is not None:
        if cache_dir is not None or invoked.output.json:
            raise UsageError("an option stands before the command", hint="Write: modelcast cache clear [OPTIONS]")
        return
    inventory = take_inventory(cache_dir or default_root())
    if inventory.versions and not invoked.output.json:
        invoked.output.table(
            ("VERSION", "BYTES", "FILES HERE", "LOADED BY", "LAST USED"),
            (_row(version) for version in inventory.versions),
        )
    invoked.output.result(_as_dict(inventory), _summary(inventory))


@app.command()
@plain
def clear(
    context: CommandContext,
    unused: Annotated[
        bool, typer.Option("--unused", help="Leave what some process has loaded or is fetching.")
    ] = False,
    cache_dir: CacheFolder = None,
) -> None:
    """Remove the files of models. Costs a fetch when they are wanted again, nothing else.

    Processes keep what they have loaded; the disk has its space back when they let go of it.
    """
    root = cache_dir or default_root()
    if not is_cache(root):  # a folder of somebody's is not to be made one, nor private, by a slip of the keyboard
        context.output.result(
            {"cache": str(root), "files": 0, "bytes": 0, "left_bytes": 0, "kept_bytes": 0},
            f"There is no cache of models in {escape(printable(str(root)))}: nothing was removed",
        )
        return
    with closing(Cache(root)) as opened:
        removed = opened.clear(unused_only=unused)
    left = take_inventory(root)
    context.output.result(
        {
            "cache": str(root),
            "files": removed.files,
            "bytes": removed.bytes,
            "left_bytes": left.bytes,
            "kept_bytes": left.kept_bytes,
        },
        f"Removed {removed.files:,} files, {removed.bytes:,} bytes"
        + (f"; {left.bytes:,} bytes are in use and stay" if left.bytes else "")
        + (f"; {_kept(left)}" if left.kept_bytes else ""),
    )


def _as_dict(inventory: Inventory) -> dict[str, Any]:
    return {
        "cache": str(inventory.root),
        "limit_bytes": inventory.limit_bytes,
        "files": inventory.files,
        "bytes": inventory.bytes,
        "used_bytes": inventory.used_bytes,
        "kept_bytes": inventory.kept_bytes,
        "unnamed_files": inventory.unnamed_files,
        "fetching": list(inventory.fetching),
        "versions": [
            {
                "repository": version.repository,
                "model": version.id.name,
                "version": version.id.version,
                "bytes": version.bytes,
                "cached_bytes": version.cached_bytes,
                "files": version.files,
                "cached_files": version.cached_files,
                "used_ms": version.used_ms,
                "processes": list(version.processes),
            }
            for version in inventory.versions
        ],
    }


def _row(version: CachedVersion) -> tuple[str, ...]:
    here = "all" if version.is_whole else f"{version.cached_files} of {version.files}"
    pids = ", ".join(map(str, version.processes)) or "-"
    return (str(version.id), f"{version.bytes:,}", here, pids, f"{age(time.time() * 1000 - version.used_ms)} ago")


def _summary(inventory: Inventory) -> str:
    where = escape(printable(str(inventory.root)))
    lines = [f"No models in {where} (limit {inventory.limit_bytes:,} bytes)"]
    if inventory.files:
        lines = [
            f"{inventory.files:,} files, {inventory.bytes:,} bytes in {where}",
            f"{inventory.used_bytes:,} bytes in use; limit {inventory.limit_bytes:,} ({LIMIT_VARIABLE})",
        ]
    if inventory.kept_bytes:
        lines.append(f"Not counted: {_kept(inventory)}")
    if inventory.unnamed_files:
        lines.append(f"{inventory.unnamed_files:,} files belong to no version known here")
    if inventory.fetching:
        lines.append(f"Fetching now: process {', '.join(map(str, inventory.fetching))}")
    return "\n".join(lines)


def _kept(inventory: Inventory) -> str:
    return f"{inventory.kept_bytes:,} bytes are freed when the processes that have them loaded let go"
