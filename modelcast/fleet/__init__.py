"""The fleet: what instances say of themselves on the status topic, put together."""
