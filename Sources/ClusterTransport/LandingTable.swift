import Messages
import ServingTypes
import Synchronization
import WireCodec

/// Where one expected block goes.
public struct LandingPage: Hashable, Sendable {
    public var block: UInt32
    public var slot: BlockSlot

    public init(block: UInt32, slot: BlockSlot) {
        self.block = block
        self.slot = slot
    }
}

/// Which slots may be written, by whom, for which transfer; and the fence: after `close` a transfer's
/// slots are nobody's once the last thread has left them (disaggregation.md P6, I1).
final class LandingTable: Sendable {
    /// What a receiver may do with a slice.
    enum Permission {
        /// Write it to the slot at the slice's offset; then `finish` and `leave`.
        case write(Landing, BlockSlot)
        /// Read it to nowhere; answer with the reason, if there is one.
        case refuse(PageNack.Reason?)
        /// These bytes are in the slot and verified already.
        case repeated
        /// Another link is inside the slot; end that one and ask again.
        case busy(link: UInt64)
    }

    enum Outcome {
        /// The page is whole; its CRC32C.
        case landed(UInt32)
        case more
        case refused(PageNack.Reason)
    }

    /// One transfer's open slots.
    final class Landing: Sendable {
        let source: WorkerRef
        /// Read by receivers without the lock, to leave early.
        let closed = Atomic(false)

        init(source: WorkerRef) { self.source = source }
    }

    private enum Progress {
        case waiting
        case filling(link: UInt64, offset: UInt32, crc: UInt32)
        /// A slice was refused: what follows of this page on this link is not wanted until it begins anew.
        case skipping(link: UInt64)
        case landed
    }

    private struct Page {
        var slot: BlockSlot
        var progress: Progress = .waiting
        /// The link whose thread is writing now.
        var inside: UInt64?
    }

    private struct Entry {
        var landing: Landing
        var pages: [UInt32: Page]
        var threadsInside = 0
    }

    private let entries = Monitor<[TransferID: Entry]>([:])

    func open(_ transfer: TransferID, source: WorkerRef, pages: [LandingPage]) {
        entries.change { entries in
            var entry = entries[transfer] ?? Entry(landing: Landing(source: source), pages: [:])
            guard !entry.landing.closed.load(ordering: .relaxed) else { return }
            for page in pages where entry.pages[page.block] == nil {
                entry.pages[page.block] = Page(slot: page.slot)
            }
            entries[transfer] = entry
        }
    }

    /// True if nobody is inside: the caller reports the release. Else the last one to leave does.
    func close(_ transfer: TransferID) -> Bool {
        entries.change { entries in
            guard let entry = entries[transfer] else { return true }
            guard entry.threadsInside > 0 else {
                entries[transfer] = nil
                return true
            }
            entry.landing.closed.store(true, ordering: .relaxed)
            return false
        }
    }

    /// Judges a slice whose range lies within its page. Changes are made in place: a copy of a long
    /// transfer's table for every slice would cost more than the slice.
    func enter(_ push: PagePush, link: UInt64, source: WorkerRef) -> Permission {
        entries.change { entries in
            guard let landing = entries[push.transfer]?.landing,
                var page = entries[push.transfer]?.pages[push.block]
            else { return .refuse(.noSlot) }
            guard landing.source == source else {
                return .refuse(landing.source.id == source.id ? .staleEpoch : .noSlot)
            }
            guard !landing.closed.load(ordering: .relaxed) else { return .refuse(.cancelled) }
            if let other = page.inside { return .busy(link: other) }
            let decision = Self.judge(&page, push, link: link)
            if case .write = decision {
                page.inside = link
                entries[push.transfer]?.threadsInside += 1
            }
            entries[push.transfer]?.pages[push.block] = page
            return decision.permission(landing, page.slot)
        }
    }

    private enum Decision {
        case write
        case refuse(PageNack.Reason?)
        case repeated

        func permission(_ landing: Landing, _ slot: BlockSlot) -> Permission {
            switch self {
            case .write: .write(landing, slot)
            case .refuse(let reason): .refuse(reason)
            case .repeated: .repeated
            }
        }
    }

    private static func judge(_ page: inout Page, _ push: PagePush, link: UInt64) -> Decision {
        if case .landed = page.progress { return .repeated }
        if push.offsetBytes == 0 {
            page.progress = .filling(link: link, offset: 0, crc: 0)
            return .write
        }
        switch page.progress {
        case .filling(let owner, let offset, _) where owner == link && offset == push.offsetBytes: return .write
        case .skipping(let owner) where owner == link: return .refuse(nil)
        case .waiting, .filling, .skipping, .landed:
            page.progress = .skipping(link: link)
            return .refuse(.badRange)
        }
    }

    /// Judges a written slice, whose thread still counts as inside. `crc` is what the bytes came to;
    /// nil if they did not all come.
    func finish(_ push: PagePush, link: UInt64, crc: UInt32?) -> Outcome {
        entries.change { entries in
            guard let landing = entries[push.transfer]?.landing,
                let progress = entries[push.transfer]?.pages[push.block]?.progress
            else { return .refused(.noSlot) }
            guard !landing.closed.load(ordering: .relaxed) else { return .refused(.cancelled) }
            let (next, outcome) = Self.judge(progress, push, link: link, crc: crc)
            entries[push.transfer]?.pages[push.block]?.progress = next
            return outcome
        }
    }

    private static func judge(_ progress: Progress, _ push: PagePush, link: UInt64, crc: UInt32?) -> (
        next: Progress, outcome: Outcome
    ) {
        guard let crc, case .filling(_, let offset, let before) = progress else {
            return (.waiting, .refused(.cancelled))
        }
        guard crc == push.payloadCRC else { return (.skipping(link: link), .refused(.checksum)) }
        let whole = CRC32C.combine(before, crc, count: Int(push.payloadBytes))
        let end = offset + push.payloadBytes
        if end == push.pageBytes { return (.landed, .landed(whole)) }
        return (.filling(link: link, offset: end, crc: whole), .more)
    }

    /// The thread is out of the slot. True if this was the last one of a closed transfer: the caller
    /// reports the release.
    func leave(_ push: PagePush) -> Bool {
        entries.change { entries in
            entries[push.transfer]?.pages[push.block]?.inside = nil
            entries[push.transfer]?.threadsInside -= 1
            guard let entry = entries[push.transfer], entry.threadsInside == 0,
                entry.landing.closed.load(ordering: .relaxed)
            else { return false }
            entries[push.transfer] = nil
            return true
        }
    }

    /// Threads that write to a transfer's slots at this moment.
    func threadsInside(_ transfer: TransferID) -> Int { entries.read { $0[transfer]?.threadsInside ?? 0 } }

    /// Waits until no thread is inside this block.
    func waitUntilFree(_ push: PagePush) {
        entries.wait { entries in entries[push.transfer]?.pages[push.block]?.inside == nil ? () : nil }
    }
}
