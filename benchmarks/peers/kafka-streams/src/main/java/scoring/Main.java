package scoring;

import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;

/**
 * Scores a topic's events with an ONNX model in a Kafka Streams topology; ends after a number of events.
 *
 * <p>One argument a setting, {@code name=value}; names with dots are Kafka Streams' own and win over those set here.
 */
public final class Main {
    private static final Duration CLOSE = Duration.ofSeconds(60);

    private Main() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, String> given = new HashMap<>();
        for (String argument : arguments) {
            String[] parts = argument.split("=", 2);
            given.put(parts[0], parts[1]);
        }
        Plan plan = Plan.read(Path.of(given.get("plan")));
        String schema = plan.isAvro() ? Files.readString(Path.of(given.get("schema"))) : null;
        AtomicLong left = new AtomicLong(Long.parseLong(given.get("count")));
        CountDownLatch ended = new CountDownLatch(1);
        AtomicReference<Throwable> failure = new AtomicReference<>();
        try (Model model = new Model(plan, given.get("graph"))) {
            Topology topology = new Topology();
            topology.addSource("events", given.get("source"));
            topology.addProcessor("scores", () -> new Scorer(model, schema, left, ended), "events");
            topology.addSink("predictions", given.get("target"), "scores");
            try (KafkaStreams streams = new KafkaStreams(topology, settings(given))) {
                streams.setUncaughtExceptionHandler(error -> {
                    failure.set(error);
                    ended.countDown();
                    return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
                });
                streams.start();
                ended.await();
                streams.close(CLOSE);
            }
        }
        if (failure.get() != null) {
            failure.get().printStackTrace();
            System.exit(1);
        }
    }

    private static Properties settings(Map<String, String> given) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "benchmark-" + given.get("target"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, given.get("bootstrap"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, given.get("state"));
        settings.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        // Large fetches, polls, buffers and batches: what the documentation says for throughput.
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), "10000");
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), "8388608");
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, "10000");
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), "262144");
        given.forEach((name, value) -> {
            if (name.contains(".")) {
                settings.put(name, value);
            }
        });
        return settings;
    }
}
