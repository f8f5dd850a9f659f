"""Release marks of the models in use: what was seen is remembered before it is acted upon.

A release below its model's mark is an old one replayed, or the registry lost records. A mark counts as long as the keys
that signed it are trusted with the model: a sequence run up by a leaked key is forgotten when the key is revoked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcast.errors import ModelcastError
from modelcast.names import ModelRef
from modelcast.registry.image import RegistryImage
from modelcast.trust.admission import Admission

from .line import Line
from .state import Marks, Signers

LOGGER: Final = logging.getLogger("modelcast.control")

# Marks are looked at anew this often where nothing else changed: the keys that signed a release may have expired.
_TICK_MS: Final = 1_000


class Marking:
    """The marks of one instance; for the control thread only.

    Args:
        state_dir: Where they are kept over restarts; None keeps them in memory.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._marks = Marks(state_dir)
        self._last: _Raised | None = None

    def raised(
        self, image: RegistryImage, admission: Admission, lines: Mapping[ModelRef, Line]
    ) -> Mapping[ModelRef, int | Exception]:
        """The marks of all that follow releases, raised to their champions; an error where they can't be read.

        Args:
            image: Made under `admission`.
        """
        tick = admission.now_ms() // _TICK_MS
        if self._last is not None and self._last.is_of(image, admission, lines, tick):
            return self._last.marks
        self._last = None
        marks: dict[ModelRef, int | Exception] = {}
        seen: dict[str, tuple[int, Signers]] = {}
        for ref, line in lines.items():
            if ref.version is not None:
                continue
            try:
                mark = self._mark(image, admission, ref.model)
            except ModelcastError as error:
                if str(error) != str(line.fault):
                    LOGGER.error("%s stays as it is: %s", ref, error)
                marks[ref] = error
                continue
            entry = image.models.get(ref.model)
            champion = entry.champion if entry is not None else None
            if entry is not None and champion is not None and champion.sequence >= mark:
                mark, standing = champion.sequence, entry.standings.get(champion.sequence)
                seen[ref.model] = mark, () if standing is None else standing.signers
            marks[ref] = mark
        if image.repository is not None and seen:
            try:
                self._marks.advance_all(image.repository.uuid, seen)
            except ModelcastError as error:
                LOGGER.warning("%s", error)
        if not any(isinstance(mark, Exception) for mark in marks.values()):
            self._last = _Raised(image, admission, lines, tick, marks)
        return marks

    def _mark(self, image: RegistryImage, admission: Admission, model: str) -> int:
        if image.repository is None:
            return 0
        return self._marks.get(image.repository.uuid, model, lambda signers: admission.vouch(model, signers).admitted)


@dataclass(frozen=True, slots=True)
class _Raised:
    """Marks, and what they were raised by: a turn of the control plane mostly finds all of it as it was."""

    image: RegistryImage
    admission: Admission
    lines: Mapping[ModelRef, Line]
    tick: int
    marks: Mapping[ModelRef, int | Exception]

    def is_of(self, image: RegistryImage, admission: Admission, lines: Mapping[ModelRef, Line], tick: int) -> bool:
        """Whether that is what they would be raised by now."""
        return self.image is image and self.admission is admission and self.lines is lines and self.tick == tick
