"""Events, as the command line sends and shows them, and the topic that describes their schemas."""
