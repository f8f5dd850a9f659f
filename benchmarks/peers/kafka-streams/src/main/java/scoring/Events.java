package scoring;

import java.io.IOException;

/** Reads the fields of one event into the inputs they feed. */
interface Events {
    void read(byte[] value) throws IOException;
}
