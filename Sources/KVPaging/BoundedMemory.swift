import ServingTypes

/// A dictionary that forgets its oldest entry when it is full.
public struct BoundedMemory<Key: Hashable & Sendable, Value: Sendable>: Sendable {
    private var values: [Key: Value] = [:]
    /// Keys in the order of their arrival; a ring of `capacity`.
    private var keys: [Key] = []
    private var oldest = 0
    private let capacity: Int

    public init(capacity: Int) {
        precondition(capacity > 0)
        self.capacity = capacity
    }

    public var count: Int { values.count }

    public subscript(key: Key) -> Value? { values[key] }

    public mutating func remember(_ value: Value, for key: Key) {
        guard values.updateValue(value, forKey: key) == nil else { return }
        if keys.count < capacity {
            keys.append(key)
        } else {
            values[keys[oldest]] = nil
            keys[oldest] = key
            oldest = (oldest + 1) % capacity
        }
    }
}

/// Remembers the highest attempt seen of each job, so that a late order for an older one is told
/// from a current one. Bounded: what it forgets is refused further down, for lack of a transfer.
public struct AttemptGuard: Sendable {
    private var latest: BoundedMemory<JobID, Attempt>

    public init(jobsMax: Int = 16_384) { latest = BoundedMemory(capacity: jobsMax) }

    /// True for an attempt above every one seen of this job; it is remembered.
    public mutating func admit(_ transfer: TransferID) -> Bool {
        if let seen = latest[transfer.job], transfer.attempt <= seen { return false }
        latest.remember(transfer.attempt, for: transfer.job)
        return true
    }
}
