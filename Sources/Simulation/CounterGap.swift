import CoordinatorCore
import ServingTypes

/// The greatest difference of virtual counters between a tenant with live jobs and one that has a job
/// which could run and does not, over a whole run (scheduling.md §4.3: at most theta + u in design C).
final class CounterGap {
    private(set) var greatest = 0.0
    private(set) var atSeconds = 0.0
    private(set) var looks = 0

    func look(_ simulation: ClusterSimulation) {
        looks += 1
        var waiting: Set<TenantID> = []
        for job in simulation.paused {
            if let tenant = simulation.jobs[job]?.request.tenant { waiting.insert(tenant) }
        }
        var (most, least) = (-Double.infinity, Double.infinity)
        for tenant in simulation.coordinator.snapshot().tenants {
            guard tenant.queuedJobs + tenant.runningJobs > 0 else { continue }
            most = max(most, tenant.virtualCounter)
            if tenant.queuedJobs > 0 || waiting.contains(tenant.tenant) { least = min(least, tenant.virtualCounter) }
        }
        guard most - least > greatest else { return }
        greatest = most - least
        atSeconds = simulation.virtualSeconds
    }
}
