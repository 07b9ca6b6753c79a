import BoundedJSON
import FaultProxy
import Foundation
import Synchronization
import Testing

/// What the rounds gave, by kind of fault.
final class FaultMatrix: Sendable {
    struct Row: Sendable {
        var rounds = 0
        var struck = 0
        var passed = 0
    }

    private let rows = Mutex<[String: Row]>([:])
    private let slowest = Mutex<[String: Duration]>([:])

    func add(_ fault: MatrixFault, struck: Bool, passed: Bool) {
        rows.withLock { rows in
            rows[fault.row, default: Row()].rounds += 1
            rows[fault.row, default: Row()].struck += struck ? 1 : 0
            rows[fault.row, default: Row()].passed += passed ? 1 : 0
        }
    }

    func took(_ what: String, _ time: Duration) {
        slowest.withLock { $0[what] = max($0[what] ?? .zero, time) }
    }

    var total: Row {
        rows.withLock { rows in
            rows.values.reduce(into: Row()) { sum, row in
                sum.rounds += row.rounds
                sum.struck += row.struck
                sum.passed += row.passed
            }
        }
    }

    var table: String {
        let all = rows.withLock { $0 }
        let sum = total
        let lines = all.keys.sorted().map { name in Self.line(name, all[name] ?? Row()) }
        let times = slowest.withLock { $0 }.sorted { $0.key < $1.key }.map { "slowest \($0.key): \($0.value)" }
        return
            (["fault                                      rounds  struck  passed"] + lines
            + [Self.line("all", sum)] + times).joined(separator: "\n")
    }

    private static func line(_ name: String, _ row: Row) -> String {
        func column(_ number: Int) -> String {
            String(repeating: " ", count: max(8 - "\(number)".count, 0)) + "\(number)"
        }
        return name.padding(toLength: 41, withPad: " ", startingAt: 0) + column(row.rounds) + column(row.struck)
            + column(row.passed)
    }
}

/// The model as it was when the rounds began: one that is trained on beside them may change.
private struct ModelCopy {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("tandem-model-\(UUID().uuidString)").path

    init() throws { try FileManager.default.copyItem(atPath: Paths.model, toPath: path) }

    func remove() { try? FileManager.default.removeItem(atPath: path) }
}

/// One round on a living cluster: jobs, faults beside them, and the oracle.
private struct MatrixRun: Sendable {
    let cluster: TestCluster
    let round: MatrixRound
    let clean: [String]
    let tenant: String
    let pieces = Tally()
    let ended = Tally()
    let left = Tally()

    struct Left: Error {}

    private var isOver: Bool { ended.count >= round.jobs.count }

    /// Whether each fault struck.
    func play() async throws -> [Bool] {
        async let strikes = strikeAll()
        let wrong = await withTaskGroup(of: [String].self) { group in
            for client in 0..<round.clients { group.addTask { await workThrough(client) } }
            return await group.reduce(into: [String]()) { $0 += $1 }
        }
        let struck = try await strikes
        guard wrong.isEmpty else { throw TestFailure(wrong.joined(separator: "; ")) }
        return struck
    }

    // MARK: Jobs

    /// One client takes every so manieth job, one after the other.
    private func workThrough(_ client: Int) async -> [String] {
        var wrong: [String] = []
        for place in stride(from: client, to: round.jobs.count, by: round.clients) {
            if let sentence = await follow(place) { wrong.append(sentence) }
        }
        return wrong
    }

    /// Nil where the job ended as it should.
    private func follow(_ place: Int) async -> String? {
        defer { _ = ended.increment() }
        let index = round.jobs[place]
        do {
            let text = try await text(place)
            return text == clean[index]
                ? nil
                : "job \(place) (\(index)) gave \(text.debugDescription), "
                    + "without faults \(clean[index].debugDescription)"
        } catch is Left {
            return nil
        } catch {
            return "job \(place) (\(index)): \(error)"
        }
    }

    private var isKeyed: Bool { round.keyed }
    private var mayBreak: Bool { round.faults.contains { $0.fault.restartsCoordinator } }

