"""Benchmarks: each prints its figures as JSON, with all sides measured in one run on one broker.

python -m benchmarks.stream --events 1000000 --json
"""
