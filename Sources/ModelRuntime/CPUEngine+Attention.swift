import CKernels
import ServingTypes
import Synchronization

/// How one slice's attention is cut into parts; made once per slice, used by every layer.
struct AttentionPlan {
    /// Consecutive tokens of one entry and one KV head: all their segments, or some of them.
    struct Part {
        var firstRow: Int
        var tokens: Int
        var firstPosition: Int
        var kvHead: Int
        var table: UnsafePointer<UInt32>
        /// nil where this part computes all segments.
        var share: Share?
    }

    /// One of several parts that share the segments of the same queries. Who ends last merges them.
    struct Share {
        var segments: Range<Int>
        /// All segments of the queries.
        var whole: Range<Int>
        /// How many parts there are.
        var count: Int
        var counter: Int
        /// Floats from the start of all partial results to these queries' own.
        var partials: Int
    }

    var parts: [Part] = []
    var tokensMax = 1
    var scratchFloats = 0
}

extension CPUEngine {
    /// Cuts the slice's spans into parts, the longest pasts first. Segments are shared where there are
    /// too few parts for the workers; that changes no bit of the result.
    func planAttention() {
        let group = spec.headCount / spec.kvHeadCount
        let tokensPerPart = max(1, Limits.attentionRows / group)
        attentionPlan.parts.removeAll(keepingCapacity: true)
        attentionPlan.tokensMax = spans.reduce(1) { max($0, min($1.rows.count, tokensPerPart)) }
        let partCount = spans.reduce(0) { $0 + ($1.rows.count + tokensPerPart - 1) / tokensPerPart } * spec.kvHeadCount
        let wanted = pool.workerCount == 1 ? 1 : Limits.attentionPartsPerWorker * pool.workerCount
        let sharesMax = max(1, wanted / max(1, partCount))
        var (counters, partials) = (0, 0)
        for span in spans {
            guard let table = span.table else { continue }
            var first = (span.rows.count - 1) / tokensPerPart * tokensPerPart
            while first >= 0 {
                for kvHead in 0..<spec.kvHeadCount {
                    let part = AttentionPlan.Part(
                        firstRow: span.rows.lowerBound + first, tokens: min(tokensPerPart, span.rows.count - first),
                        firstPosition: span.position + first, kvHead: kvHead, table: table)
                    addParts(part, sharesMax: sharesMax, &counters, &partials)
                }
                first -= tokensPerPart
            }
        }
        _ = scratch.unfinished.reserve(counters)
        _ = scratch.partials.reserve(partials)
        // Whole cache lines, so that workers do not write each other's.
        attentionPlan.scratchFloats = (tk_attend_scratch(attentionPlan.tokensMax, group, spec.headDim) + 15) / 16 * 16
        _ = scratch.attention.reserve(attentionPlan.scratchFloats * pool.workerCount)
    }

    private func addParts(
        _ part: AttentionPlan.Part, sharesMax: Int, _ counters: inout Int, _ partials: inout Int
    ) {
        let whole =
            tk_first_segment(
                part.firstPosition, spec.slidingWindow ?? 0)..<tk_end_segment(
                part.firstPosition, part.tokens)
        let count = min(sharesMax, whole.count)
        guard count > 1 else {
            attentionPlan.parts.append(part)
            return
        }
        let perShare = (whole.count + count - 1) / count
        let shares = (whole.count + perShare - 1) / perShare
        for start in stride(from: whole.lowerBound, to: whole.upperBound, by: perShare) {
            var one = part
            one.share = AttentionPlan.Share(
                segments: start..<min(start + perShare, whole.upperBound), whole: whole, count: shares,
                counter: counters, partials: partials)
            attentionPlan.parts.append(one)
        }
        counters += 1
        partials += whole.count * tk_attend_partial(part.tokens, spec.headCount / spec.kvHeadCount, spec.headDim)
    }

    // MARK: - Parts

    /// Columns of one projection, which are whole heads: multiplied, and while they are in the cache
    /// normed, rotated and stored.
    func queryKeyValue(_ part: Int) {
        guard let normedInput else { return }
        let layer = layers[self.layer]
        let (queries, keys) = (spec.headCount * spec.headDim, spec.kvHeadCount * spec.headDim)
        let (queryParts, keyParts) = (parts(queries), parts(keys))
        if part < queryParts {
            let columns = range(part, queries)
            multiplyPart(normedInput, layer.query, frame.queries, columns: columns)
            rotate(frame.queries, columns, stride: queries, layer.queryNorm, 1 / Float(spec.headDim).squareRoot())
        } else if part < queryParts + keyParts {
            let columns = range(part - queryParts, keys)
            multiplyPart(normedInput, layer.key, frame.keys, columns: columns)
            rotate(frame.keys, columns, stride: keys, layer.keyNorm, 1)
            store(frame.keys, columns, stride: keys, offset: store.layout.keyOffset(layer: self.layer, kvHead: 0))
        } else {
            let columns = range(part - queryParts - keyParts, keys)
            multiplyPart(normedInput, layer.value, frame.values, columns: columns)
            store(frame.values, columns, stride: keys, offset: store.layout.valueOffset(layer: self.layer, kvHead: 0))
        }
    }

