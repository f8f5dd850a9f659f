package scoring;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadFeature;
import java.io.IOException;
import java.util.HashMap;
import java.util.Map;

/** JSON by Jackson's streaming parser with its fast parser of numbers; no tree, no boxed numbers. */
final class JsonEvents implements Events {
    private final JsonFactory factory = JsonFactory.builder().enable(StreamReadFeature.USE_FAST_DOUBLE_PARSER).build();
    private final Map<String, Field> fields = new HashMap<>();

    private record Field(Input input, int place) {}

    JsonEvents(Plan plan, Map<String, Input> inputs) {
        plan.inputs().forEach((input, names) -> {
            for (int place = 0; place < names.size(); place++) {
                fields.put(names.get(place), new Field(inputs.get(input), place));
            }
        });
    }

    @Override
    public void read(byte[] value) throws IOException {
        try (JsonParser parser = factory.createParser(value)) {
            parser.nextToken();
            for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
                JsonToken token = parser.nextToken();
                Field field = fields.get(name);
                if (field == null) {
                    parser.skipChildren();
                } else if (token == JsonToken.START_ARRAY) {
                    for (int place = 0; parser.nextToken() != JsonToken.END_ARRAY; place++) {
                        field.input.put(place, parser.getFloatValue());
                    }
                } else if (field.input.isText()) {
                    field.input.put(field.place, parser.getText());
                } else {
                    field.input.put(field.place, parser.getDoubleValue());
                }
            }
        }
    }
}
