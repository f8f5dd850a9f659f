package scoring;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;

/** One row of one input: numbers lie in memory that the session reads in place, texts are made into a tensor anew. */
final class Input {
    private final OrtEnvironment environment;
    private final OnnxJavaType type;
    private final long[] shape;
    private FloatBuffer floats;
    private LongBuffer longs;
    private String[] texts;
    private OnnxTensor tensor;

    Input(OrtEnvironment environment, OnnxJavaType type, int width) throws OrtException {
        this.environment = environment;
        this.type = type;
        shape = new long[] {1, width};
        switch (type) {
            case FLOAT -> {
                floats = memory(width * Float.BYTES).asFloatBuffer();
                tensor = OnnxTensor.createTensor(environment, floats, shape);
            }
            case INT64 -> {
                longs = memory(width * Long.BYTES).asLongBuffer();
                tensor = OnnxTensor.createTensor(environment, longs, shape);
            }
            case STRING -> texts = new String[width];
            default -> throw new IllegalArgumentException("no input of type " + type);
        }
    }

    private static ByteBuffer memory(int bytes) {
        return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    }

    boolean isText() {
        return type == OnnxJavaType.STRING;
    }

    void put(int place, double number) {
        if (floats != null) {
            floats.put(place, (float) number);
        } else {
            longs.put(place, (long) number);
        }
    }

    void put(int place, String text) {
        texts[place] = text;
    }

    /** The row as it stands; texts' tensors are closed by {@link #release}. */
    OnnxTensor tensor() throws OrtException {
        if (isText()) {
            tensor = OnnxTensor.createTensor(environment, texts, shape);
        }
        return tensor;
    }

    void release() {
        if (isText()) {
            tensor.close();
        }
    }
}
