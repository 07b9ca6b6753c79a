import CKernels
import Glibc
import ServingTypes
import Synchronization

/// How a source stores a tensor's values.
public enum StoredFormat: Hashable, Sendable {
    case elements(ElementType)
    case blocks(BlockFormat)

    /// Bytes of one row of `columns` values; nil where blocks do not fill it.
    func rowBytes(_ columns: Int) -> Int? {
        switch self {
        case .elements(let type): columns * type.byteCount
        case .blocks(let format):
            columns.isMultiple(of: format.valueCount) ? columns / format.valueCount * format.byteCount : nil
        }
    }
}

/// A tensor as its source has it, quantised blocks and all.
///
/// Unchecked because of the pointer: the memory is read-only for as long as its source lives, and
/// whoever keeps this keeps the source.
public struct StoredTensor: @unchecked Sendable {
    /// First byte, at any address.
    public var base: UnsafeRawPointer
    /// Bytes from `base` on.
    public var byteCount: Int
    /// Row-major, the last dimension contiguous.
    public var shape: [Int]
    public var format: StoredFormat
    /// Rows lie in llama.cpp's order of rotary pairs: row `2 i + half` of each head of this many rows
    /// belongs at `half * headDim / 2 + i`. nil where rows lie in Hugging Face's order.
    public var interleavedHeadDim: Int?

    public init(
        base: UnsafeRawPointer, byteCount: Int, shape: [Int], format: StoredFormat, interleavedHeadDim: Int? = nil
    ) {
        self.base = base
        self.byteCount = byteCount
        self.shape = shape
        self.format = format
        self.interleavedHeadDim = interleavedHeadDim
    }

    /// Where the source keeps the row that belongs at `row`.
    func storedRow(_ row: Int) -> Int {
        guard let headDim = interleavedHeadDim else { return row }
        let (head, within) = row.quotientAndRemainder(dividingBy: headDim)
        let (half, pair) = within.quotientAndRemainder(dividingBy: headDim / 2)
        return head * headDim + 2 * pair + half
    }
}

/// The weight formats that are packed for dot products.
enum PackedFormat: String, Hashable, Sendable, CaseIterable {
    case q8_0
    case q4_0
    case q4_K
    case q5_K
    case q6_K
    case bf16

    init(_ format: BlockFormat) {
        switch format {
        case .q8_0: self = .q8_0
        case .q4_0: self = .q4_0
        case .q4_K: self = .q4_K
        case .q5_K: self = .q5_K
        case .q6_K: self = .q6_K
        }
    }

    var code: tk_packed_format {
        switch self {
        case .q8_0: TK_PACKED_Q8_0
        case .q4_0: TK_PACKED_Q4_0
        case .q4_K: TK_PACKED_Q4_K
        case .q5_K: TK_PACKED_Q5_K
        case .q6_K: TK_PACKED_Q6_K
        case .bf16: TK_PACKED_BF16
        }
    }

    /// How its inputs are prepared.
    var inputForm: InputForms {
        switch self {
        case .bf16: .bf16
        case .q4_0: .q8Powers
        case .q8_0, .q4_K, .q5_K, .q6_K: .q8
        }
    }

    /// Bytes of one panel of 32 outputs.
    func panelBytes(_ columns: Int) -> Int { tk_panel_bytes(code, columns) }

    /// Bytes of a whole matrix.
    func byteCount(rows: Int, columns: Int) -> Int { tk_panel_count(rows) * panelBytes(columns) }

    /// Whether rows of this length can be packed.
    func takes(columns: Int) -> Bool { columns.isMultiple(of: tk_packed_input_multiple(code)) }
}

/// Forms in which a projection reads its inputs; several where its matrices differ in format.
struct InputForms: OptionSet {
    var rawValue: UInt8

    static let floats = InputForms(rawValue: 1)
    static let bf16 = InputForms(rawValue: 2)
    static let q8 = InputForms(rawValue: 4)
    static let q8Powers = InputForms(rawValue: 8)
}

/// What packs one matrix: where its rows come from and where its panels go.
struct PackingPlan {
    var name: String
    var stored: StoredTensor
    var rows: Int
    var columns: Int
    var format: PackedFormat
    /// Whether rows of elements are quantised first.
    var quantises: Bool
    /// From the arena's base.
    var offset: Int

    var byteCount: Int { format.byteCount(rows: rows, columns: columns) }
    /// Of the arena.
    var range: Range<Int> { offset..<offset + byteCount }
    var panelCount: Int { tk_panel_count(rows) }

    /// All that its packed bytes depend on but the stored values, for a file of packed matrices.
    var facts: String {
        let from =
            switch stored.format {
            case .elements(let type): type.rawValue
            case .blocks(let format): format.rawValue
            }
        let turned = stored.interleavedHeadDim.map { " turned \($0)" } ?? ""
        return "matrix \(name) \(rows)x\(columns) \(from) to \(format.rawValue)\(turned) at \(offset)"
    }

    /// Packs all panels, shared among the pool's workers; leaves the rest undone once it is cancelled.
    func pack(to arena: PackedArena, kernels: Kernels, pool: ComputePool, isCancelled: () -> Bool = { false }) {
        let panelBytes = format.panelBytes(columns)
        let perPart = max(1, Limits.partBytes / panelBytes)
        pool.run((panelCount + perPart - 1) / perPart) { part, _ in
            guard !isCancelled() else { return }
            let first = part * perPart
            pack(
                first..<min(panelCount, first + perPart), at: arena.base + offset + first * panelBytes,
                kernels: kernels)
        }
    }

