import ServingTypes
import Synchronization

/// Every tenant's virtual counter as it is at this moment, in a mapped file of one slot per tenant. A
/// counter is stored after each event that moves it and before any token of that event is handed on, so
/// that a coordinator that is killed leaves counters that hold whatever it charged and every lift that it
/// gave, without a system call.
///
/// A slot holds its counter twice and says which one counts: a kill in the midst of a store leaves the
/// older one whole. What a loss of power may have torn is told by a checksum, and `TenantLedger` has the
/// counters of the last second.
///
/// `@unchecked Sendable`: slots are words written atomically by whoever keeps the counters, one at a time
/// under `slots`; the mapping lives as long as the object.
public final class CounterFile: @unchecked Sendable {
    public enum Limits {
        /// Tenants whose counters are kept here; those of further ones are written once a second only.
        public static let slots = 8192
        public static let tenantBytesMax = 96
        /// Parts of a unit that a counter may have: sums of a few stay far from overflow.
        static let range: ClosedRange<Int64> = -(1 << 61)...(1 << 61)
    }

    private enum Layout {
        static let magic: UInt64 = 0x3130_544E_4344_4E54
        static let bytes = MappedFile.headerBytes + Limits.slots * MappedFile.slotBytes
        /// Word of the header: what is counted (`LedgerContent.counting`), and whether that is known.
        static let counting = 1
        static let hasCounting = 2
        // Words of a slot: which copy counts (0 none), the name's length, two copies, the name.
        static let current = 0
        static let tenantBytes = 1
        static let copies = 2
        static let copyWords = 9
        static let tenantAt = 160
    }

    private struct Slots {
        var byTenant: [TenantID: Int] = [:]
        var free: [Int] = []
        var stamps: [TenantID: Int64] = [:]
        var lastStamp: Int64 = 0
    }

    private let file: MappedFile
    private let slots: Mutex<Slots>
    /// What was found when the file was opened.
    public let found: [CounterRow]
    /// Slots that held what no version of this program wrote.
    public let unreadableSlots: Int

    /// Opens or makes the file and holds it against another coordinator; see `MarkFile`.
    public init(path: String) throws(ServingError) {
        file = try MappedFile(path: path, magic: Layout.magic, bytes: Layout.bytes)
        var (state, rows, unreadable) = (Slots(), [CounterRow](), 0)
        for slot in (0..<Limits.slots).reversed() {
            let isUsed = Self.load(file, slot, Layout.current) != 0
            if isUsed, let row = Self.read(file, slot), state.byTenant[row.tenant] == nil {
                state.byTenant[row.tenant] = slot
                state.stamps[row.tenant] = row.stamp
                state.lastStamp = max(state.lastStamp, row.stamp)
                rows.append(row)
                continue
            }
            if isUsed {
                unreadable += 1
                Self.store(0, file, slot, Layout.current)
            }
            state.free.append(slot)
        }
        found = rows
        unreadableSlots = unreadable
        slots = Mutex(state)
    }

    /// What the counters count; nil where that was never said.
    public var counting: Int64? {
        let header = file.base.assumingMemoryBound(to: Atomic<UInt64>.self)
        guard header[Layout.hasCounting].load(ordering: .acquiring) == 1 else { return nil }
        return Int64(bitPattern: header[Layout.counting].load(ordering: .acquiring))
    }

    /// From now on counters of this kind are kept.
    public func setCounting(_ tag: Int64) {
        let header = file.base.assumingMemoryBound(to: Atomic<UInt64>.self)
        header[Layout.counting].store(UInt64(bitPattern: tag), ordering: .releasing)
        header[Layout.hasCounting].store(1, ordering: .releasing)
    }

    /// Forgets every counter.
    public func clear() {
        slots.withLock { slots in
            for slot in slots.byTenant.values { Self.store(0, file, slot, Layout.current) }
            slots.free += slots.byTenant.values.sorted(by: >)
            slots.byTenant = [:]
            slots.stamps = [:]
        }
    }

    /// Stamps go on behind this one, which another file may hold.
    public func stampsFollow(_ stamp: Int64) { slots.withLock { $0.lastStamp = max($0.lastStamp, stamp) } }

    /// The stamp of the tenant's counter here; 0 where it is not kept here.
    public func stamp(of tenant: TenantID) -> Int64 { slots.withLock { $0.stamps[tenant] ?? 0 } }

    public var count: Int { slots.withLock { $0.byTenant.count } }

