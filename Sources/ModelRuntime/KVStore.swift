import CKernels
import Glibc
import ServingTypes

/// How cached keys and values are stored.
public enum KVElementType: String, Hashable, Sendable, CaseIterable {
    case f32
    case f16
    case bf16
    /// Integers in -127 ... 127 with one f32 scale per token and head: largest magnitude / 127.
    case int8

    /// Bytes per element.
    public var byteCount: Int {
        switch self {
        case .f32: 4
        case .f16, .bf16: 2
        case .int8: 1
        }
    }

    /// Bytes beside each row of elements.
    public var scaleByteCount: Int {
        switch self {
        case .f32, .f16, .bf16: 0
        case .int8: 4
        }
    }

    /// All names, for messages: "f32, f16, bf16, int8".
    public static var names: String { allCases.map(\.rawValue).joined(separator: ", ") }

    var code: tk_kv_element {
        switch self {
        case .f32: TK_KV_F32
        case .f16: TK_KV_F16
        case .bf16: TK_KV_BF16
        case .int8: TK_KV_I8
        }
    }
}

/// The bytes of a worker's page pool: one mapping aligned to huge pages, which are advised; zero at first.
///
/// A page holds one block's keys and values: `[layer][key, value][kvHead]`, and for each of these
/// `[token][dim]` elements, then (int8) `[token]` scales; contiguous.
///
/// Unchecked because of the pointer: the mapping is fixed from `init` to `deinit`, and who may read
/// or write a slot when is the pool's business (KVPaging), not this type's.
public final class KVStore: @unchecked Sendable {
    /// How a page is cut.
    public struct Layout: Hashable, Sendable {
        /// Token slots per block.
        public var blockTokens: Int
        public var layerCount: Int
        public var kvHeadCount: Int
        public var headDim: Int
        public var elementType: KVElementType

        public init(blockTokens: Int, layerCount: Int, kvHeadCount: Int, headDim: Int, elementType: KVElementType) {
            self.blockTokens = blockTokens
            self.layerCount = layerCount
            self.kvHeadCount = kvHeadCount
            self.headDim = headDim
            self.elementType = elementType
        }

        /// One token's key (or value) of one head, without its scale.
        public var rowBytes: Int { headDim * elementType.byteCount }
        /// One head's keys (or values) in one layer.
        public var headBytes: Int { blockTokens * (rowBytes + elementType.scaleByteCount) }
        /// Keys and values of one layer.
        public var layerBytes: Int { 2 * kvHeadCount * headBytes }
        /// A whole page.
        public var pageBytes: Int { layerCount * layerBytes }

        /// Where the given layers lie inside a page.
        public func layerRangeBytes(_ layers: Range<Int>) -> Range<Int> {
            layers.lowerBound * layerBytes..<layers.upperBound * layerBytes
        }

        /// Where the keys of one head in one layer start inside a page.
        public func keyOffset(layer: Int, kvHead: Int) -> Int { layer * layerBytes + kvHead * headBytes }
        /// Where its values start.
        public func valueOffset(layer: Int, kvHead: Int) -> Int {
            layer * layerBytes + (kvHeadCount + kvHead) * headBytes
        }
    }

    enum Limits {
        static let blockTokensMax = 1024
        static let slotCountMax = 1 << 24
        static let bytesMax = 1 << 46
        /// Pages start at multiples of a cache line.
        static let pageAlignment = 64
        /// The pool starts at a multiple of a huge page.
        static let mappingAlignment = 1 << 21
    }

    public let layout: Layout
    public let slotCount: Int
    /// Bytes from one page to the next.
    public let slotBytes: Int
    let base: UnsafeMutableRawPointer
    private let mapping: UnsafeMutableRawBufferPointer

    /// Maps the pool. Fails where the layout is out of range or the system has no memory.
    public init(layout: Layout, slotCount: Int) throws(ServingError) {
        slotBytes = try Self.checkedSlotBytes(layout, slotCount)
        let bytes = slotBytes * slotCount
        let protection = PROT_READ | PROT_WRITE
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        let reserved = bytes + Limits.mappingAlignment
        guard let mapped = mmap(nil, reserved, protection, flags, -1, 0), mapped != MAP_FAILED else {
            throw ServingError(
                .internalError, "page pool: the system refused \(bytes) bytes for \(slotCount) pages",
                field: "blocks", blast: .process)
        }
        mapping = UnsafeMutableRawBufferPointer(start: mapped, count: reserved)
        base = mapped.alignedUp(toMultipleOf: Limits.mappingAlignment)
        madvise(base, bytes, MADV_HUGEPAGE)
        self.layout = layout
        self.slotCount = slotCount
    }

    deinit {
        munmap(mapping.baseAddress, mapping.count)
    }

    /// The bytes of one block; the same address for the store's life. `slot` is one of the pool's.
    public func page(_ slot: BlockSlot) -> UnsafeMutableRawBufferPointer {
        precondition(slot.index < slotCount, "slot \(slot) of a pool of \(slotCount)")
        return UnsafeMutableRawBufferPointer(start: base + Int(slot.index) * slotBytes, count: layout.pageBytes)
    }

    private static func checkedSlotBytes(_ layout: Layout, _ slotCount: Int) throws(ServingError) -> Int {
        try check("block-tokens", layout.blockTokens, 1...Limits.blockTokensMax)
        try check("blocks", slotCount, 1...Limits.slotCountMax)
        try check("layers", layout.layerCount, 1...ModelLimits.layerCountMax)
        try check("kv heads", layout.kvHeadCount, 1...ModelLimits.headCountMax)
        try check("head dim", layout.headDim, 1...ModelLimits.headDimMax)
        // Each factor is bounded above, so these products fit 63 bits.
        let slotBytes = (layout.pageBytes + Limits.pageAlignment - 1) / Limits.pageAlignment * Limits.pageAlignment
        let (bytes, overflow) = slotBytes.multipliedReportingOverflow(by: slotCount)
        guard !overflow, bytes <= Limits.bytesMax else {
            throw ServingError(
                .invalidValue, "blocks: \(slotCount) pages of \(slotBytes) bytes exceed \(Limits.bytesMax) bytes",
                field: "blocks", blast: .process)
        }
        return slotBytes
    }
}

/// Ranges a model's sizes must be in; with them no product of sizes overflows.
enum ModelLimits {
    static let layerCountMax = 1024
    static let headCountMax = 1024
    static let headDimMax = 1024
    static let hiddenSizeMax = 1 << 18
    static let ffnSizeMax = 1 << 20
    static let vocabularySizeMax = 1 << 22
    static let contextTokensMax = 1 << 24
}

func check(_ field: String, _ value: Int, _ range: ClosedRange<Int>) throws(ServingError) {
    guard range.contains(value) else {
        throw ServingError(
            .invalidValue, "\(field): \(value) is not between \(range.lowerBound) and \(range.upperBound)",
            field: field, blast: .process)
    }
}
