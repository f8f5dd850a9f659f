"""Every reader of bytes from a topic or a file, given bad ones: a taste of what `make fuzz` does at length.

What each is held to stands in `tests/fuzz/reader.py`: a value or one of its declared errors, bounded memory and time.
"""

from __future__ import annotations

import pytest

from modelcast.errors import ModelcastError, SourceError
from tests.fuzz.catalogue import readers
from tests.fuzz.corpora import CORPUS, folder_of, inputs
from tests.fuzz.engines import by_dice, by_hypothesis
from tests.fuzz.reader import MAX_PEAK_BYTES, Judge, Reader

READERS = readers()
EACH = pytest.mark.parametrize("reader", READERS, ids=[reader.name for reader in READERS])
# Half a second in all for the plain ones; a run at length has thousands of each.
CASES = 40


@EACH
def test_f08_each_reader_takes_what_is_whole(reader: Reader) -> None:
    assert all(Judge(reader).judge(seed) for seed in reader.seeds)


@EACH
def test_f08_each_reader_refuses_by_its_own_errors_and_takes_little_memory(reader: Reader) -> None:
    cases = -(-CASES * reader.share // 100)
    assert by_dice(reader, cases, seed=7).judged == cases


@EACH
def test_f08_each_reader_stands_what_fuzzers_found_their_way_to(reader: Reader) -> None:
    judge = Judge(reader)
    for data in inputs(reader):
        judge.judge(data)
    assert judge.judged >= len(reader.seeds)


def test_readers_have_names_of_their_own_and_the_corpus_is_theirs() -> None:
    folders = [folder_of(reader).name for reader in READERS]
    assert len(set(folders)) == len(READERS)
    kept = CORPUS / "readers"
    assert not kept.is_dir() or {path.name for path in kept.iterdir()} <= set(folders)


def _declares(error: type[Exception]) -> Reader:
    def read(data: bytes) -> None:
        if data:
            raise error("no")

    return Reader("test", [b""], read, (SourceError,), draw=lambda _: b"x")


def test_the_judge_notices_an_error_that_is_not_declared() -> None:
    judge = Judge(_declares(KeyError))
    with pytest.raises(KeyError):
        judge.judge(b"x")
    assert not Judge(_declares(SourceError)).judge(b"x")


@pytest.mark.parametrize("message", ["", "x" * 10_000, "not a datum: MemoryError: "])
def test_the_judge_notices_a_message_that_tells_nobody_anything(message: str) -> None:
    def read(data: bytes) -> None:
        if data:
            raise ModelcastError(message)

    with pytest.raises(AssertionError):
        Judge(Reader("test", [b""], read, (ModelcastError,))).judge(b"x")


def test_the_judge_notices_a_size_that_is_believed() -> None:
    with pytest.raises(AssertionError, match="memory"):
        Judge(Reader("test", [], lambda _: bytearray(2 * MAX_PEAK_BYTES))).judge(b"x")


def test_hypothesis_plays_the_same_readers() -> None:
    reader = next(reader for reader in READERS if reader.name == "release")
    assert by_hypothesis(reader, 20, seed=3).judged >= 10


def test_each_engine_tells_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError) as by_chance:
        by_dice(_declares(KeyError), 50, seed=1)
    assert any("--seed 1" in note for note in by_chance.value.__notes__)
    with pytest.raises(KeyError) as found:
        by_hypothesis(_declares(KeyError), 50, seed=1)
    assert any("the input" in note for note in found.value.__notes__)
    capsys.readouterr()
