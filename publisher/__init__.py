"""The training side: publish models onto the log, release them, roll back, delete.

with ModelPublisher() as publisher:
    publisher.publish("fraud", pipeline, examples=frame, metrics={"auc": 0.91}, require=["auc>=champion"], release=True)
"""

from .endorsement import Endorsed
from .published import Published
from .publisher import ModelPublisher
from .removal import Collected, Removed

__all__ = ["Collected", "Endorsed", "ModelPublisher", "Published", "Removed"]
