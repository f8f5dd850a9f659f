"""From a trained object to a graph: one module a framework; `converters` picks the one for an object."""
