"""`modelcast demo`: a year of flights, scored as they depart, while the model is retrained, published and swapped.

flights.py    the data: flights that departed from New York in 2013, in the order they flew
training.py   what is trained on the flights that have landed
feeder.py     sends a month of flights as events, at a pace
scorer.py     the scorer: a child process, and what its report lines say
year.py       the plot: months, releases, a model to be refused, a poison event, a rollback
topics.py     what lies on the topics at the end
accounting.py every figure, from what was read (pure)
result.py     the outcome as values, and whether the promises held
view.py       the live table · plots.py, report.py: the report
"""