    /// A keyed job outlives its connection: its client asks again until it has the whole text.
    private func text(_ place: Int) async throws -> String {
        let deadline = ContinuousClock.now + .seconds(90)
        while true {
            do {
                return try await stream(place)
            } catch let error
                where !(error is ServerRefusal) && !(error is Left) && mayBreak
                && ContinuousClock.now < deadline
            {
                try await Task.sleep(for: .milliseconds(100))
            }
        }
    }

    private func stream(_ place: Int) async throws -> String {
        let index = round.jobs[place]
        let job = MatrixJob.catalogue[index]
        let leaves = leavesAtPiece(place)
        let key = isKeyed ? [("idempotency-key", "\(tenant)-\(place)")] : []
        return try await cluster.client.stream(
            job.prompt, maxTokens: job.maxTokens, seed: index, tenant: tenant, temperature: job.temperature,
            more: job.more, headers: key
        ) { count in
            _ = pieces.increment()
            guard let leaves, count >= leaves else { return }
            _ = left.increment()
            throw Left()
        }.text
    }

    private func leavesAtPiece(_ place: Int) -> Int? {
        for (_, fault) in round.faults {
            if case .disconnect(let jobs, let piece) = fault, place < jobs { return piece }
        }
        return nil
    }

    // MARK: Faults

    private func strikeAll() async throws -> [Bool] {
        guard round.overlap else {
            var struck: [Bool] = []
            for index in round.faults.indices { struck.append(try await strike(index)) }
            return struck
        }
        return try await withThrowingTaskGroup(of: (Int, Bool).self) { group in
            for index in round.faults.indices { group.addTask { (index, try await strike(index)) } }
            return try await group.reduce(into: round.faults.map { _ in false }) { $0[$1.0] = $1.1 }
        }
    }

    private func strike(_ index: Int) async throws -> Bool {
        await wait(for: round.faults[index].trigger)
        return try await strike(round.faults[index].fault)
    }

    private func wait(for trigger: FaultTrigger) async {
        switch trigger {
        case .milliseconds(let count): try? await Task.sleep(for: .milliseconds(count))
        case .pieces(let count): await pause { pieces.count >= count || isOver }
        }
    }

    private func pause(until done: () -> Bool) async {
        while !done() { try? await Task.sleep(for: .milliseconds(3)) }
    }

    private func sleep(_ milliseconds: Int) async { try? await Task.sleep(for: .milliseconds(milliseconds)) }

    /// A worker of the role that has work, or any; and whether it has.
    private func victim(_ role: MatrixRole) async -> (name: String, busy: Bool) {
        let names = cluster.workerNames.filter { $0.hasPrefix(role.rawValue) }
        for _ in 0..<20 where !isOver {
            let workers = (try? await cluster.client.get("/admin/cluster"))?["workers"]?.arrayValue ?? []
            let busy = workers.filter { $0["assigned_jobs"]?.intValue ?? 0 > 0 }.compactMap { $0["name"]?.stringValue }
            if let name = names.first(where: busy.contains) { return (name, true) }
            await sleep(10)
        }
        return (names[0], false)
    }

    private func strike(_ fault: MatrixFault) async throws -> Bool {
        switch fault {
        case .kill(let role, let back):
            let victim = await victim(role)
            try await killAndRestart(victim.name, back)
            return victim.busy
        case .killInTransfer(let role, let back): return try await killInTransfer(role, back)
        case .pause(let role, let milliseconds):
            let victim = await victim(role)
            cluster.signal(victim.name, SIGSTOP)
            await sleep(milliseconds)
            cluster.signal(victim.name, SIGCONT)
            return victim.busy
        case .coordinatorRestart(let down):
            let struck = !isOver
            cluster.kill("coordinator")
            await sleep(down)
            try cluster.startCoordinator()
            return struck
        case .pageLink(let fault, let direction, let milliseconds):
            let victim = await victim(.decode)
            return await disturb(cluster.pageProxies[victim.name], fault, direction, milliseconds)
        case .controlLink(let role, let fault, let direction, let milliseconds):
            let victim = await victim(role)
            return await disturb(cluster.controlProxies[victim.name], fault, direction, milliseconds)
        case .disconnect:
            await pause { isOver || left.count > 0 }
            return left.count > 0
        case .drain(let role, let deadline): return try await drain(role, deadline)
        case .scaleUp(let role): return try await scaleUp(role)
        }
    }

