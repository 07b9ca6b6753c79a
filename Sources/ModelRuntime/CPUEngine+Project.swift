import CKernels
import ServingTypes

/// Inputs of projections, ready to be multiplied: the floats themselves and, beside them, the forms
/// that the matrices ask for. Rows of it may be made ready by several workers at once.
struct PreparedRows {
    /// `[rows][width]`.
    var floats: UnsafeMutablePointer<Float>
    var rows: Int
    var width: Int
    var forms: InputForms
    fileprivate var bf16: UnsafeMutablePointer<UInt8>
    fileprivate var q8: UnsafeMutablePointer<UInt8>
    fileprivate var q8Powers: UnsafeMutablePointer<UInt8>

    fileprivate func memory(_ form: InputForms) -> UnsafeMutablePointer<UInt8> {
        form == .bf16 ? bf16 : form == .q8 ? q8 : q8Powers
    }
}

/// Scratch memory of the prepared inputs of one kind of projection.
struct PreparedScratch {
    fileprivate var bf16 = GrowingBuffer<UInt8>()
    fileprivate var q8 = GrowingBuffer<UInt8>()
    fileprivate var q8Powers = GrowingBuffer<UInt8>()
}

/// Which inputs; each has scratch memory of its own.
enum PreparedSlot {
    /// Inputs of queries, keys and values, of gate and up, and of the head: normed rows.
    case normed
    /// Of the output projection.
    case attended
    /// Of the down projection.
    case gated
}

/// Scratch memory of all prepared inputs of a slice.
struct PreparedInputs {
    fileprivate var normed = PreparedScratch()
    fileprivate var attended = PreparedScratch()
    fileprivate var gated = PreparedScratch()
    /// Gate and up of one part: `[workers][gate, up][rows][columns]`.
    fileprivate var halves = GrowingBuffer<Float>()
}

extension InputForms {
    fileprivate var code: tk_input_form {
        self == .bf16 ? TK_INPUT_BF16 : self == .q8 ? TK_INPUT_Q8 : TK_INPUT_Q8_POWERS
    }
}

/// Projections: rows times weight matrices, shared among the workers by columns.
extension CPUEngine {
    /// Parts of a projection start at multiples of this many columns.
    static let columnAlignment = 32

    private enum PartLimits {
        /// Rows and columns of gate and up that are worked off at once, so that they stay in the cache.
        static let gatedRowsMax = 96
        static let gatedColumnsMax = 160
        /// Floats of gate in one part of few rows, which may be wider.
        static let gatedFloatsMax = 96 * 160
        /// Rows up to which a product is read from memory slower than it is computed, and the weights that a
        /// part of it has at least: the first lines of a part are waited for.
        static let readRowsMax = 4
        static let readWeightsMin = 1 << 20
        /// Parts that a worker should find all the same, and of other products.
        static let readPartsPerWorker = 2
        static let partsPerWorker = 8
    }

    // MARK: - Pieces that run inside a region

    /// Memory for `rows` of inputs in the given forms. Not inside a region: scratch may grow.
    func preparedRows(
        _ slot: PreparedSlot, _ floats: UnsafeMutablePointer<Float>, rows: Int, width: Int, forms: InputForms
    ) -> PreparedRows {
        let memory =
            switch slot {
            case .normed: prepared.normed
            case .attended: prepared.attended
            case .gated: prepared.gated
            }
        let reserve = { (form: InputForms, buffer: GrowingBuffer<UInt8>) in
            buffer.reserve(forms.contains(form) ? rows * tk_prepared_stride(form.code, width) : 0)
        }
        return PreparedRows(
            floats: floats, rows: rows, width: width, forms: forms, bf16: reserve(.bf16, memory.bf16),
            q8: reserve(.q8, memory.q8), q8Powers: reserve(.q8Powers, memory.q8Powers))
    }

    /// Makes some columns of some rows ready from `input.floats`. Columns start at a multiple of 32 and
    /// end at one or at the row's end.
    func prepare(_ input: PreparedRows, rows: Range<Int>, columns: Range<Int>) {
        let floats = input.floats + rows.lowerBound * input.width
        if input.forms.contains(.q8) { prepare(input, .q8, rows, columns, from: floats, stride: input.width) }
        if input.forms.contains(.q8Powers) {
            prepare(input, .q8Powers, rows, columns, from: floats, stride: input.width)
        }
        if input.forms.contains(.bf16) { prepare(input, .bf16, rows, columns, from: floats, stride: input.width) }
    }

    /// From floats whose first row is the first of `rows`, `stride` floats apart.
    private func prepare(
        _ input: PreparedRows, _ form: InputForms, _ rows: Range<Int>, _ columns: Range<Int>,
        from floats: UnsafeMutablePointer<Float>, stride: Int
    ) {
        let target = input.memory(form) + rows.lowerBound * tk_prepared_stride(form.code, input.width)
        kernels.packed.pointee.prepare(
            target, floats, form.code, rows.count, input.width, stride, columns.lowerBound, columns.count)
    }

    /// Some columns of one projection of all rows, into `target`, which is `[rows][projection's outputs]`;
    /// with `accumulate` onto what is there. Columns start at a multiple of `columnAlignment`.
    func multiplyPart(
        _ input: PreparedRows, _ projection: Projection, _ target: UnsafeMutablePointer<Float>, columns: Range<Int>,
        accumulate: Bool = false
    ) {
        multiplyPart(
            input, 0..<input.rows, projection, target + columns.lowerBound, stride: projection.matrix.rows,
            columns: columns, accumulate: accumulate)
    }

