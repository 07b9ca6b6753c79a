import Foundation
import Messages
import ServingTypes
import Testing
import WireCodec

@testable import ClusterTransport

@Suite struct PageLinkTests {
    private let one = Fixture.transfer(1)
    private let two = Fixture.transfer(2)

    @Test(arguments: [64, 333, 1000, 4096])
    func pagesArriveAsTheyWere(slice: Int) throws {
        let receiver = try TestReceiver()
        let sender = TestSender(port: receiver.port, Fixture.configuration(slice: slice))
        receiver.open(one, blocks: 0..<5)
        receiver.open(two, blocks: 5..<9)
        sender.push(one, blocks: 0..<5)
        sender.push(two, blocks: 5..<9)
        sender.sender.start()
        try receiver.waitLanded(9)
        for block in 0..<UInt32(9) {
            #expect(receiver.pages.holds(block, seed: block), "block \(block)")
            let expected = TestPages.contents(block, 1000).withUnsafeBytes { CRC32C.checksum($0) }
            #expect(receiver.landed[block] == expected)
            try sender.log.wait("pageSent") {
                if case .pageSent(_, block, 1000, expected) = $0 { true } else { nil }
            }
        }
        #expect(!receiver.pages.holds(9, seed: 9))
        sender.sender.close()
        #expect(try sender.waitDown() == "This end closed the link.")
        receiver.server.stop()
    }

    @Test func aMessageFollowsItsTransfersPages() throws {
        let receiver = try TestReceiver()
        let sender = TestSender(port: receiver.port)
        receiver.open(one, blocks: 0..<8)
        sender.push(one, blocks: 0..<8)
        let end = TransferEnd(transfer: one, pages: [], firstToken: SampledToken(token: TokenID(1)), cachedTokens: 0)
        sender.sender.send(.transferEnd(end), after: one)
        sender.sender.start()
        let link = try receiver.log.wait("transferEnd") { event in
            if case .message(let link, Fixture.prefill, .transferEnd(end)) = event { link } else { nil }
        }
        #expect(receiver.landed.count == 8)
        receiver.server.send(.credit(Credit(transfer: one, bytes: 5)), on: link)
        try sender.log.wait("credit") { if case .message(.credit) = $0 { true } else { nil } }
        receiver.server.closeLink(link, reason: "The test is over.")
        #expect(try sender.waitDown().contains("closed the link"))
        try receiver.log.wait("linkDown") {
            if case .linkDown(link, Fixture.prefill, "The test is over.") = $0 { true } else { nil }
        }
        receiver.server.stop()
    }

