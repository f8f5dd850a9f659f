"""Events to columns: `batch.BatchDecoder` takes values as Kafka gave them and hands back one array per event field."""
