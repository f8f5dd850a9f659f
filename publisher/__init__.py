"""The training side: publish models onto the log, release them, roll back."""

from .publisher import ModelPublisher
from .session import Published

__all__ = ["ModelPublisher", "Published"]
