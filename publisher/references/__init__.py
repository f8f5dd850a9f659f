"""Models that lie elsewhere: `mlflow:…` and `hf:…` become files on this disk. One module a place."""
