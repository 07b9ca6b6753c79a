import DecodeCore
import KVPaging
import Messages
import PrefillCore
import ServingTypes

/// One worker process: the production core of its role, its engine, and what its driver keeps.
final class SimulatedNode {
    let index: Int
    let id: WorkerID
    let shape: SimulatedWorker
    /// Counts the processes of this name; events of an earlier one are nobody's.
    var life = 0
    var isAlive = false
    var ref: WorkerRef
    var prefill: PrefillWorkerCore?
    var decode: DecodeWorkerCore?
    var engine: SimulatedEngine
    /// Stopped by a signal until then; what comes meanwhile waits.
    var frozenUntil: Int64 = 0
    var deferred: [SimulationEvent] = []
    /// The machine's, whatever processes come and go on it.
    var clock: SimulatedClock

    /// The control link, while this side holds it up, and the wait before the next attempt.
    var control: Int?
    var backoff: Int64 = SimulatedNode.backoffFirst

    /// Page links that this process made, by target.
    var peers: [WorkerRef: Int] = [:]
    /// Where pages may land; the receiver's side of the fence.
    var landings: [TransferID: Landing] = [:]
    /// Checks of runs with audits: the attempts that this process has accepted, and when a
    /// reservation was last heard of.
    var accepted: [JobID: Attempt] = [:]
    var lastHeard: [TransferID: Int64] = [:]
    /// Slots of open landings whose bytes have not come, by how many landings name them.
    var writable: [Int32]

    /// What lies in the host tier, and when its last move will be done.
    var host: [SlotContent] = []
    var swapBusyUntil: Int64 = 0

    /// Seconds in steps since the simulation began, over all lives.
    var busySeconds = 0.0
    var steps: UInt64 = 0
    var isDraining = false
    /// What the engine computes.
    var step: RunningStep?
    /// Seconds for which steps waited for pages on their way, where they do.
    var swapWaitSeconds = 0.0

    static let backoffFirst: Int64 = 100_000_000
    static let backoffMax: Int64 = 2_000_000_000

    struct Landing {
        var source: WorkerRef
        var slots: [UInt32: BlockSlot]
        var landed: Set<UInt32> = []
        /// The block that a receiver is inside of, and its link.
        var inside: (block: UInt32, link: Int)?
        var isClosed = false
    }

    init(index: Int, name: String, shape: SimulatedWorker, configuration: SimulationConfiguration) {
        self.index = index
        id = WorkerID(name)
        self.shape = shape
        ref = WorkerRef(id: id, epoch: Epoch(0))
        clock = configuration.clocks.clock(index)
        writable = Array(repeating: 0, count: shape.blockCount)
        engine = SimulatedEngine(
            blockCount: shape.blockCount, blockTokens: configuration.blockTokens,
            readsEverything: configuration.audits)
    }

    /// A new process: new epoch, empty memory.
    func start(epoch: UInt64, configuration: SimulationConfiguration) {
        life += 1
        isAlive = true
        isDraining = false
        step = nil
        frozenUntil = 0
        control = nil
        backoff = Self.backoffFirst
        peers = [:]
        landings = [:]
        accepted = [:]
        lastHeard = [:]
        writable = Array(repeating: 0, count: shape.blockCount)
        host = Array(repeating: SlotContent(), count: shape.swapPages)
        swapBusyUntil = 0
        ref = WorkerRef(id: id, epoch: Epoch(epoch))
        engine = SimulatedEngine(
            blockCount: shape.blockCount, blockTokens: configuration.blockTokens,
            readsEverything: configuration.audits)
        let naming = configuration.naming
        switch shape.role {
        case .prefill: prefill = PrefillWorkerCore(configuration: prefillConfiguration(configuration), naming: naming)
        case .decode, .mixed:
            decode = DecodeWorkerCore(configuration: decodeConfiguration(configuration), naming: naming)
        }
    }

    private func prefillConfiguration(_ simulation: SimulationConfiguration) -> PrefillConfiguration {
        var result = PrefillConfiguration(
            own: ref, blockTokens: simulation.blockTokens, blockCount: shape.blockCount,
            pageBytes: simulation.pageBytes)
        result.stepTokensMax = shape.stepTokensMax
        result.prefillChunkTokens = shape.prefillChunkTokens
        result.contextTokensMax = simulation.contextTokensMax
        result.jobsMax = shape.jobsMax
        result.orphanGrace = simulation.orphanGrace
        result.tick = simulation.tick
        return result
    }

    private func decodeConfiguration(_ simulation: SimulationConfiguration) -> DecodeConfiguration {
        var result = DecodeConfiguration(
            own: ref, role: shape.role, blockTokens: simulation.blockTokens, blockCount: shape.blockCount,
            pageBytes: simulation.pageBytes)
        result.dataHost = id.name
        result.dataPort = 1
        result.batchJobsMax = shape.batchJobsMax
        result.stepTokensMax = shape.stepTokensMax
        result.prefillChunkTokens = shape.prefillChunkTokens
        result.contextTokensMax = simulation.contextTokensMax
        result.jobsMax = shape.jobsMax
        result.creditWindowBytes = simulation.creditPages * simulation.pageBytes
        result.orphanGrace = simulation.orphanGrace
        result.bufferedTokensMax = simulation.bufferedTokensMax
        result.swapPages = shape.swapPages
        result.swapsAhead = shape.swapsAhead
        result.reservesWholeJobs = shape.reservesWholeJobs
        (result.stepLimit, result.stepStretch) = (shape.stepLimit, shape.stepStretch)
        result.tick = simulation.tick
        return result
    }

