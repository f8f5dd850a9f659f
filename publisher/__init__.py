"""The training side: publish models onto the log, release them, roll back."""

from .published import Published
from .publisher import ModelPublisher

__all__ = ["ModelPublisher", "Published"]
