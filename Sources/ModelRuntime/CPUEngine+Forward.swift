import CKernels
import ServingTypes

/// Where a row's token keeps its keys and values: the same for all layers and heads.
struct RowPlace: BitwiseCopyable {
    /// From the pool's start to the token's page.
    var page: Int
    /// Token slot inside the block.
    var inside: Int
}

/// The buffers of one slice's forward pass. Plain pointers, set before the layers and valid to the
/// end of the slice.
struct SliceFrame {
    var rows: Int
    var hidden: UnsafeMutablePointer<Float>
    var normed: UnsafeMutablePointer<Float>
    var queries: UnsafeMutablePointer<Float>
    var keys: UnsafeMutablePointer<Float>
    var values: UnsafeMutablePointer<Float>
    var attended: UnsafeMutablePointer<Float>
    var gate: UnsafeMutablePointer<Float>
    var cosines: UnsafeMutablePointer<Float>
    var sines: UnsafeMutablePointer<Float>
    var places: UnsafeMutablePointer<RowPlace>

    /// Reserves what a slice of `rows` needs.
    init(spec: ModelSpec, scratch: StepScratch, rows: Int) {
        let (queries, keys) = (spec.headCount * spec.headDim, spec.kvHeadCount * spec.headDim)
        self.rows = rows
        hidden = scratch.hidden.reserve(rows * spec.hiddenSize)
        normed = scratch.normed.reserve(rows * spec.hiddenSize)
        self.queries = scratch.queries.reserve(rows * queries)
        self.keys = scratch.keys.reserve(rows * keys)
        values = scratch.values.reserve(rows * keys)
        attended = scratch.attended.reserve(rows * queries)
        gate = scratch.gate.reserve(rows * spec.ffnSize)
        cosines = scratch.cosines.reserve(rows * spec.headDim / 2)
        sines = scratch.sines.reserve(rows * spec.headDim / 2)
        places = scratch.places.reserve(rows)
    }
}

/// The forward pass of one slice: embed, then per layer attention and MLP, each added to the
/// residual stream. Each region runs on all workers and ends with all of them; a layer has seven, of
/// which the two norms run on the caller alone when rows are few.
extension CPUEngine {
    /// Computes the residual stream after the last layer, `[rows][hiddenSize]`, before the final norm.
    func forward() {
        let rows = spans.last?.rows.upperBound ?? 0
        frame = SliceFrame(spec: spec, scratch: scratch, rows: rows)
        placeRows()
        planAttention()
        runRows(.embed, perRow: spec.hiddenSize)
        for layer in 0..<spec.layerCount {
            self.layer = layer
            attentionBlock()
            mlpBlock()
        }
    }

    /// Tokens, positions and places of the slice's rows, and its block tables one after another.
    private func placeRows() {
        let positions = scratch.positions.reserve(frame.rows)
        let tokens = scratch.tokens.reserve(frame.rows)
        var table = scratch.tables.reserve(spans.reduce(0) { $0 + batch.entries[$1.entry].blockTable.count })
        let blockTokens = store.layout.blockTokens
        for index in spans.indices {
            let span = spans[index]
            let start = table
            spans[index].table = UnsafePointer(start)
            batch.entries[span.entry].blockTable.withUnsafeBufferPointer { slots in
                for slot in slots {
                    table.pointee = slot.index
                    table += 1
                }
            }
            batch.entries[span.entry].tokens.withUnsafeBufferPointer { source in
                for row in span.rows { tokens[row] = source[span.offset + row - span.rows.lowerBound].value }
            }
            for row in span.rows {
                let position = span.position + row - span.rows.lowerBound
                let slot = Int(UnsafePointer(start)[position / blockTokens])
                positions[row] = UInt32(position)
                frame.places[row] = RowPlace(page: slot * store.slotBytes, inside: position % blockTokens)
            }
        }
    }

    // MARK: - Layers

    private func attentionBlock() {
        let layer = layers[self.layer]
        let width = spec.hiddenSize
        normedInput = preparedRows(.normed, frame.normed, rows: frame.rows, width: width, forms: layer.attentionForms)
        runRows(.attentionNorm, perRow: width)
        let queries = spec.headCount * spec.headDim
        attendedInput = preparedRows(
            .attended, frame.attended, rows: frame.rows, width: queries, forms: layer.outputForms)
        let (keys, total) = (spec.kvHeadCount * spec.headDim, queries + 2 * spec.kvHeadCount * spec.headDim)
        chunk = columnsPerPart(total, rows: frame.rows, width: width, alignment: headAlignment)
        run(.queryKeyValue, parts: parts(queries) + 2 * parts(keys))
        run(.attend, parts: attentionPlan.parts.count)
        if !attendedIsPreparedByParts { runRows(.prepareAttended, perRow: queries) }
        chunk = columnsPerPart(width, rows: frame.rows, width: queries, alignment: Self.columnAlignment)
        run(.output, parts: parts(width))
    }

