import ServingTypes
import Synchronization

/// What every live job has come to, in a mapped file: one slot per job, written by plain stores before
/// tokens are handed on. The kernel keeps the pages of a process that is killed, so that the next one
/// reads exactly what had been handed on, without a system call per token. A loss of power may lose
/// what the kernel had not written yet; `TenantLedger` has the counts of the last second.
///
/// `@unchecked Sendable`: slots are words written atomically, each by whoever holds the slot; the list
/// of free slots is in a `Mutex`; the mapping lives as long as the object.
public final class MarkFile: @unchecked Sendable {
    public enum Limits {
        /// Jobs that may be open at once; more are refused.
        public static let slots = 16_384
        public static let tenantBytesMax = 128
        static let endingBytesMax = 23
    }

    /// One open job.
    public struct Mark: Hashable, Sendable {
        public var slot: Int
        public var reservation: Reservation
        public var counts: TokenCounts
        /// Set once the job has ended, until its settlement is on disk.
        public var ending: String?
    }

    private enum Layout {
        static let magic: UInt64 = 0x3130_4B52_414D_4454
        static let bytes = MappedFile.headerBytes + Limits.slots * MappedFile.slotBytes
        // Words of a slot, and where its two texts begin.
        static let state = 0
        static let job = 1
        static let prompt = 3
        static let outputMax = 4
        static let counts = 5
        static let startedAt = 11
        static let tenantBytes = 12
        static let endingAt = 104
        static let tenantAt = 128
    }

    private enum State {
        static let free: UInt64 = 0
        static let open: UInt64 = 1
        static let ended: UInt64 = 2
    }

    private let file: MappedFile
    private let freeSlots: Mutex<[Int]>
    /// Slots that hold what no version of this program wrote.
    public let unreadableSlots: Int
    /// Whether a file that no version of this program wrote was set aside.
    public var setAside: Bool { file.setAside }

    /// Opens or makes the file and holds it against another coordinator. A file with a foreign header
    /// is set aside under the name `<path>.unreadable`.
    public init(path: String) throws(ServingError) {
        file = try MappedFile(path: path, magic: Layout.magic, bytes: Layout.bytes)
        var (free, unreadable) = ([Int](), 0)
        for slot in (0..<Limits.slots).reversed() {
            switch Self.read(file, slot) {
            case .free: free.append(slot)
            case .mark: break
            case .unreadable:
                unreadable += 1
                file.word(slot, Layout.state).pointee.store(State.free, ordering: .releasing)
                free.append(slot)
            }
        }
        freeSlots = Mutex(free)
        unreadableSlots = unreadable
    }

    // MARK: One job

    /// Whether there are slots for so many jobs and one more.
    public func hasRoom(besides expected: Int = 0) -> Bool { freeSlots.withLock { $0.count > expected } }

    /// A slot for a job; nil where none is free or the tenant's name is too long.
    public func open(_ reservation: Reservation) -> Int? {
        let name = Array(reservation.tenant.name.utf8)
        guard name.count <= Limits.tenantBytesMax, let slot = freeSlots.withLock({ $0.popLast() }) else { return nil }
        set(slot, Layout.job, reservation.job.high)
        set(slot, Layout.job + 1, reservation.job.low)
        set(slot, Layout.prompt, UInt64(bitPattern: reservation.promptTokens))
        set(slot, Layout.outputMax, UInt64(bitPattern: reservation.outputMax))
        set(slot, Layout.startedAt, UInt64(bitPattern: reservation.startedAt))
        note(slot, TokenCounts())
        set(slot, Layout.tenantBytes, UInt64(name.count))
        copy(name, to: slot, at: Layout.tenantAt)
        set(slot, Layout.state, State.open)
        return slot
    }

    /// What the job has come to. To be called before the tokens go to anybody.
    public func note(_ slot: Int, _ counts: TokenCounts) {
        let values = [
            counts.computed, counts.cached, counts.decoded, counts.recomputed, counts.caused, counts.streamed,
        ]
        for (index, value) in values.enumerated() { set(slot, Layout.counts + index, UInt64(bitPattern: value)) }
    }

    /// The job is over; the slot stays until its settlement is on disk.
    public func end(_ slot: Int, _ counts: TokenCounts, ending: String) {
        let text = Array(ending.utf8.prefix(Limits.endingBytesMax))
        copy([UInt8(text.count)] + text, to: slot, at: Layout.endingAt)
        note(slot, counts)
        set(slot, Layout.state, State.ended)
    }

    public func free(_ slot: Int) {
        set(slot, Layout.state, State.free)
        freeSlots.withLock { $0.append(slot) }
    }

    /// Every slot that is not free.
    public var marks: [Mark] {
        (0..<Limits.slots).compactMap { slot in
            if case .mark(let mark) = Self.read(file, slot) { return mark }
            return nil
        }
    }

    // MARK: Words

    private func set(_ slot: Int, _ word: Int, _ value: UInt64) {
        file.word(slot, word).pointee.store(value, ordering: .releasing)
    }

    private func copy(_ bytes: [UInt8], to slot: Int, at offset: Int) {
        let start = file.start(of: slot) + offset
        bytes.withUnsafeBytes { source in
            if let address = source.baseAddress { start.copyMemory(from: address, byteCount: source.count) }
        }
    }

    private enum Reading {
        case free
        case mark(Mark)
        case unreadable
    }

    private static func read(_ file: MappedFile, _ slot: Int) -> Reading {
        func value(_ index: Int) -> UInt64 { file.word(slot, index).pointee.load(ordering: .acquiring) }
        func count(_ index: Int) -> Int64 { Int64(bitPattern: value(index)) }
        let start = file.start(of: slot)
        func text(at offset: Int, count: Int) -> String? {
            String(validating: UnsafeRawBufferPointer(start: start + offset, count: count), as: UTF8.self)
        }
        let state = value(Layout.state)
        guard state != State.free else { return .free }
        let length = value(Layout.tenantBytes)
        guard state <= State.ended, length <= UInt64(Limits.tenantBytesMax),
            let tenant = text(at: Layout.tenantAt, count: Int(length)),
            (0..<6).allSatisfy({ TokenCounts.range.contains(count(Layout.counts + $0)) }),
            TokenCounts.range.contains(count(Layout.prompt)), TokenCounts.range.contains(count(Layout.outputMax))
        else { return .unreadable }
        let reservation = Reservation(
            job: JobID(high: value(Layout.job), low: value(Layout.job + 1)), tenant: TenantID(tenant),
            promptTokens: count(Layout.prompt), outputMax: count(Layout.outputMax),
            startedAt: count(Layout.startedAt))
        let counts = TokenCounts(
            computed: count(Layout.counts), cached: count(Layout.counts + 1), decoded: count(Layout.counts + 2),
            recomputed: count(Layout.counts + 3), caused: count(Layout.counts + 4),
            streamed: count(Layout.counts + 5))
        var ending: String?
        if state == State.ended {
            let size = min(Int(start.load(fromByteOffset: Layout.endingAt, as: UInt8.self)), Limits.endingBytesMax)
            ending = text(at: Layout.endingAt + 1, count: size) ?? Settlement.lost
        }
        return .mark(Mark(slot: slot, reservation: reservation, counts: counts, ending: ending))
    }
}
