import CKernels

/// A block format of GGUF files: values quantised in blocks of 32 or 256 along a row.
public enum BlockFormat: String, Hashable, Sendable, CaseIterable {
    case q8_0 = "Q8_0"
    case q4_0 = "Q4_0"
    case q4_K = "Q4_K"
    case q5_K = "Q5_K"
    case q6_K = "Q6_K"

    private var code: tk_block_format {
        switch self {
        case .q8_0: TK_BLOCK_Q8_0
        case .q4_0: TK_BLOCK_Q4_0
        case .q4_K: TK_BLOCK_Q4_K
        case .q5_K: TK_BLOCK_Q5_K
        case .q6_K: TK_BLOCK_Q6_K
        }
    }

    /// Values in a block.
    public var valueCount: Int { tk_block_values(code) }
    /// Bytes of a block.
    public var byteCount: Int { tk_block_bytes(code) }

    /// Expands whole blocks into `blocks * valueCount` values, bit for bit as ggml's reference does.
    /// `packed` holds at least `blocks * byteCount` bytes, at any address.
    public func dequantise(_ packed: UnsafeRawPointer, into values: UnsafeMutablePointer<Float>, blocks: Int) {
        tk_dequantise(values, packed, code, blocks)
    }

    /// The values of whole blocks; a rest that fills no block is left out.
    public func dequantised(_ packed: [UInt8]) -> [Float] {
        let blocks = packed.count / byteCount
        return [Float](unsafeUninitializedCapacity: blocks * valueCount) { values, count in
            count = blocks * valueCount
            packed.withUnsafeBytes { bytes in
                guard let base = bytes.baseAddress, let target = values.baseAddress else { return }
                dequantise(base, into: target, blocks: blocks)
            }
        }
    }

    /// Whether this program writes the format as well.
    public var canQuantise: Bool {
        switch self {
        case .q8_0, .q4_0: true
        case .q4_K, .q5_K, .q6_K: false
        }
    }

    /// Blocks of the values, as ggml's reference quantiser makes them; nil where the count is no
    /// multiple of `valueCount` and for formats that are only read.
    public func quantised(_ values: [Float]) -> [UInt8]? {
        guard canQuantise, values.count.isMultiple(of: valueCount) else { return nil }
        let blocks = values.count / valueCount
        return [UInt8](unsafeUninitializedCapacity: blocks * byteCount) { packed, count in
            count = blocks * byteCount
            guard let target = packed.baseAddress else { return }
            switch self {
            case .q8_0: tk_quantise_q8_0(target, values, blocks)
            case .q4_0: tk_quantise_q4_0(target, values, blocks)
            case .q4_K, .q5_K, .q6_K: break
            }
        }
    }
}
