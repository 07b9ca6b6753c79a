import CKernels
import Synchronization

/// Memory that grows to what was asked of it and stays. Contents do not survive growth.
final class GrowingBuffer<Element: BitwiseCopyable> {
    private var base: UnsafeMutablePointer<Element>?
    private var capacity = 0

    /// A cache line, which is also the widest vector.
    private static var alignment: Int { 64 }

    deinit {
        if let base { UnsafeMutableRawPointer(base).deallocate() }
    }

    /// At least `count` elements, not initialised.
    func reserve(_ count: Int) -> UnsafeMutablePointer<Element> {
        if let base, count <= capacity { return base }
        if let base { UnsafeMutableRawPointer(base).deallocate() }
        capacity = max(count, 1)
        let bytes = capacity * MemoryLayout<Element>.stride
        let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: Self.alignment)
        let fresh = memory.bindMemory(to: Element.self, capacity: capacity)
        base = fresh
        return fresh
    }
}

/// Counters that workers share; they grow in number and keep nothing when they do.
final class SharedCounters {
    private var base: UnsafeMutablePointer<Atomic<Int>>?
    private var capacity = 0

    deinit { release() }

    /// At least `count` counters, all 0 when they are new.
    func reserve(_ count: Int) -> UnsafeMutablePointer<Atomic<Int>> {
        if let base, count <= capacity { return base }
        release()
        capacity = max(count, 1)
        let fresh = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: capacity)
        for index in 0..<capacity { (fresh + index).initialize(to: Atomic(0)) }
        base = fresh
        return fresh
    }

    private func release() {
        base?.deinitialize(count: capacity)
        base?.deallocate()
        base = nil
    }
}

/// Everything between a step's tokens and its logits, for one slice of the batch. Bounded by
/// `EngineOptions.rowsMax` and `CPUEngine.Limits`.
struct StepScratch {
    let hidden = GrowingBuffer<Float>()  // [rows][hiddenSize]
    let normed = GrowingBuffer<Float>()  // [rows][hiddenSize]
    let queries = GrowingBuffer<Float>()  // [rows][headCount][headDim]
    let keys = GrowingBuffer<Float>()  // [rows][kvHeadCount][headDim]
    let values = GrowingBuffer<Float>()  // [rows][kvHeadCount][headDim]
    let attended = GrowingBuffer<Float>()  // [rows][headCount][headDim]
    let gate = GrowingBuffer<Float>()  // [rows][ffnSize], read only where the down projection reads floats
    let cosines = GrowingBuffer<Float>()  // [rows][headDim / 2]
    let sines = GrowingBuffer<Float>()  // [rows][headDim / 2]
    let positions = GrowingBuffer<UInt32>()  // [rows]
    let tokens = GrowingBuffer<UInt32>()  // [rows]
    let tables = GrowingBuffer<UInt32>()  // block tables of the slice, one after another
    let places = GrowingBuffer<RowPlace>()  // [rows]
    let attention = GrowingBuffer<Float>()  // [workers][tk_attend_scratch]
    let partials = GrowingBuffer<Float>()  // [split parts][segments][tk_attend_partial]
    let unfinished = SharedCounters()  // [split parts]
    let sampled = GrowingBuffer<Float>()  // [logit rows][hiddenSize]
    let logits = GrowingBuffer<Float>()  // [logit rows][vocabularySize]
    let probabilities = GrowingBuffer<Float>()  // [workers][vocabularySize]
}
