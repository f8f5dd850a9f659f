package scoring;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.Record;

/**
 * Decodes one event, runs the model on it, and hands on the scores as Avro.
 *
 * <p>One at a time, because Kafka Streams commits the offset of every record it has handed over: rows held back for a
 * larger batch would be lost in a crash unless each went through a state store and its changelog topic first.
 */
final class Scorer extends ContextualProcessor<byte[], byte[], byte[], byte[]> {
    private final Model model;
    private final AtomicLong left;
    private final CountDownLatch ended;
    private final Map<String, Input> inputs = new LinkedHashMap<>();
    private final Map<String, OnnxTensor> feeds = new HashMap<>();
    private final Events events;
    private final FloatBuffer scores;
    private final Map<String, OnnxTensor> results;
    private final ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    private final BinaryEncoder encoder = EncoderFactory.get().directBinaryEncoder(bytes, null);

    Scorer(Model model, String schema, AtomicLong left, CountDownLatch ended) {
        this.model = model;
        this.left = left;
        this.ended = ended;
        try {
            for (String name : model.plan.inputs().keySet()) {
                int width = model.widthOf(model.session.getInputInfo().get(name));
                inputs.put(name, new Input(model.environment, model.typeOf(name), width));
            }
            int width = model.widthOf(model.session.getOutputInfo().get(model.plan.output()));
            scores = ByteBuffer.allocateDirect(width * Float.BYTES).order(ByteOrder.nativeOrder()).asFloatBuffer();
            OnnxTensor result = OnnxTensor.createTensor(model.environment, scores, new long[] {1, width});
            results = Map.of(model.plan.output(), result);
        } catch (OrtException error) {
            throw new IllegalStateException(error);
        }
        events = model.plan.isAvro() ? new AvroEvents(schema, model.plan, inputs) : new JsonEvents(model.plan, inputs);
    }

    @Override
    public void process(Record<byte[], byte[]> event) {
        try {
            events.read(event.value());
            for (Map.Entry<String, Input> input : inputs.entrySet()) {
                feeds.put(input.getKey(), input.getValue().tensor());
            }
            model.session.run(feeds, results).close();
            inputs.values().forEach(Input::release);
            context().forward(event.withValue(encoded()));
        } catch (OrtException | IOException error) {
            throw new IllegalStateException(error);
        }
        if (left.decrementAndGet() == 0) {
            ended.countDown();
        }
    }

    private byte[] encoded() throws IOException {
        bytes.reset();
        encoder.writeArrayStart();
        encoder.setItemCount(scores.capacity());
        for (int place = 0; place < scores.capacity(); place++) {
            encoder.startItem();
            encoder.writeFloat(scores.get(place));
        }
        encoder.writeArrayEnd();
        encoder.flush();
        return bytes.toByteArray();
    }
}