    private func killAndRestart(_ name: String, _ back: Int) async throws {
        cluster.kill(name)
        await sleep(back)
        try cluster.startWorkerIfGone(name)
    }

    private func killInTransfer(_ role: MatrixRole, _ back: Int) async throws -> Bool {
        let proxies = Array(cluster.pageProxies.values)
        func moved() -> Int { proxies.reduce(0) { $0 + $1.counts.bytesForward } }
        let before = moved()
        for proxy in proxies { proxy.set(.throttle(bytesPerSecond: 1_000_000), .forward) }
        await pause { isOver || moved() > before + 60_000 }
        let victim = await victim(role)
        let struck = moved() > before + 60_000 && !isOver && victim.busy
        cluster.kill(victim.name)
        for proxy in proxies { proxy.set(.none) }
        await sleep(back)
        try cluster.startWorkerIfGone(victim.name)
        return struck
    }

    private func disturb(_ proxy: FaultProxy?, _ fault: LinkFault, _ direction: FlowDirection?, _ time: Int) async
        -> Bool
    {
        guard let proxy else { return false }
        let before = proxy.counts
        proxy.set(fault, direction)
        let until = ContinuousClock.now + .milliseconds(time)
        await pause { isOver || ContinuousClock.now >= until }
        proxy.set(.none)
        let after = proxy.counts
        switch fault {
        case .cutAfter: return after.cuts > before.cuts
        case .corrupt: return after.flippedBits > before.flippedBits
        case .none, .stall, .slice, .delay, .throttle: return after.disturbances > before.disturbances
        }
    }

    private func drain(_ role: MatrixRole, _ deadline: Int) async throws -> Bool {
        let victim = await victim(role)
        let body: JSONValue = [
            "worker": .string(victim.name), "deadline_seconds": .integer(Int64(deadline)),
        ]
        let process = cluster.processID(victim.name)
        let accepted = (try? await cluster.client.post("/admin/drain", body))?.status == 202
        guard accepted, process != nil else { return false }
        try await leave(victim.name, process)
        try cluster.startWorkerIfGone(victim.name)
        return victim.busy
    }

    /// A coordinator that dies meanwhile forgets whom it has told, and a worker that never heard stays.
    private func leave(_ name: String, _ process: Int32?) async throws {
        let until = ContinuousClock.now + .seconds(mayBreak ? 5 : 30)
        while cluster.processID(name) == process {
            guard ContinuousClock.now < until else {
                if mayBreak { return }
                throw TestFailure("\(name) does not leave though it was drained")
            }
            await sleep(10)
        }
    }

    private func scaleUp(_ role: MatrixRole) async throws -> Bool {
        let name = "\(role.rawValue)-9"
        try cluster.startWorkerIfGone(name)
        var joined = false
        while !joined && !isOver {
            let workers = (try? await cluster.client.get("/admin/cluster"))?["workers"]?.arrayValue ?? []
            joined = workers.contains { $0["name"]?.stringValue == name }
            await sleep(20)
        }
        let struck = joined && !isOver
        await pause { isOver }
        cluster.kill(name)
        return struck
    }
}

