package scoring;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DatumReader;
import org.apache.avro.io.DecoderFactory;

/** Single-object Avro; reads only the fields that the model takes, into one record used again and again. */
final class AvroEvents implements Events {
    private static final int FRAME_BYTES = 10;

    private final DatumReader<GenericRecord> reader;
    private final List<Field> fields = new ArrayList<>();
    private BinaryDecoder decoder;
    private GenericRecord record;

    private record Field(Input input, int place, int position) {}

    @SuppressWarnings("unchecked")
    AvroEvents(String schema, Plan plan, Map<String, Input> inputs) {
        Schema writer = new Schema.Parser().parse(schema);
        List<Schema.Field> wanted = new ArrayList<>();
        for (String name : plan.fields()) {
            wanted.add(new Schema.Field(name, writer.getField(name).schema()));
        }
        Schema projection = Schema.createRecord(writer.getName(), null, writer.getNamespace(), false, wanted);
        GenericData data = new GenericData();
        data.setFastReaderEnabled(true);
        reader = data.createDatumReader(writer, projection);
        plan.inputs().forEach((input, names) -> {
            for (int place = 0; place < names.size(); place++) {
                fields.add(new Field(inputs.get(input), place, projection.getField(names.get(place)).pos()));
            }
        });
    }

    @Override
    public void read(byte[] value) throws IOException {
        decoder = DecoderFactory.get().binaryDecoder(value, FRAME_BYTES, value.length - FRAME_BYTES, decoder);
        record = reader.read(record, decoder);
        for (Field field : fields) {
            Object found = record.get(field.position);
            if (found instanceof Number number) {
                field.input.put(field.place, number.doubleValue());
            } else if (found instanceof List<?> items) {
                for (int place = 0; place < items.size(); place++) {
                    field.input.put(place, ((Number) items.get(place)).doubleValue());
                }
            } else {
                field.input.put(field.place, found.toString());
            }
        }
    }
}
