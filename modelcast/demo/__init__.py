"""`modelcast demo`: a year of flights, scored as they depart, while the model is retrained, published and swapped.

cli.py          the command: stage, play, figures, report, exit code
show.py         the whole of it, from setting the stage to the figures
stage.py        a broker, a repository, topics and a folder of its own; all gone afterwards
flights.py      the data: departures from New York in 2013, in the order they flew
training.py     what is trained on the flights that have landed
feeder.py       sends a month of flights as events, at a pace
scorer.py       the scorer: a process of its own, and what its report lines say
year.py         the plot: months, releases, a model to be refused, a poison event, a rollback
topics.py       what lies on the topics: counted meanwhile, read whole at the end
accounting.py   every figure, from what was read (pure)
result.py       the outcome as values, and whether the promises held (pure)
board.py        what is going on, for whoever watches
view.py         the live table and the tables at the end
plots.py        the report's plots; report.py the report
interrupts.py   Ctrl-C and its like
"""

from __future__ import annotations

EXTRA_HINT = "Install what the demonstration needs: pip install 'modelcast[demo]'"