    @Test func aLinkThatIsCutAnywhereLosesNothingThatLanded() throws {
        let total = try streamLength(blocks: 0..<3)
        for cut in stride(from: 1, through: total, by: 131) {
            let receiver = try TestReceiver()
            receiver.open(one, blocks: 0..<3)
            let proxy = try TestProxy(to: receiver.port, .cut(after: cut))
            let broken = TestSender(port: proxy.port)
            broken.push(one, blocks: 0..<3)
            broken.sender.start()
            _ = try broken.waitDown()
            proxy.stop()
            let again = TestSender(port: receiver.port)
            again.push(one, blocks: 0..<3)
            again.sender.start()
            try receiver.waitLanded(3)
            #expect(receiver.landed.count == 3, "cut \(cut): each block lands once")
            for block in 0..<UInt32(3) { #expect(receiver.pages.holds(block, seed: block), "cut \(cut)") }
            again.sender.close()
            receiver.server.stop()
        }
    }

    @Test func aFlippedBitNeverLands() throws {
        let total = try streamLength(blocks: 0..<1)
        var checksumRefusals = 0
        for position in stride(from: 0, to: total, by: 37) {
            let receiver = try TestReceiver()
            receiver.open(one, blocks: 0..<1)
            let proxy = try TestProxy(to: receiver.port, .flip(at: position))
            var configuration = Fixture.configuration()
            configuration.minimumProgress = .milliseconds(200)
            configuration.helloWithin = .milliseconds(300)
            let sender = TestSender(port: proxy.port, configuration)
            sender.push(one, blocks: 0..<1)
            sender.sender.send(.leaseRenew(LeaseRenew(transfer: one, lease: .seconds(1))), after: one)
            sender.sender.start()
            // The end of the test: the link broke, or everything after the damage was read.
            try receiverOrSenderIsDone(receiver, sender)
            if receiver.landed.isEmpty == false { Issue.record("byte \(position) was damaged and the page landed") }
            for case .pageRefused(one, 0, .checksum) in receiver.log.all { checksumRefusals += 1 }
            sender.sender.close()
            proxy.stop()
            receiver.server.stop()
        }
        #expect(checksumRefusals > 0)
    }

    @Test func aDamagedPageIsRefusedAndMayComeAgain() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<1)
        let raw = try RawSender(port: receiver.port)
        let page = TestPages.contents(0, 1000)
        try raw.send(RawSender.push(one, block: 0, payload: Array(page[..<600])))
        try raw.socket.send(Array(page[..<600]))
        try raw.send(RawSender.push(one, block: 0, payload: Array(page[600...]), offset: 600))
        try raw.socket.send([UInt8](repeating: 7, count: 400))
        #expect(try raw.receive() == .pageNack(PageNack(transfer: one, block: 0, reason: .checksum)))
        try raw.send(RawSender.push(one, block: 0, payload: page))
        try raw.socket.send(page)
        try receiver.waitLanded(1)
        #expect(receiver.pages.holds(0, seed: 0))
        receiver.server.stop()
    }

    @Test func everyRefusalHasItsReason() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<1)
        receiver.server.openLanding(
            two, source: WorkerRef(id: Fixture.prefill.id, epoch: Epoch(99)),
            pages: [LandingPage(block: 0, slot: BlockSlot(1))])
        let raw = try RawSender(port: receiver.port)
        let page = TestPages.contents(0, 1000)
        let cases: [(PageNack.Reason, Message)] = [
            (.noSlot, RawSender.push(Fixture.transfer(3), block: 0, payload: page)),
            (.noSlot, RawSender.push(one, block: 1, payload: page)),
            (.staleEpoch, RawSender.push(one, block: 0, payload: page, epoch: Epoch(77))),
            (.staleEpoch, RawSender.push(two, block: 0, payload: page)),
            (.badRange, RawSender.push(one, block: 0, payload: page, offset: 1)),
            (.badRange, RawSender.push(one, block: 0, payload: page, offset: .max)),
            (.badRange, RawSender.push(one, block: 0, payload: page, pageBytes: 1001)),
            (.badRange, RawSender.push(one, block: 0, payload: Array(page[500...]), offset: 500)),
        ]
        for (reason, message) in cases {
            try raw.send(message)
            guard case .pagePush(let push) = message else { continue }
            try raw.socket.send(Array(page.prefix(Int(push.payloadBytes))))
            let nack = PageNack(transfer: push.transfer, block: push.block, reason: reason)
            #expect(try raw.receive() == .pageNack(nack))
        }
        #expect(receiver.landed.isEmpty)
        receiver.server.stop()
    }

    @Test func aPageThatComesTwiceIsAcknowledgedAndLandsOnce() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<1)
        let raw = try RawSender(port: receiver.port)
        let page = TestPages.contents(0, 1000)
        for payload in [page, [UInt8](repeating: 1, count: 1000)] {
            try raw.send(RawSender.push(one, block: 0, payload: payload))
            try raw.socket.send(payload)
        }
        #expect(try raw.receive() == .pageAck(PageAck(transfer: one, blocks: [0])))
        #expect(receiver.landed.count == 1)
        #expect(receiver.pages.holds(0, seed: 0))
        receiver.server.stop()
    }

    @Test func aClosedLandingIsReleasedOnlyWhenTheThreadHasLeftTheSlot() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<2)
        receiver.open(two, blocks: 2..<3)
        let raw = try RawSender(port: receiver.port)
        let page = TestPages.contents(0, 1000)
        try raw.send(RawSender.push(one, block: 0, payload: page))
        try raw.socket.send(Array(page[..<500]))
        try receiver.waitInside(one)
        receiver.server.closeLanding(one)
        try waitReleased(receiver, one)
        #expect(receiver.server.landings.threadsInside(one) == 0)
        // The slot is someone else's now; the rest of the slice must not reach it.
        receiver.pages.fill(0, seed: 42)
        try raw.socket.send(Array(page[500...]))
        #expect(try raw.receive() == .pageNack(PageNack(transfer: one, block: 0, reason: .cancelled)))
        #expect(receiver.pages.holds(0, seed: 42))
        // The link lives on.
        let other = TestPages.contents(2, 1000)
        try raw.send(RawSender.push(two, block: 2, payload: other))
        try raw.socket.send(other)
        try receiver.waitLanded(1)
        receiver.server.stop()
    }

    @Test func aLandingWithoutWritersIsReleasedAtOnce() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<2)
        receiver.server.closeLanding(one)
        receiver.server.closeLanding(two)
        let released = receiver.log.all.compactMap { if case .landingReleased(let id) = $0 { id } else { nil } }
        #expect(released == [one, two])
        receiver.server.stop()
    }

    @Test func aSenderThatComesBackTakesTheSlotFromItsOldLink() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<1)
        let stuck = try RawSender(port: receiver.port)
        let page = TestPages.contents(0, 1000)
        try stuck.send(RawSender.push(one, block: 0, payload: page))
        try stuck.socket.send(Array(page[..<500]))
        try receiver.waitInside(one)
        let fresh = TestSender(port: receiver.port)
        fresh.push(one, blocks: 0..<1)
        fresh.sender.start()
        try receiver.waitLanded(1)
        #expect(receiver.pages.holds(0, seed: 0))
        fresh.sender.close()
        receiver.server.stop()
    }

    @Test func aStoppedTransferIsReportedOnlyWhenItsSlotIsOutOfTheSendersHands() throws {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: 0..<4)
        let pages = GatedPages(pageBytes: 1000, count: 16)
        let log = EventLog<PageSenderEvent>()
        let sender = PageSender(
            target: Fixture.decode, host: "127.0.0.1", port: receiver.port, path: .direct, relay: nil,
            hello: Fixture.hello(), memory: pages, configuration: Fixture.configuration(slice: 1000),
            onEvent: { log.add($0) })
        sender.push(one, (0..<4).map { PageToSend(block: $0, slot: BlockSlot($0), filledTokens: 16) })
        sender.start()
        pages.waitUntilAsked()
        sender.stop(two)
        #expect(stopped(log) == [two])
        sender.stop(one)
        #expect(stopped(log) == [two], "the sender still reads a slot of this transfer")
        pages.open()
        try log.wait("pushesStopped") { if case .pushesStopped(one) = $0 { true } else { nil } }
        sender.close()
        sender.join()
        #expect(pages.timesAsked == 1, "nothing more was read after the stop")
        sender.stop(one)
        #expect(stopped(log) == [two, one, one])
        receiver.server.stop()
    }

    @Test func aLinkThatEndsReportsTheStopThatWaitedForIt() throws {
        let receiver = try TestReceiver()
        let pages = GatedPages(pageBytes: 1000, count: 16)
        let log = EventLog<PageSenderEvent>()
        let sender = PageSender(
            target: Fixture.decode, host: "127.0.0.1", port: receiver.port, path: .direct, relay: nil,
            hello: Fixture.hello(), memory: pages, configuration: Fixture.configuration(slice: 100),
            onEvent: { log.add($0) })
        sender.push(one, [PageToSend(block: 0, slot: BlockSlot(0), filledTokens: 16)])
        sender.start()
        pages.waitUntilAsked()
        sender.stop(one)
        sender.close()
        pages.open()
        sender.join()
        #expect(stopped(log) == [one])
        if case .down? = log.all.last {} else { Issue.record("the last event is not down") }
        receiver.server.stop()
    }

    @Test func anotherDigestIsRefusedWithItsSentence() throws {
        let receiver = try TestReceiver()
        let hello = Fixture.hello(CompatibilityDigest(PageID(5, 5, 5, 5)))
        let sender = TestSender(port: receiver.port, path: .auto, relayPort: receiver.port, hello: hello)
        sender.sender.start()
        #expect(try sender.waitDown() == "The digests differ.")
        #expect(receiver.log.all.isEmpty)
        receiver.server.stop()
    }

    @Test func anotherIncarnationIsRefusedByTheSender() throws {
        let receiver = try TestReceiver()
        let target = WorkerRef(id: Fixture.decode.id, epoch: Epoch(1234))
        let sender = TestSender(port: receiver.port, target: target)
        sender.sender.start()
        #expect(try sender.waitDown() == "The peer is \(Fixture.decode), not \(target).")
        receiver.server.stop()
    }

    @Test(arguments: [LinkPurpose.control, .relay])
    func aPageListenerTakesOnlyPageLinks(purpose: LinkPurpose) throws {
        let receiver = try TestReceiver()
        let raw = try RawSender(port: receiver.port, hello: nil)
        try Greeting.send(.hello(Fixture.hello(purpose: purpose)), own: Fixture.prefill, on: raw.socket)
        let sentence = "This port takes pages links; the peer asked for \(purpose.rawValue)."
        #expect(try Greeting.readAnswer(raw.reader).verdict == .refused(sentence))
        receiver.server.stop()
    }

    @Test func aMessageThatDoesNotBelongEndsTheLink() throws {
        let receiver = try TestReceiver()
        let raw = try RawSender(port: receiver.port)
        try raw.send(.drain(Drain(deadline: .zero)))
        #expect(try raw.receive() == nil)
        try receiver.log.wait("linkDown") {
            if case .linkDown(_, _, "A page link does not carry this message.") = $0 { true } else { nil }
        }
        receiver.server.stop()
    }

    @Test func aPeerThatDoesNotReadIsClosedAtTheBound() throws {
        var configuration = Fixture.configuration()
        configuration.outboundFramesMax = 50
        configuration.minimumProgress = .milliseconds(300)
        let receiver = try TestReceiver(configuration)
        let raw = try RawSender(port: receiver.port)
        let link = try receiver.log.wait("linkUp") { if case .linkUp(let link, _) = $0 { link } else { nil } }
        let want = PageWant(transfer: one, blocks: Array(0..<200_000))
        for _ in 0..<200 { receiver.server.send(.pageWant(want), on: link) }
        try receiver.log.wait("linkDown") { if case .linkDown(link, _, _) = $0 { true } else { nil } }
        withExtendedLifetime(raw) { receiver.server.stop() }
    }

    // Helpers.

    private func waitReleased(_ receiver: TestReceiver, _ transfer: TransferID) throws {
        try receiver.log.wait("landingReleased") { if case .landingReleased(transfer) = $0 { true } else { nil } }
    }

    private func stopped(_ log: EventLog<PageSenderEvent>) -> [TransferID] {
        log.all.compactMap { if case .pushesStopped(let id) = $0 { id } else { nil } }
    }

    private func receiverOrSenderIsDone(_ receiver: TestReceiver, _ sender: TestSender) throws {
        for _ in 0..<40_000 {
            for case .message(_, _, .leaseRenew) in receiver.log.all { return }
            for case .linkDown in receiver.log.all { return }
            for case .down in sender.log.all { return }
            usleep(500)
        }
        Issue.record("neither end came to an end")
    }

    /// Bytes that a sender of these blocks puts on the wire.
    private func streamLength(blocks: Range<UInt32>) throws -> Int {
        let receiver = try TestReceiver()
        receiver.open(one, blocks: blocks)
        let proxy = try TestProxy(to: receiver.port)
        let sender = TestSender(port: proxy.port)
        sender.push(one, blocks: blocks)
        sender.sender.start()
        try receiver.waitLanded(blocks.count)
        sender.sender.close()
        proxy.stop()
        receiver.server.stop()
        return proxy.recorded.read { $0.count }
    }
}