    private enum Limits {
        /// Packed bytes of one part of the work, about.
        static let partBytes = 512 << 10
    }

    /// Packs some panels, one behind another from `target` on. May run beside others of the same matrix.
    func pack(_ panels: Range<Int>, at target: UnsafeMutableRawPointer, kernels: Kernels) {
        guard let rowBytes = stored.format.rowBytes(columns) else { return }
        let quantised = quantises ? QuantisedRows(format: format, columns: columns, kernels: kernels) : nil
        let panelBytes = format.panelBytes(columns)
        withUnsafeTemporaryAllocation(of: UnsafeRawPointer?.self, capacity: TK_PANEL_OUTPUTS) { sources in
            for panel in panels {
                for lane in sources.indices {
                    let row = panel * sources.count + lane
                    guard row < rows else {
                        sources.initializeElement(at: lane, to: nil)
                        continue
                    }
                    let source = stored.base + stored.storedRow(row) * rowBytes
                    let ready = quantised?.quantise(source, stored.format, lane: lane) ?? source
                    sources.initializeElement(at: lane, to: ready)
                }
                guard let first = sources.baseAddress else { return }
                let place = target + (panel - panels.lowerBound) * panelBytes
                kernels.packed.pointee.pack(
                    place.assumingMemoryBound(to: UInt8.self), first, format.code, columns)
            }
        }
    }
}

/// Blocks made of the 32 rows of a panel, before it is packed.
private final class QuantisedRows {
    private let format: PackedFormat
    private let columns: Int
    private let kernels: Kernels
    private let rowBytes: Int
    private let blocks: UnsafeMutableRawPointer
    private let floats: UnsafeMutablePointer<Float>

    init(format: PackedFormat, columns: Int, kernels: Kernels) {
        self.format = format
        self.columns = columns
        self.kernels = kernels
        rowBytes = columns / 32 * (format == .q8_0 ? 34 : 18)
        blocks = .allocate(byteCount: rowBytes * TK_PANEL_OUTPUTS, alignment: 64)
        floats = .allocate(capacity: columns)
    }

    deinit {
        blocks.deallocate()
        floats.deallocate()
    }

    func quantise(_ row: UnsafeRawPointer, _ stored: StoredFormat, lane: Int) -> UnsafeRawPointer? {
        guard case .elements(let type) = stored else { return nil }
        kernels.table.pointee.widen(floats, row, type.code, columns)
        let target = blocks + lane * rowBytes
        if format == .q8_0 {
            tk_quantise_q8_0(target, floats, columns / 32)
        } else {
            tk_quantise_q4_0(target, floats, columns / 32)
        }
        return UnsafeRawPointer(target)
    }
}

/// When an engine packs its matrices.
public enum PackingTime: String, Hashable, Sendable, CaseIterable {
    /// Before it is ready.
    case beforehand
    /// Beside its first steps, by a thread of its own. Until a matrix is packed, products read it as the model's
    /// files have it and pack each panel for themselves: some two to three times slower for few rows, and the
    /// same bits. So an engine is ready as soon as the files are in memory. Matrices that are quantised while
    /// they are packed are packed beforehand.
    case besides
    /// Never: for tests, and to measure what `besides` costs.
    case never
}

/// One matrix of a model, packed from some moment on.
struct PackedMatrix: ~Copyable {
    let plan: PackingPlan
    /// Where the panels lie; nil until they are packed. Stored once, after the last byte of them.
    let panels = Atomic<UnsafePointer<UInt8>?>(nil)

    init(_ plan: PackingPlan) { self.plan = plan }

    /// As the kernels take it; nil until it is packed.
    var packed: tk_packed? {
        guard let panels = panels.load(ordering: .acquiring) else { return nil }
        return tk_packed(panels: panels, outputs: plan.rows, inputs: plan.columns, format: plan.format.code)
    }

    /// Runs `body` with each panel of some columns, packed for this alone: the panel's first column, how many
    /// columns it has, and the panel as a matrix of its own. `columns` start at a multiple of 32.
    func forEachPanel(_ columns: Range<Int>, _ kernels: Kernels, _ body: (Int, Int, inout tk_packed) -> Void) {
        let bytes = plan.format.panelBytes(plan.columns)
        withUnsafeTemporaryAllocation(byteCount: bytes, alignment: 64) { memory in
            guard let base = memory.baseAddress else { return }
            for first in stride(from: columns.lowerBound, to: columns.upperBound, by: TK_PANEL_OUTPUTS) {
                let count = min(TK_PANEL_OUTPUTS, columns.upperBound - first)
                let panel = first / TK_PANEL_OUTPUTS
                plan.pack(panel..<panel + 1, at: base, kernels: kernels)
                var packed = tk_packed(
                    panels: UnsafePointer(base.assumingMemoryBound(to: UInt8.self)), outputs: count,
                    inputs: plan.columns, format: plan.format.code)
                body(first, count, &packed)
            }
        }
    }

    /// The f32 values of one row.
    func unpackRow(_ row: Int, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {
        if var packed {
            tk_unpack_row(values, &packed, row)
        } else {
            let first = row / TK_PANEL_OUTPUTS * TK_PANEL_OUTPUTS
            forEachPanel(first..<min(plan.rows, first + TK_PANEL_OUTPUTS), kernels) { first, _, packed in
                tk_unpack_row(values, &packed, row - first)
            }
        }
    }
}
