"""Models are data: publish trained models onto Kafka, swap them live, score events inline."""

import logging

__version__ = "0.1.0"

# An application that sets up logging sees what happens; one that does not is not written to.
logging.getLogger(__name__).addHandler(logging.NullHandler())
