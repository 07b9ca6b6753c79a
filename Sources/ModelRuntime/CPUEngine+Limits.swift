import CKernels
import ServingTypes

/// What the weights' memory allows.
extension CPUEngine {
    /// Reads all packed weights once, in order, a share of them on each compute thread, and does nothing with
    /// them: what a step takes at least, with this memory at this moment. nil where there are none, or not yet.
    /// Called between steps.
    public func readWeights() -> (bytes: Int, time: TimeSpan)? {
        guard let bytes = weights.packed?.panels, let base = bytes.baseAddress else { return nil }
        let share = (bytes.count / pool.workerCount + 4095) / 4096 * 4096
        pool.begin()
        defer { pool.end() }
        let watch = Stopwatch()
        pool.run(pool.workerCount) { part, _ in
            let start = min(bytes.count, part * share)
            _ = tk_limit_read(base + start, min(share, bytes.count - start))
        }
        return (bytes.count, watch.elapsed)
    }
}
