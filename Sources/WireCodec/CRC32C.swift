import CWire

/// CRC-32C, the checksum of headers, slices and pages.
public enum CRC32C {
    /// Of `bytes` after bytes whose checksum is `seed`; 0 begins.
    public static func checksum(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
        guard let base = bytes.baseAddress else { return seed }
        return tandem_crc32c(seed, base, bytes.count)
    }

    /// Of A followed by B, whose length is `count`.
    public static func combine(_ a: UInt32, _ b: UInt32, count: Int) -> UInt32 {
        tandem_crc32c_combine(a, b, UInt64(count))
    }
}
