"""What `publish` gives back, as code, people and notebooks read it; what the package offers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcast import publisher
from modelcast.publisher import Published

from .registry_records import manifest, release

MANIFEST = replace(
    manifest(3),
    model="a<b",
    metrics={"auc": 0.9130001, "rows": 1e6},
    gates=("auc 0.913 >= 0.9 (champion, a@2 has 0.9)",),
)


def test_a_publication_says_itself_in_a_line() -> None:
    assert repr(Published(MANIFEST, release(1, 3), 2048, 1024)) == (
        "Published(a<b@3, released, 1,024 of 2,048 bytes sent, auc=0.913, rows=1e+06, "
        "required: auc 0.913 >= 0.9 (champion, a@2 has 0.9))"
    )
    assert repr(Published(manifest(3), None, 2048, 1024, dry_run=True)).endswith(
        "@3, dry run, at most 1,024 of 2,048 bytes to send, auc=0.9)"
    )


def test_a_notebook_gets_a_table_whose_words_are_escaped() -> None:
    drawn = Published(MANIFEST, release(1, 3), 2048, 1024)._repr_html_()
    assert drawn.startswith("<b>a&lt;b@3 (live)</b><table>")
    assert "auc 0.913 &gt;= 0.9" in drawn
    assert "(dry run)" in Published(MANIFEST, release(1, 3), 2048, 1024, dry_run=True)._repr_html_()


def test_a_program_gets_the_same_as_data() -> None:
    told = Published(MANIFEST, None, 2048, 1024).as_dict()
    assert (told["version"], told["released"], told["dry_run"]) == (3, False, False)
    assert (told["bytes_total"], told["bytes_sent"], told["metrics"]) == (2048, 1024, {"auc": 0.9130001, "rows": 1e6})
    assert told["gates"] == list(MANIFEST.gates)


@pytest.mark.parametrize("name", publisher.__all__)
def test_everything_offered_is_there_and_says_what_it_is(name: str) -> None:
    assert (getattr(publisher, name).__doc__ or "").strip()
