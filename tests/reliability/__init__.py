"""The promises of tests/matrix.toml, the tests that prove them, and what these told when they last ran.

`python -m tests.reliability` writes docs/RELIABILITY.md; `make reliability` runs the tests first.
"""