    /// QK-norm and rotation in place; queries also take the softmax's scale.
    private func rotate(
        _ heads: UnsafeMutablePointer<Float>, _ columns: Range<Int>, stride: Int, _ norm: UnsafePointer<Float>?,
        _ scale: Float
    ) {
        let (dim, count) = (spec.headDim, columns.count / spec.headDim)
        let table = kernels.table
        for row in 0..<frame.rows {
            let start = heads + row * stride + columns.lowerBound
            if let norm { table.pointee.rmsnorm(start, start, norm, spec.rmsNormEpsilon, count, dim) }
            let angles = row * (dim / 2)
            table.pointee.rotate(start, frame.cosines + angles, frame.sines + angles, scale, count, dim)
        }
    }

    /// Keys or values into their pages. `offset` is that of head 0.
    private func store(_ heads: UnsafeMutablePointer<Float>, _ columns: Range<Int>, stride: Int, offset: Int) {
        let layout = store.layout
        let (dim, code, storeRow) = (
            spec.headDim, layout.elementType.code, kernels.table.pointee.attention.pointee.store_row
        )
        let firstHead = columns.lowerBound / dim
        let scales = layout.blockTokens * layout.rowBytes
        for row in 0..<frame.rows {
            let place = frame.places[row]
            for head in 0..<columns.count / dim {
                let target = store.base + place.page + offset + (firstHead + head) * layout.headBytes
                storeRow(
                    target + place.inside * layout.rowBytes,
                    target + scales + place.inside * layout.elementType.scaleByteCount,
                    heads + row * stride + columns.lowerBound + head * dim, code, dim)
            }
        }
    }

    func attend(_ part: AttentionPlan.Part, worker: Int) {
        let group = spec.headCount / spec.kvHeadCount
        let stride = spec.headCount * spec.headDim
        let column = part.kvHead * group * spec.headDim
        let offset = part.firstRow * stride + column
        var query = tk_query_view(
            q: frame.queries + offset, token_stride: stride, first_position: part.firstPosition, tokens: part.tokens,
            group: group, dim: spec.headDim, window: spec.slidingWindow ?? 0)
        var past = tk_kv_view(
            pool: UnsafePointer(store.base.assumingMemoryBound(to: UInt8.self)), block_table: part.table,
            slot_bytes: store.slotBytes, key_offset: store.layout.keyOffset(layer: layer, kvHead: part.kvHead),
            value_offset: store.layout.valueOffset(layer: layer, kvHead: part.kvHead),
            block_tokens: store.layout.blockTokens, element: store.layout.elementType.code)
        let memory = scratch.attention.reserve(0) + worker * attentionPlan.scratchFloats
        let functions = kernels.table.pointee.attention.pointee
        if let share = part.share {
            guard attendShare(share, &query, &past, memory) else { return }
            functions.attend_merge(
                frame.attended + offset, scratch.partials.reserve(0) + share.partials, &query, share.whole.count)
        } else {
            functions.attend(frame.attended + offset, memory, &query, &past)
        }
        guard attendedIsPreparedByParts, let attendedInput else { return }
        prepare(
            attendedInput, rows: part.firstRow..<part.firstRow + part.tokens,
            columns: column..<column + group * spec.headDim)
    }

    /// Some segments of a part; true where all others are done.
    private func attendShare(
        _ share: AttentionPlan.Share, _ query: inout tk_query_view, _ past: inout tk_kv_view,
        _ memory: UnsafeMutablePointer<Float>
    ) -> Bool {
        let size = tk_attend_partial(query.tokens, query.group, query.dim)
        let partials = scratch.partials.reserve(0) + share.partials
        for segment in share.segments {
            kernels.table.pointee.attention.pointee.attend_segment(
                partials + (segment - share.whole.lowerBound) * size, memory, &query, &past, segment)
        }
        let counter = scratch.unfinished.reserve(0) + share.counter
        guard counter.pointee.add(1, ordering: .acquiringAndReleasing).newValue == share.count else { return false }
        counter.pointee.store(0, ordering: .relaxed)
        return true
    }
}
