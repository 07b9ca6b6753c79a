/// The bridge is what lies between the roles: prompts assigned, being prefilled or under way to where
/// they decode. Each tenant that waits has a share of it by weight, and at least one job, so that one
/// tenant's prompts do not keep everybody's from a prefill worker (scheduling.md §4.6).
public struct BridgeQuota: Hashable, Sendable {
    /// Blocks that may be on the bridge in all.
    public var blocks: Int

    public init(blocks: Int) { self.blocks = max(blocks, 0) }

    /// Blocks of one tenant. `waitingWeight` sums the weights of all tenants that wait, its own with
    /// them; a tenant that waits alone may have the whole.
    public func share(weight: Double, waitingWeight: Double) -> Int {
        guard weight > 0, waitingWeight > weight else { return blocks }
        return Int((Double(blocks) * weight / waitingWeight).rounded(.down))
    }

    /// Whether a tenant with `jobs` jobs and `held` blocks on the bridge may send one more of `more`.
    public func admits(more: Int, jobs: Int, held: Int, weight: Double, waitingWeight: Double) -> Bool {
        jobs == 0 || held + more <= share(weight: weight, waitingWeight: waitingWeight)
    }
}
