"""The registry: every version and release of every model, as one immutable image."""
