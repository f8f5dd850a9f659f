package scoring;

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;

/** The session that all threads share, each call on its caller's thread, and what its inputs are. */
final class Model implements AutoCloseable {
    final Plan plan;
    final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    final OrtSession session;

    Model(Plan plan, String graph) throws OrtException {
        this.plan = plan;
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setIntraOpNumThreads(1);
            options.setInterOpNumThreads(1);
            session = environment.createSession(graph, options);
        }
    }

    OnnxJavaType typeOf(String input) throws OrtException {
        return tensor(session.getInputInfo().get(input)).type;
    }

    /** Values of one row of an input or of the output: its dimensions but the first. */
    int widthOf(NodeInfo node) {
        int width = 1;
        long[] shape = tensor(node).getShape();
        for (int place = 1; place < shape.length; place++) {
            width *= (int) shape[place];
        }
        return width;
    }

    private static TensorInfo tensor(NodeInfo node) {
        return (TensorInfo) node.getInfo();
    }

    @Override
    public void close() throws OrtException {
        session.close();
    }
}