extension ClusterSuites {
    /// Random faults on random clusters; the oracle is the text of the fault-free run, byte for byte.
    ///
    /// By default a short matrix. Many rounds, or one seed again:
    ///
    ///     TANDEM_FAULT_ROUNDS=160 swift test --skip-build --filter FaultMatrixTests
    ///     TANDEM_FAULT_SEED=17 TANDEM_FAULT_ROUNDS=4 swift test --skip-build --filter FaultMatrixTests
    @Suite struct FaultMatrixTests {
        @Test func anyFaultLeavesEveryTextAsItWas() async throws {
            let environment = ProcessInfo.processInfo.environment
            let rounds = environment["TANDEM_FAULT_ROUNDS"].flatMap(Int.init) ?? 12
            let first = environment["TANDEM_FAULT_SEED"].flatMap(UInt64.init) ?? 20_261_121
            let matrix = FaultMatrix()
            let model = try ModelCopy()
            defer { model.remove() }
            let clean = try await Self.cleanTexts(model.path)
            var failures: [String] = []
            var left = rounds
            var seed = first
            while left > 0 {
                var plan = MatrixPlan(seed: seed, rounds: min(left, MatrixPlan.roundsPerCluster))
                plan.shape.model = model.path
                failures += await Self.live(plan, clean, matrix)
                left -= plan.rounds.count
                seed += 1
            }
            print("fault matrix, seeds \(first) to \(seed - 1):\n\(matrix.table)")
            #expect(failures.isEmpty, "\(failures.joined(separator: "\n"))")
            #expect(matrix.total.struck * 2 >= matrix.total.rounds, "most faults must strike:\n\(matrix.table)")
        }

        private static func cleanTexts(_ model: String) async throws -> [String] {
            var texts: [String] = []
            try await TestCluster.with(.init(model: model), seed: 1) { cluster in
                for (index, job) in MatrixJob.catalogue.enumerated() {
                    texts.append(
                        try await cluster.client.stream(
                            job.prompt, maxTokens: job.maxTokens, seed: index, temperature: job.temperature,
                            more: job.more
                        ).text)
                }
            }
            return texts
        }

        /// The failures of one cluster's rounds; the first one ends its life.
        private static func live(_ plan: MatrixPlan, _ clean: [String], _ matrix: FaultMatrix) async -> [String] {
            let place = Mutex("start")
            do {
                try await TestCluster.with(plan.shape, seed: plan.seed) { cluster in
                    for (number, round) in plan.rounds.enumerated() {
                        let what = round.faults.map { "\($0.fault) at \($0.trigger)" }.joined(separator: " and ")
                        place.withLock { $0 = "round \(number), jobs \(round.jobs), \(what)" }
                        try await play(round, number, cluster, clean, matrix)
                    }
                }
                return []
            } catch {
                let text = "seed \(plan.seed) (\(plan.description)), \(place.withLock { $0 }): \(error)"
                print(text)
                return [text]
            }
        }

        private static func play(
            _ round: MatrixRound, _ number: Int, _ cluster: TestCluster, _ clean: [String], _ matrix: FaultMatrix
        ) async throws {
            let tenant = round.sharesCache && !round.keyed ? "shared" : "round-\(number)"
            var struck = round.faults.map { _ in false }
            var passed = false
            defer {
                for (index, fault) in round.faults.enumerated() {
                    matrix.add(fault.fault, struck: struck[index], passed: passed)
                }
            }
            let run = MatrixRun(cluster: cluster, round: round, clean: clean, tenant: tenant)
            let start = ContinuousClock.now
            struck = try await run.play()
            matrix.took("round", ContinuousClock.now - start)
            try await heal(cluster, matrix)
            let failed = try await cluster.client.get("/admin/cluster")["counters"]?["failed"]?.intValue
            guard failed == 0 else { throw TestFailure("the coordinator counts \(failed ?? -1) failed jobs") }
            passed = true
        }

        /// Everything runs again, and nothing is held.
        private static func heal(_ cluster: TestCluster, _ matrix: FaultMatrix) async throws {
            let start = ContinuousClock.now
            try await cluster.wait("all workers to be back", within: .seconds(30)) {
                for name in cluster.workerNames { try? cluster.startWorkerIfGone(name) }
                let workers = (try? await cluster.client.get("/admin/cluster"))?["workers"]?.arrayValue ?? []
                let healthy = workers.filter { ["ready", "inhibited"].contains($0["state"]?.stringValue ?? "") }
                return Set(healthy.compactMap { $0["name"]?.stringValue }) == Set(cluster.workerNames)
            }
            matrix.took("return of all workers", ContinuousClock.now - start)
            // A heartbeat from after the last job.
            try await Task.sleep(for: .milliseconds(350))
            try await cluster.waitUntilPagesAreBack(within: .seconds(30))
            matrix.took("return of all pages", ContinuousClock.now - start)
        }
    }
}
