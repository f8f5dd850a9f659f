"""A client of the protocol written from docs/PROTOCOL.md and the `.avsc` files alone.

It shares no code with the package, so what the two agree on is in the text. A module here is a part of the text: `avro`
(§3), `image` (§4, §7, §8: what counts), `topics` (§4, §6: reading), `files` (§7: running), `writer` (§5).

    >>> topics = Topics("localhost:9092", "modelcast")
    >>> image = topics.catch_up()
    >>> version = image.versions["fraud", image.champion("fraud").value["version"]]
    >>> outputs = run_golden(topics.fetch(version), version.value)
"""