    /// The same for some rows, into `target`, whose first element is that of the first row and column and
    /// whose rows are `stride` floats apart.
    func multiplyPart(
        _ input: PreparedRows, _ rows: Range<Int>, _ projection: Projection, _ target: UnsafeMutablePointer<Float>,
        stride: Int, columns: Range<Int>, accumulate: Bool = false
    ) {
        let matrix = projection.matrix
        switch matrix.layout {
        case .packed(let matrix, let format):
            let form = format.inputForm
            let prepared = input.memory(form) + rows.lowerBound * tk_prepared_stride(form.code, input.width)
            if var packed = matrix.pointee.packed {
                kernels.packed.pointee.multiply(
                    target - columns.lowerBound, prepared, &packed, projection.bias, accumulate ? 1 : 0, rows.count,
                    columns.lowerBound, columns.count, stride)
                return
            }
            matrix.pointee.forEachPanel(columns, kernels) { first, count, panel in
                kernels.packed.pointee.multiply(
                    target + (first - columns.lowerBound), prepared, &panel, projection.bias.map { $0 + first },
                    accumulate ? 1 : 0, rows.count, 0, count, stride)
            }
        case .rows(let base, let type):
            kernels.table.pointee.matmul(
                target, input.floats + rows.lowerBound * input.width,
                base + columns.lowerBound * matrix.columns * type.byteCount,
                projection.bias.map { $0 + columns.lowerBound }, type.code, rows.count, matrix.columns,
                columns.count, stride, accumulate ? 1 : 0)
        }
    }

    /// Columns of one part, a multiple of `alignment`: all of them for one worker or little work, else
    /// two to eight parts per worker.
    func columnsPerPart(_ columns: Int, rows: Int, width: Int, alignment: Int = CPUEngine.columnAlignment) -> Int {
        guard pool.workerCount > 1, columns * rows * width >= CPUEngine.Limits.multipliesPerRegionMin else {
            return max(1, columns)
        }
        let workers = pool.workerCount
        var share = (columns + PartLimits.partsPerWorker * workers - 1) / (PartLimits.partsPerWorker * workers)
        if rows <= PartLimits.readRowsMax {
            let most =
                (columns + PartLimits.readPartsPerWorker * workers - 1) / (PartLimits.readPartsPerWorker * workers)
            share = max(share, min(most, PartLimits.readWeightsMin / width))
        }
        return max(1, (share + alignment / 2) / alignment) * alignment
    }

    // MARK: - Gate and up

    /// Columns of gate and up to a part, and the scratch memory for them. Not inside a region.
    func prepareGated(_ input: PreparedRows) -> Int {
        let share = columnsPerPart(
            spec.ffnSize, rows: input.rows, width: 2 * input.width, alignment: Self.columnAlignment)
        let chunk = min(share, max(PartLimits.gatedColumnsMax, PartLimits.gatedFloatsMax / input.rows / 32 * 32))
        let rows = min(input.rows, PartLimits.gatedRowsMax)
        _ = prepared.halves.reserve(2 * rows * chunk * pool.workerCount)
        return chunk
    }

    /// One part of gate and up projections, `silu(gate) * up` of them, and that made ready as the input of
    /// the down projection, a few rows at a time so that all of it stays in the cache. `down.floats` is
    /// filled only where the down projection reads floats.
    func gatedPart(
        _ input: PreparedRows, _ layer: LayerWeights, down: PreparedRows, columns: Range<Int>, chunk: Int, worker: Int
    ) {
        let passRows = min(input.rows, PartLimits.gatedRowsMax)
        let size = passRows * chunk
        let gate = prepared.halves.reserve(2 * size * pool.workerCount) + 2 * size * worker
        let up = gate + size
        var rows = 0..<0
        while rows.upperBound < input.rows {
            rows = rows.upperBound..<min(input.rows, rows.upperBound + passRows)
            multiplyPart(input, rows, layer.gate, gate, stride: columns.count, columns: columns)
            multiplyPart(input, rows, layer.up, up, stride: columns.count, columns: columns)
            kernels.table.pointee.silu_multiply(gate, gate, up, rows.count * columns.count)
            putDown(down, rows, columns, gate)
        }
    }

    /// Some rows and columns of the down projection's input, in whatever form it reads.
    private func putDown(
        _ down: PreparedRows, _ rows: Range<Int>, _ columns: Range<Int>, _ values: UnsafeMutablePointer<Float>
    ) {
        let floats = values - columns.lowerBound
        if down.forms.contains(.q8) { prepare(down, .q8, rows, columns, from: floats, stride: columns.count) }
        if down.forms.contains(.q8Powers) {
            prepare(down, .q8Powers, rows, columns, from: floats, stride: columns.count)
        }
        if down.forms.contains(.bf16) { prepare(down, .bf16, rows, columns, from: floats, stride: columns.count) }
        guard down.forms.contains(.floats) else { return }
        for row in rows {
            (down.floats + row * down.width + columns.lowerBound).update(
                from: values + (row - rows.lowerBound) * columns.count, count: columns.count)
        }
    }
}
