"""From training to a gated release, cell by cell: open it as a notebook, or run it.

Needs a repository: `modelcast dev up` and `modelcast init` make one here. Each publication is tried, measured and
compared with the live version before anything goes out.
"""

# %% Data: what happened, and a part of it that no model sees in training
import numpy as np
import onnxruntime
import polars as pl
from sklearn.linear_model import LogisticRegression

import modelcast
from modelcast import golden
from modelcast.errors import GateError
from modelcast.publisher import ModelPublisher

rng = np.random.default_rng(7)
amount, age = rng.gamma(2.0, 50.0, 4_000), rng.integers(18, 90, 4_000).astype(float)
fraud = (rng.random(4_000) < 1 / (1 + np.exp(2.0 - 0.03 * amount + 0.02 * age))).astype(int)
frame = pl.DataFrame({"amount": amount, "age": age, "fraud": fraud})
training, holdout = frame.head(3_000), frame.tail(1_000)


def trained(*fields: str) -> LogisticRegression:
    return LogisticRegression(max_iter=1_000).fit(training.select(fields).to_numpy(), training["fraud"].to_numpy())


# %% Publish: nothing goes live that is worse than what is live
publisher = ModelPublisher()
measured = {"evaluate": holdout, "label": "fraud", "require": ["auc>=0.6", "auc>=champion-0.005"]}

first = publisher.publish(
    "fraud-notebook",
    trained("amount", "age"),
    examples=training,
    fields=["amount", "age"],
    **measured,
    release=True,
    progress=True,
)
print(first)

# %% A model that knows less is refused, and says by how much
try:
    publisher.publish("fraud-notebook", trained("age"), examples=training, fields=["age"], **measured, release=True)
except GateError as error:
    print(error.message)

# %% What would be published, and sent, without doing it
print(
    publisher.publish(
        "fraud-notebook",
        trained("amount", "age"),
        examples=training,
        fields=["amount", "age"],
        metrics={"rows": training.height},
        dry_run=True,
    )
)
publisher.close()

# %% The live version's files, verified, for any other runtime
pulled = modelcast.pull("fraud-notebook", "fraud-model", force=True)
examples = golden.read(pulled.directory / "examples.npz")
session = onnxruntime.InferenceSession(pulled.graph)
(scores,) = session.run(["probabilities"], dict(examples.inputs))
off = np.abs(scores - examples.outputs["probabilities"]).max()
print(f"{pulled.manifest.id} scored {len(scores)} rows, {off:.1e} off")
