import CKernels
import ServingTypes

/// The forward pass of one slice: embed, then per layer attention and MLP, each added to the
/// residual stream.
extension CPUEngine {
    /// Where one projection writes: `[rows][projection's outputs]`.
    struct Output {
        var target: UnsafeMutablePointer<Float>
        var projection: Projection
    }

    /// A part of a slice that one attention call computes: consecutive tokens of one entry, one KV head.
    struct AttentionPart {
        var firstRow: Int
        var tokens: Int
        var firstPosition: Int
        var kvHead: Int
        var table: UnsafePointer<UInt32>
    }

    /// Returns the residual stream after the last layer, `[rows][hiddenSize]`, before the final norm.
    func forward(_ batch: StepBatch, _ spans: [Span]) -> UnsafeMutablePointer<Float> {
        let rows = spans.last?.rows.upperBound ?? 0
        let hidden = scratch.hidden.reserve(rows * spec.hiddenSize)
        embed(batch, spans, hidden)
        fillRotaryTable(batch, spans, rows)
        let tables = fillBlockTables(batch, spans)
        let parts = attentionParts(batch, spans, tables)
        for layer in weights.layers.indices {
            attentionBlock(layer, hidden, rows: rows, parts: parts, spans: spans, batch: batch, tables: tables)
            mlpBlock(layer, hidden, rows: rows)
        }
        return hidden
    }

    // MARK: - Before the layers

    private func embed(_ batch: StepBatch, _ spans: [Span], _ hidden: UnsafeMutablePointer<Float>) {
        for span in spans {
            let tokens = batch.entries[span.entry].tokens
            for (index, row) in span.rows.enumerated() {
                let token = Int(tokens[span.offset + index].value)
                kernels.table.pointee.widen(
                    hidden + row * spec.hiddenSize, weights.embedding.row(token), weights.embedding.type.code,
                    spec.hiddenSize)
            }
        }
    }

    private func fillRotaryTable(_ batch: StepBatch, _ spans: [Span], _ rows: Int) {
        let half = spec.headDim / 2
        let positions = scratch.positions.reserve(rows)
        for span in spans {
            let start = batch.entries[span.entry].startPosition + span.offset
            for (index, row) in span.rows.enumerated() { positions[row] = UInt32(start + index) }
        }
        let cosines = scratch.cosines.reserve(rows * half)
        let sines = scratch.sines.reserve(rows * half)
        frequencies.frequencies.withUnsafeBufferPointer { frequencies in
            guard let base = frequencies.baseAddress else { return }
            tk_rotary_table(cosines, sines, base, positions, self.frequencies.factor, rows, half)
        }
    }

    /// Copies the spans' block tables to stable memory; one pointer per span.
    private func fillBlockTables(_ batch: StepBatch, _ spans: [Span]) -> [UnsafePointer<UInt32>] {
        let total = spans.reduce(0) { $0 + batch.entries[$1.entry].blockTable.count }
        var target = scratch.tables.reserve(total)
        return spans.map { span in
            let start = target
            for slot in batch.entries[span.entry].blockTable {
                target.pointee = slot.index
                target += 1
            }
            return UnsafePointer(start)
        }
    }

    private func attentionParts(
        _ batch: StepBatch, _ spans: [Span], _ tables: [UnsafePointer<UInt32>]
    ) -> [AttentionPart] {
        let tokensPerPart = max(1, Limits.attentionRows * spec.kvHeadCount / spec.headCount)
        var parts: [AttentionPart] = []
        for (span, table) in zip(spans, tables) {
            let start = batch.entries[span.entry].startPosition + span.offset
            for first in stride(from: 0, to: span.rows.count, by: tokensPerPart) {
                for kvHead in 0..<spec.kvHeadCount {
                    parts.append(
                        AttentionPart(
                            firstRow: span.rows.lowerBound + first, tokens: min(tokensPerPart, span.rows.count - first),
                            firstPosition: start + first, kvHead: kvHead, table: table))
                }
            }
        }
        return parts
    }

    // MARK: - Attention

