"""What is drawn of a publication on a terminal, in a notebook, and where nothing may be drawn."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from modelcast.publisher import progress
from modelcast.publisher.progress import PublishProgress


def publish(shown: PublishProgress) -> None:
    """Calls as a publication makes them: steps, then bytes from another thread."""
    with shown:
        shown.step("check [N, 2]")
        shown.step("upload")
        sender = threading.Thread(target=shown.moved, args=("upload", 1_500_000, 3_000_000))
        sender.start()
        sender.join()


def test_on_a_terminal_a_line_moves_and_is_gone_in_the_end() -> None:
    drawn = io.StringIO()
    publish(PublishProgress(Console(file=drawn, force_terminal=True, width=100)))
    assert "upload" in drawn.getvalue()
    assert "1.5/3.0 MB" in drawn.getvalue()
    assert drawn.getvalue().endswith("\x1b[2K"), "the line was cleared"


def test_nothing_is_drawn_into_a_pipe() -> None:
    drawn = io.StringIO()
    publish(PublishProgress(Console(file=drawn)))
    assert drawn.getvalue() == ""


@pytest.mark.filterwarnings("error")
def test_a_notebook_without_widgets_or_even_ipython_gets_a_line_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda _: None)
    publish(PublishProgress(Console(file=io.StringIO(), force_jupyter=True)))
    assert "Traceback" not in capsys.readouterr().err
    drawn = io.StringIO()
    shown = PublishProgress(Console(file=drawn, force_jupyter=True))
    monkeypatch.setattr(shown._console, "is_jupyter", False)  # what it would print to the cell
    publish(shown)
    assert drawn.getvalue() == "check [N, 2] …\nupload …\n"
