"""Trains a small fraud model for the README's quick start: writes fraud.joblib and transactions.csv."""

from __future__ import annotations

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

ROWS = 10_000


def main() -> None:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "id": [f"t{number}" for number in range(ROWS)],
            "amount": rng.gamma(2.0, 50.0, ROWS).round(2),
            "age": rng.integers(18, 90, ROWS),
            "country": rng.choice(["DE", "FR", "US"], ROWS),
        }
    )
    odds = 0.02 * frame["amount"] - 0.03 * frame["age"] + 1.5 * (frame["country"] == "US") - 2.0
    label = rng.random(ROWS) < 1 / (1 + np.exp(-odds))
    model = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["country"]), (StandardScaler(), ["amount", "age"])
        ),
        LogisticRegression(),
    )
    features = ["amount", "age", "country"]
    model.fit(frame[features], label)
    joblib.dump(model, "fraud.joblib")
    frame.to_csv("transactions.csv", index=False)
    auc = roc_auc_score(label, model.predict_proba(frame[features])[:, 1])
    print(f"wrote fraud.joblib (AUC {auc:.3f}) and transactions.csv ({ROWS:,} events)")


if __name__ == "__main__":
    main()
