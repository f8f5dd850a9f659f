package scoring;

import java.io.IOException;
import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/**
 * Which fields of an event feed which input of the graph, and which output is the prediction.
 *
 * @param isAvro whether events are Avro with a frame of ten bytes; otherwise they are JSON
 * @param inputs the fields of each input, by its name
 * @param fields every field, once
 */
record Plan(boolean isAvro, String output, Map<String, List<String>> inputs, List<String> fields) {
    static Plan read(Path file) throws IOException {
        Properties lines = new Properties();
        try (Reader reader = Files.newBufferedReader(file)) {
            lines.load(reader);
        }
        Map<String, List<String>> inputs = new LinkedHashMap<>();
        LinkedHashSet<String> fields = new LinkedHashSet<>();
        for (String input : lines.getProperty("inputs").split(",")) {
            List<String> names = List.of(lines.getProperty("fields." + input).split(","));
            inputs.put(input, names);
            fields.addAll(names);
        }
        return new Plan(lines.getProperty("format").equals("avro"), lines.getProperty("output"), inputs, List.copyOf(fields));
    }
}