    var blockCounts: BlockCounts { prefill?.blockCounts ?? decode?.blockCounts ?? BlockCounts() }
    var heldTransfers: [TransferID] { prefill?.heldTransfers ?? decode?.heldTransfers ?? [] }
    func audit() -> String? { prefill?.audit() ?? decode?.audit() }
    var swapCounts: SwapCounts { decode?.swapCounts ?? SwapCounts() }
}

/// A control link: each side holds it up or not, and each direction keeps its order.
final class ControlLink {
    let id: Int
    let node: Int
    let life: Int
    let ref: WorkerRef
    let coordinatorLife: Int
    var isUpAtWorker = false
    var isUpAtCoordinator = false
    /// Nothing passes any more, though a side may not have noticed.
    var isCut = false
    var lastToWorker: Int64 = 0
    var lastToCoordinator: Int64 = 0

    init(id: Int, node: SimulatedNode, coordinatorLife: Int) {
        self.id = id
        self.node = node.index
        self.coordinatorLife = coordinatorLife
        life = node.life
        ref = node.ref
    }
}

/// A page link from one process to another: the sender's queue, and what each side knows of it.
final class PageLink {
    let id: Int
    let source: Int
    let sourceLife: Int
    let sourceRef: WorkerRef
    let target: Int
    let targetRef: WorkerRef
    let path: KVPath
    var isRelayed = false
    var isUpAtSource = false
    var isUpAtTarget = false
    var isCut = false
    /// Ended by its own side: what comes on it is stale.
    var isReleased = false
    var lastToTarget: Int64 = 0
    var lastToSource: Int64 = 0

    var queue: [Item] = []
    var head = 0
    /// In the sending thread's hands.
    var current: Item?
    var stopsAfterCurrent = false

    enum Item {
        /// With the content that the slot had when the page was pushed.
        case page(TransferID, OutgoingPage, SlotContent)
        case message(TransferID, Message)

        var transfer: TransferID {
            switch self {
            case .page(let transfer, _, _), .message(let transfer, _): transfer
            }
        }
    }

    init(id: Int, source: SimulatedNode, target: SimulatedNode, targetRef: WorkerRef, path: KVPath) {
        self.id = id
        self.source = source.index
        self.target = target.index
        self.targetRef = targetRef
        self.path = path
        sourceLife = source.life
        sourceRef = source.ref
    }

    var isQueueEmpty: Bool { head == queue.count }

    func append(_ item: Item) { queue.append(item) }

    /// The first item of the transfer whose turn it is; order within a transfer is kept.
    func takeNext(turn: TransferID?) -> Item? {
        guard head < queue.count else { return nil }
        let position = turn.flatMap { turn in queue[head...].firstIndex { $0.transfer == turn } } ?? head
        if position == head {
            defer {
                head += 1
                if head > 64, 2 * head > queue.count {
                    queue.removeSubrange(..<head)
                    head = 0
                }
            }
            return queue[head]
        }
        return queue.remove(at: position)
    }

    func remove(_ transfer: TransferID) {
        let kept = queue[head...].filter { $0.transfer != transfer }
        queue = kept
        head = 0
    }

    func clear() {
        queue = []
        head = 0
    }
}

/// A page on its way.
struct PageInFlight {
    var transfer: TransferID
    var block: UInt32
    var filledTokens: Int
    var content: SlotContent
    var isCorrupt: Bool
}

/// What will happen; each is handled by the process that it names, if that one still lives.
enum SimulationEvent {
    case coordinatorTick(life: Int)
    case workerTick(node: Int, life: Int)
    case connectControl(node: Int, life: Int)
    case controlReachesCoordinator(Int)
    case controlReachesWorker(Int)
    case controlEndsAtCoordinator(Int)
    case controlEndsAtWorker(Int)
    case messageToCoordinator(Int, Message)
    case messageToWorker(Int, Message)
    case pageLinkUp(Int)
    case pageLinkReachesTarget(Int)
    case pageLinkFails(Int)
    case pageLinkEndsAtSource(Int)
    case pageLinkEndsAtTarget(Int)
    case senderDone(Int)
    case pageBegins(Int, TransferID, UInt32)
    case pageArrives(Int, PageInFlight)
    case messageToTarget(Int, Message)
    case messageToSource(Int, Message)
    case pushingStopped(node: Int, life: Int, TransferID)
    case landingReleased(node: Int, life: Int, TransferID)
    case stepFinished(node: Int, life: Int, step: UInt64)
    case swapDone(node: Int, life: Int, SimulatedMove)
    case arrival
    case submission(Int)
    case cancellation(Int)
    case startCoordinator
    case startWorker(Int)
    case exit(node: Int, life: Int)
    case thaw(Int)
    case thawCoordinator
    case fault(Fault)
}