    private func attentionBlock(
        _ index: Int, _ hidden: UnsafeMutablePointer<Float>, rows: Int, parts: [AttentionPart], spans: [Span],
        batch: StepBatch, tables: [UnsafePointer<UInt32>]
    ) {
        let layer = weights.layers[index]
        let queries = scratch.queries.reserve(rows * spec.headCount * spec.headDim)
        let keys = scratch.keys.reserve(rows * spec.kvHeadCount * spec.headDim)
        let values = scratch.values.reserve(rows * spec.kvHeadCount * spec.headDim)
        let normed = normalize(hidden, layer.attentionNorm, rows: rows)
        project(
            normed, rows: rows,
            [
                Output(target: queries, projection: layer.query), Output(target: keys, projection: layer.key),
                Output(target: values, projection: layer.value),
            ])
        for (span, table) in zip(spans, tables) {
            let start = batch.entries[span.entry].startPosition + span.offset
            rotateAndStore(index, span.rows, startPosition: start, table: table)
        }
        let attended = attend(index, queries, rows: rows, parts: parts)
        let update = scratch.update.reserve(rows * spec.hiddenSize)
        project(attended, rows: rows, [Output(target: update, projection: layer.output)])
        addUpdate(hidden, update, rows: rows)
    }

    /// QK-norm and rotation in place, then keys and values into their pages. Queries also take the
    /// softmax's scale.
    private func rotateAndStore(
        _ index: Int, _ rows: Range<Int>, startPosition: Int, table: UnsafePointer<UInt32>
    ) {
        let layer = weights.layers[index]
        let queries = scratch.queries.reserve(0)
        let keys = scratch.keys.reserve(0)
        let values = scratch.values.reserve(0)
        let cosines = scratch.cosines.reserve(0)
        let sines = scratch.sines.reserve(0)
        forRows(rows.count) { [spec, kernels, store] part in
            let functions = kernels.table.pointee
            let dim = spec.headDim
            let scale = 1 / Float(dim).squareRoot()
            for row in part.lowerBound + rows.lowerBound..<part.upperBound + rows.lowerBound {
                let query = queries + row * spec.headCount * dim
                let key = keys + row * spec.kvHeadCount * dim
                if let norm = layer.queryNorm {
                    functions.rmsnorm(query, query, norm, spec.rmsNormEpsilon, spec.headCount, dim)
                }
                if let norm = layer.keyNorm {
                    functions.rmsnorm(key, key, norm, spec.rmsNormEpsilon, spec.kvHeadCount, dim)
                }
                let cosine = cosines + row * (dim / 2)
                let sine = sines + row * (dim / 2)
                functions.rotate(query, cosine, sine, scale, spec.headCount, dim)
                functions.rotate(key, cosine, sine, 1, spec.kvHeadCount, dim)
                let position = startPosition + row - rows.lowerBound
                let slot = Int(table[position / store.layout.blockTokens])
                let page = store.base + slot * store.slotBytes
                let inside = position % store.layout.blockTokens * store.layout.rowBytes
                for head in 0..<spec.kvHeadCount {
                    let keyTarget = page + store.layout.keyOffset(layer: index, kvHead: head) + inside
                    let valueTarget = page + store.layout.valueOffset(layer: index, kvHead: head) + inside
                    let value = values + (row * spec.kvHeadCount + head) * dim
                    functions.narrow(keyTarget, key + head * dim, store.layout.elementType.code, dim)
                    functions.narrow(valueTarget, value, store.layout.elementType.code, dim)
                }
            }
        }
    }

    private func attend(
        _ layer: Int, _ queries: UnsafeMutablePointer<Float>, rows: Int, parts: [AttentionPart]
    ) -> UnsafeMutablePointer<Float> {
        let group = spec.headCount / spec.kvHeadCount
        let stride = spec.headCount * spec.headDim
        let tokensMax = parts.reduce(1) { max($0, $1.tokens) }
        let scratchSize = tk_attend_scratch(tokensMax, group, spec.headDim)
        let memory = scratch.attention.reserve(scratchSize * pool.workerCount)
        let attended = scratch.attended.reserve(rows * stride)
        pool.run(parts.count) { [spec, kernels, store] index, worker in
            let part = parts[index]
            let offset = part.firstRow * stride + part.kvHead * group * spec.headDim
            var query = tk_query_view(
                q: queries + offset, token_stride: stride, first_position: part.firstPosition, tokens: part.tokens,
                group: group, dim: spec.headDim, window: spec.slidingWindow ?? 0)
            var past = tk_kv_view(
                pool: UnsafePointer(store.base.assumingMemoryBound(to: UInt8.self)), block_table: part.table,
                slot_bytes: store.slotBytes, key_offset: store.layout.keyOffset(layer: layer, kvHead: part.kvHead),
                value_offset: store.layout.valueOffset(layer: layer, kvHead: part.kvHead),
                block_tokens: store.layout.blockTokens, element: store.layout.elementType.code)
            kernels.table.pointee.attend(attended + offset, memory + worker * scratchSize, &query, &past)
        }
        return attended
    }

