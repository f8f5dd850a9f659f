"""What tests of modelcast, and of applications built on it, run against: an in-memory log, and a real local broker."""

from __future__ import annotations
