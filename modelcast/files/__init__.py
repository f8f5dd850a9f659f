"""Files of models, from where they are kept to this host: the cache, and what brings missing files into it."""
