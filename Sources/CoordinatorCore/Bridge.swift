import Scheduling
import ServingTypes

extension Phase {
    /// Given to a prefill worker, and not yet decoding elsewhere.
    var isOnBridge: Bool {
        switch self {
        case .reserving, .assigned, .prefilling, .transferring: true
        case .queued, .held, .starting, .decoding: false
        }
    }
}

/// Each tenant's share of what lies between the roles.
extension Coordinator {
    /// A job steps onto the bridge, or off it.
    mutating func countBridge(_ id: JobID, entering: Bool) {
        let units = jobs.read(id) { entering ? bridgeUnits($0.sequenceTokens) : $0.bridgeUnits } ?? 0
        let tenant = jobs.change(id) { job in
            job.bridgeUnits = entering ? units : 0
            return job.tenant
        }
        guard let tenant else { return }
        tenants[tenant]?.bridgeJobs += entering ? 1 : -1
        tenants[tenant]?.bridgeUnits += entering ? units : -units
    }

    /// Blocks of a job, but no fewer than fill a prefill worker's window of jobs.
    private func bridgeUnits(_ tokens: Int) -> Int {
        max(blocksNeeded(tokens + 1), windowBlocks / max(configuration.prefillWindowJobs, 1))
    }

    private var windowBlocks: Int { blocksNeeded(configuration.prefillWindowTokens) }

    /// Whether the job's tenant has its share of the bridge already while others wait.
    func hasItsShare(_ job: Job) -> Bool {
        guard configuration.bridgeQuotas, configuration.policy.separatesTenants, let record = tenants[job.tenant],
            record.bridgeJobs > 0
        else { return false }
        let weight = policy.weight(of: job.tenant)
        let everybody = policy.waitingWeight
        guard everybody > weight else { return false }
        let quota = BridgeQuota(blocks: configuration.bridgeBlocks ?? 2 * windowBlocks * workers.prefillCount)
        return !quota.admits(
            more: bridgeUnits(job.sequenceTokens), jobs: record.bridgeJobs, held: record.bridgeUnits, weight: weight,
            waitingWeight: everybody)
    }
}