    private func mlpBlock() {
        let layer = layers[self.layer]
        let width = spec.hiddenSize
        normedInput = preparedRows(.normed, frame.normed, rows: frame.rows, width: width, forms: layer.mlpForms)
        runRows(.mlpNorm, perRow: width)
        gatedInput = preparedRows(.gated, frame.gate, rows: frame.rows, width: spec.ffnSize, forms: layer.downForms)
        chunk = normedInput.map(prepareGated) ?? 1
        run(.gateUp, parts: parts(spec.ffnSize))
        chunk = columnsPerPart(width, rows: frame.rows, width: spec.ffnSize, alignment: Self.columnAlignment)
        run(.down, parts: parts(width))
    }

    // MARK: - Regions

    /// What all workers compute together. A part is a range of columns or rows, or an entry of the
    /// attention's plan.
    enum Region {
        case embed
        case attentionNorm
        case queryKeyValue
        case attend
        case prepareAttended
        case output
        case mlpNorm
        case gateUp
        case down
        case head
        case draw
    }

    func run(_ region: Region, parts: Int) {
        self.region = region
        pool.run(parts, on: self)
    }

    /// Shares rows among the workers, in parts large enough to be worth it.
    private func runRows(_ region: Region, perRow width: Int) {
        let least = max(1, Limits.elementsPerRowPart / width)
        chunk = max(least, (frame.rows + pool.workerCount - 1) / pool.workerCount)
        run(region, parts: parts(frame.rows))
    }

    /// Parts of `chunk` that cover `count`.
    func parts(_ count: Int) -> Int { (count + chunk - 1) / chunk }

    func range(_ part: Int, _ count: Int) -> Range<Int> { part * chunk..<min(count, (part + 1) * chunk) }

    func runPart(_ part: Int, worker: Int) {
        switch region {
        case .embed: embed(range(part, frame.rows))
        case .attentionNorm: normalize(range(part, frame.rows), layers[layer].attentionNorm)
        case .queryKeyValue: queryKeyValue(part)
        case .attend: attend(attentionPlan.parts[part], worker: worker)
        case .prepareAttended:
            guard let attendedInput else { return }
            prepare(attendedInput, rows: range(part, frame.rows), columns: 0..<attendedInput.width)
        case .output: addProjection(attendedInput, layers[layer].output, part)
        case .mlpNorm: normalize(range(part, frame.rows), layers[layer].mlpNorm)
        case .gateUp: gateUp(range(part, spec.ffnSize), worker: worker)
        case .down: addProjection(gatedInput, layers[layer].down, part)
        case .head:
            guard let headInput else { return }
            multiplyPart(headInput, weights.head, headTarget, columns: range(part, spec.vocabularySize))
        case .draw: drawPart(part, worker: worker)
        }
    }

    /// Embeddings and rotary tables of some rows.
    private func embed(_ rows: Range<Int>) {
        let half = spec.headDim / 2
        let tokens = scratch.tokens.reserve(frame.rows)
        for row in rows { weights.embedRow(Int(tokens[row]), into: frame.hidden + row * spec.hiddenSize, kernels) }
        frequencies.frequencies.withUnsafeBufferPointer { frequencies in
            guard let base = frequencies.baseAddress else { return }
            let start = rows.lowerBound
            tk_rotary_table(
                frame.cosines + start * half, frame.sines + start * half, base,
                scratch.positions.reserve(frame.rows) + start, self.frequencies.factor, rows.count, half)
        }
    }

    private func normalize(_ rows: Range<Int>, _ weight: UnsafePointer<Float>) {
        let width = spec.hiddenSize
        kernels.table.pointee.rmsnorm(
            frame.normed + rows.lowerBound * width, frame.hidden + rows.lowerBound * width, weight,
            spec.rmsNormEpsilon, rows.count, width)
        if let normedInput { prepare(normedInput, rows: rows, columns: 0..<width) }
    }

    /// Some columns of a projection, added to the residual stream.
    private func addProjection(_ input: PreparedRows?, _ projection: Projection, _ part: Int) {
        guard let input else { return }
        multiplyPart(input, projection, frame.hidden, columns: range(part, spec.hiddenSize), accumulate: true)
    }

    private func gateUp(_ columns: Range<Int>, worker: Int) {
        guard let normedInput, let gatedInput else { return }
        gatedPart(normedInput, layers[layer], down: gatedInput, columns: columns, chunk: chunk, worker: worker)
    }
}