    // MARK: - MLP

    private func mlpBlock(_ index: Int, _ hidden: UnsafeMutablePointer<Float>, rows: Int) {
        let layer = weights.layers[index]
        let normed = normalize(hidden, layer.mlpNorm, rows: rows)
        let gate = scratch.gate.reserve(rows * spec.ffnSize)
        let up = scratch.up.reserve(rows * spec.ffnSize)
        let size = spec.ffnSize
        let chunk = columnsPerPart(size, multipliesPerColumn: 2 * rows * spec.hiddenSize)
        pool.run((size + chunk - 1) / chunk) { [self] part, _ in
            let columns = part * chunk..<min(size, (part + 1) * chunk)
            multiply(normed, rows: rows, Output(target: gate, projection: layer.gate), columns)
            multiply(normed, rows: rows, Output(target: up, projection: layer.up), columns)
            for row in 0..<rows {
                let start = row * size + columns.lowerBound
                kernels.table.pointee.silu_multiply(gate + start, gate + start, up + start, columns.count)
            }
        }
        let update = scratch.update.reserve(rows * spec.hiddenSize)
        project(gate, rows: rows, [Output(target: update, projection: layer.down)])
        addUpdate(hidden, update, rows: rows)
    }

    // MARK: - Shared pieces

    private func normalize(
        _ hidden: UnsafeMutablePointer<Float>, _ weight: UnsafePointer<Float>, rows: Int
    ) -> UnsafeMutablePointer<Float> {
        let width = spec.hiddenSize
        let normed = scratch.normed.reserve(rows * width)
        forRows(rows) { [spec, kernels] part in
            kernels.table.pointee.rmsnorm(
                normed + part.lowerBound * width, hidden + part.lowerBound * width, weight, spec.rmsNormEpsilon,
                part.count, width)
        }
        return normed
    }

    private func addUpdate(_ hidden: UnsafeMutablePointer<Float>, _ update: UnsafeMutablePointer<Float>, rows: Int) {
        let width = spec.hiddenSize
        forRows(rows) { [kernels] part in
            kernels.table.pointee.add(
                hidden + part.lowerBound * width, update + part.lowerBound * width, part.count * width)
        }
    }

    /// Shares rows among the workers, in parts large enough to be worth it.
    private func forRows(_ rows: Int, _ body: @escaping (Range<Int>) -> Void) {
        let perPart = max(16, (rows + pool.workerCount - 1) / pool.workerCount)
        pool.run((rows + perPart - 1) / perPart) { part, _ in
            body(part * perPart..<min(rows, (part + 1) * perPart))
        }
    }

    /// Projections of the same input, their columns shared among the workers.
    func project(_ input: UnsafeMutablePointer<Float>, rows: Int, _ outputs: [Output]) {
        let columns = outputs.reduce(0) { $0 + $1.projection.matrix.rows }
        let multiplies = rows * (outputs.first?.projection.matrix.columns ?? 0)
        let chunk = columnsPerPart(columns, multipliesPerColumn: multiplies)
        var parts: [(output: Output, columns: Range<Int>)] = []
        for output in outputs {
            for start in stride(from: 0, to: output.projection.matrix.rows, by: chunk) {
                parts.append((output, start..<min(start + chunk, output.projection.matrix.rows)))
            }
        }
        pool.run(parts.count) { [self] index, _ in
            multiply(input, rows: rows, parts[index].output, parts[index].columns)
        }
    }

    private func multiply(
        _ input: UnsafeMutablePointer<Float>, rows: Int, _ output: Output, _ columns: Range<Int>
    ) {
        let matrix = output.projection.matrix
        kernels.table.pointee.matmul(
            output.target + columns.lowerBound, input, matrix.row(columns.lowerBound),
            output.projection.bias.map { $0 + columns.lowerBound }, matrix.type.code, rows, matrix.columns,
            columns.count, matrix.rows)
    }

    /// All columns for one worker or little work; else about four parts per worker.
    private func columnsPerPart(_ columns: Int, multipliesPerColumn: Int) -> Int {
        guard pool.workerCount > 1, columns * multipliesPerColumn >= Limits.multipliesPerRegionMin else {
            return max(1, columns)
        }
        let share = (columns + 4 * pool.workerCount - 1) / (4 * pool.workerCount)
        return max(16, (share + 3) / 4 * 4)
    }
}
