"""A real Apache Kafka on this machine with nothing to set up: for `modelcast dev`, the demo and the tests.

java.py      which Java runs it
jars.py      Kafka's jars: fetched once, checked against a committed list of digests
ports.py     free ports
process.py   a process known by pid and start time
settings.py  server.properties and log4j2.properties of one node
broker.py    `LocalBroker`: start, stop, kill, restart, pause
service.py   the user's one dev broker, which outlives the command that started it
cli.py       `modelcast dev up | down | status | reset`
"""

from __future__ import annotations