    /// Stores a counter; the row's own stamp does not matter. False where there is no slot for it.
    @discardableResult
    public func keep(_ row: CounterRow) -> Bool {
        slots.withLock { slots in
            guard let slot = slots.byTenant[row.tenant] ?? newSlot(row.tenant, &slots) else { return false }
            slots.lastStamp += 1
            slots.stamps[row.tenant] = slots.lastStamp
            store(row, stamp: slots.lastStamp, in: slot)
            return true
        }
    }

    /// Gives back the slots of tenants that nobody knows any more.
    public func forget(allBut known: Set<TenantID>) {
        slots.withLock { slots in
            for (tenant, slot) in slots.byTenant.sorted(by: { $0.value < $1.value }) where !known.contains(tenant) {
                Self.store(0, file, slot, Layout.current)
                slots.byTenant[tenant] = nil
                slots.stamps[tenant] = nil
                slots.free.append(slot)
            }
        }
    }

    // MARK: Slots

    private func newSlot(_ tenant: TenantID, _ slots: inout Slots) -> Int? {
        let name = Array(tenant.name.utf8)
        guard name.count <= Limits.tenantBytesMax, let slot = slots.free.popLast() else { return nil }
        let start = file.start(of: slot)
        Self.store(UInt64(name.count), file, slot, Layout.tenantBytes)
        name.withUnsafeBytes { bytes in
            if let address = bytes.baseAddress {
                (start + Layout.tenantAt).copyMemory(from: address, byteCount: bytes.count)
            }
        }
        slots.byTenant[tenant] = slot
        return slot
    }

    /// Into the copy that does not count, which then does.
    private func store(_ row: CounterRow, stamp: Int64, in slot: Int) {
        let next: UInt64 = Self.load(file, slot, Layout.current) == 1 ? 2 : 1
        let first = Layout.copies + Int(next - 1) * Layout.copyWords
        let words = [
            row.value, row.lifted, row.prefillWork, row.decodeWork, row.promptAhead, row.outputAhead,
            row.ceasedWaiting, stamp,
        ]
        for (index, word) in words.enumerated() {
            Self.store(UInt64(bitPattern: word), file, slot, first + index)
        }
        Self.store(Self.checksum(words, row.tenant.name.utf8), file, slot, first + words.count)
        Self.store(next, file, slot, Layout.current)
    }

    /// FNV-1a over words and name: enough against torn pages, nobody forges one's own accounts.
    private static func checksum(_ words: [Int64], _ name: some Sequence<UInt8>) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for word in words { hash = (hash ^ UInt64(bitPattern: word)) &* 0x0000_0100_0000_01B3 }
        for byte in name { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01B3 }
        return hash
    }

    private static func load(_ file: MappedFile, _ slot: Int, _ word: Int) -> UInt64 {
        file.word(slot, word).pointee.load(ordering: .acquiring)
    }

    private static func store(_ value: UInt64, _ file: MappedFile, _ slot: Int, _ word: Int) {
        file.word(slot, word).pointee.store(value, ordering: .releasing)
    }

    /// The copy that counts or, where it is damaged, the other one.
    private static func read(_ file: MappedFile, _ slot: Int) -> CounterRow? {
        let current = Self.load(file, slot, Layout.current)
        let length = Self.load(file, slot, Layout.tenantBytes)
        guard current == 1 || current == 2, length <= UInt64(Limits.tenantBytesMax) else { return nil }
        let start = file.start(of: slot) + Layout.tenantAt
        let bytes = UnsafeRawBufferPointer(start: start, count: Int(length))
        guard let name = String(validating: bytes, as: UTF8.self) else { return nil }
        return read(file, slot, copy: Int(current - 1), name) ?? read(file, slot, copy: Int(2 - current), name)
    }

    private static func read(_ file: MappedFile, _ slot: Int, copy: Int, _ name: String) -> CounterRow? {
        let first = Layout.copies + copy * Layout.copyWords
        let words = (0..<Layout.copyWords - 1).map { Int64(bitPattern: load(file, slot, first + $0)) }
        let sum = Self.load(file, slot, first + Layout.copyWords - 1)
        guard sum == checksum(words, name.utf8), words.allSatisfy(Limits.range.contains) else { return nil }
        var row = CounterRow(tenant: TenantID(name), value: words[0], lifted: words[1])
        (row.prefillWork, row.decodeWork) = (words[2], words[3])
        (row.promptAhead, row.outputAhead) = (words[4], words[5])
        (row.ceasedWaiting, row.stamp) = (words[6], words[7])
        return row
    }
}
