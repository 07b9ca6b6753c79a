import CKernels

/// Memory that grows to what was asked of it and stays. Contents do not survive growth.
final class GrowingBuffer<Element: BitwiseCopyable> {
    private var base: UnsafeMutablePointer<Element>?
    private var capacity = 0

    deinit {
        base?.deallocate()
    }

    /// At least `count` elements, not initialised.
    func reserve(_ count: Int) -> UnsafeMutablePointer<Element> {
        if let base, count <= capacity { return base }
        base?.deallocate()
        capacity = max(count, 1)
        let fresh = UnsafeMutablePointer<Element>.allocate(capacity: capacity)
        base = fresh
        return fresh
    }
}

/// Everything between a step's tokens and its logits, for one slice of the batch. Bounded by
/// `EngineOptions.rowsMax` and `CPUEngine.Limits`.
struct StepScratch {
    var hidden = GrowingBuffer<Float>()  // [rows][hiddenSize]
    var normed = GrowingBuffer<Float>()  // [rows][hiddenSize]
    var update = GrowingBuffer<Float>()  // [rows][hiddenSize]
    var queries = GrowingBuffer<Float>()  // [rows][headCount][headDim]
    var keys = GrowingBuffer<Float>()  // [rows][kvHeadCount][headDim]
    var values = GrowingBuffer<Float>()  // [rows][kvHeadCount][headDim]
    var attended = GrowingBuffer<Float>()  // [rows][headCount][headDim]
    var gate = GrowingBuffer<Float>()  // [rows][ffnSize]
    var up = GrowingBuffer<Float>()  // [rows][ffnSize]
    var cosines = GrowingBuffer<Float>()  // [rows][headDim / 2]
    var sines = GrowingBuffer<Float>()  // [rows][headDim / 2]
    var positions = GrowingBuffer<UInt32>()  // [rows]
    var tables = GrowingBuffer<UInt32>()  // block tables of the slice, one after another
    var attention = GrowingBuffer<Float>()  // [workers][tk_attend_scratch]
    var sampled = GrowingBuffer<Float>()  // [logit rows][hiddenSize]
    var logits = GrowingBuffer<Float>()  // [logit rows][vocabularySize]
    var probabilities = GrowingBuffer<Float>()  // [logit rows][vocabularySize]
}
