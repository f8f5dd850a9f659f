"""A soak: everything at once, broken at random for as long as asked, judged by what shares no code with the product.

    python -m tests.soak --minutes 10 --seed 7 --report soak.json         (`make soak MINUTES=10 SEED=7`)

- `Cluster`: three brokers behind proxies (`tests.cluster`).
- `stage` makes topics and keeps what all share; `feeder` sends events, poison among them; `crew` runs the scorers of
  two groups, one of each protocol; `registrar` publishes, releases and rolls back, every second.
- `chaos` breaks things, by the seed: processes killed, ended and frozen; frames held, lost and cut; commands run, and
  killed, beside each other.
- `watch` sees whether every partition goes on; `catalogue` reads every version as it is published; `ledger` (pure) and
  `judge` compare what went in with what came out, all the time, and once more from the beginning at the end.

Rounds of faults end in a calm: nothing is broken any more, and everything that was sent has to be scored, once.
"""
