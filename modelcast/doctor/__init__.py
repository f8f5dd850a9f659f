"""What keeps modelcast from working here, and the line that mends it: `modelcast doctor`.

Observing is apart from judging. What is there to be seen is seen by

    contact.py       one broker, step by step: name, connection, TLS, protocol, login
    sights.py        what was seen, as values
    look.py          the cluster, the repository and this host, looked at through the project's own parts

and what it means is said by pure functions over these values, one module a subject (`check_*.py`), as `Finding`s.
"""
