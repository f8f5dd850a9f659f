"""From what was seen to what is said of it. Pure.

findings(question, Looking(question, connection).look())
"""

from __future__ import annotations

from .check_access import check_access
from .check_connection import check_clocks, check_connection, check_versions_of_brokers
from .check_host import check_host
from .check_repository import check_repository
from .check_topics import check_topics
from .findings import Finding
from .sights import Question, Sight


def findings(question: Question, sight: Sight) -> tuple[Finding, ...]:
    """Everything that is to be said, what others rest on first."""
    found = [*check_connection(question, sight), *check_versions_of_brokers(question, sight)]
    found += check_clocks(question, sight)
    if sight.cluster is not None:
        found += check_access(question, sight)
        found += check_topics(question, sight.cluster)
    repository = sight.repository
    if sight.cluster is not None and repository is not None:
        found += check_repository(question, sight.cluster, repository)
    found += check_host(question, sight.host, repository.released if repository is not None else (), sight.at_ms)
    return tuple(dict.fromkeys(found))
