import Messages
import ServingTypes

/// A message in a few words, for people who read a trace.
enum Summary {
    static func short(_ transfer: TransferID) -> String { "\(transfer.job.low)/\(transfer.attempt)" }

    static func of(_ message: Message) -> String {
        switch message {
        case .hello: "hello"
        case .helloAck: "helloAck"
        case .register(let m): "register, holds \(m.held.map(short))"
        case .registerAck: "registerAck"
        case .heartbeat(let m): "heartbeat, \(m.load.blocks.available) blocks available"
        case .kvEvent(let m): "kvEvent \(m.sequence) \(count(m.change))"
        case .drain(let m): "drain within \(m.deadline.milliseconds) ms"
        case .drainDone: "drainDone"
        case .reservePages(let m): "reservePages \(short(m.transfer)), \(m.tokens.count) tokens from \(m.source.id)"
        case .reserveAck(let m): "reserveAck \(short(m.transfer)), wants \(m.wanted)"
        case .reserveNack(let m): "reserveNack \(short(m.transfer)) \(m.reason.rawValue)"
        case .startDecode(let m): "startDecode \(short(m.transfer)), \(m.tokens.count) tokens"
        case .startDecodeAck(let m): "startDecodeAck \(short(m.transfer)) \(m.refusal?.rawValue ?? "yes")"
        case .setRunning(let m): "setRunning run \(m.run.map(short)) pause \(m.pause.map(short))"
        case .tokenSteps(let m): "tokenSteps \(m.iteration): " + m.steps.map(step).joined(separator: ", ")
        case .assignPrefill(let m): "assignPrefill \(short(m.transfer)) for \(m.target.id), wants \(m.wanted)"
        case .assignAck(let m): "assignAck \(short(m.transfer))"
        case .assignNack(let m): "assignNack \(short(m.transfer)) \(m.reason.rawValue)"
        case .prefillProgress(let m): "prefillProgress \(short(m.transfer)) at \(m.computedTokens)"
        case .prefillDone(let m): "prefillDone \(short(m.transfer))"
        case .pageOffer(let m): "pageOffer \(short(m.transfer)) \(m.blocks)"
        case .pageWant(let m): "pageWant \(short(m.transfer)) \(m.blocks)"
        case .pagePush(let m): "pagePush \(short(m.transfer)) \(m.block)"
        case .pageAck(let m): "pageAck \(short(m.transfer)) \(m.blocks)"
        case .pageNack(let m): "pageNack \(short(m.transfer)) \(m.block) \(m.reason.rawValue)"
        case .credit(let m): "credit \(short(m.transfer)) \(m.bytes)"
        case .transferEnd(let m): "transferEnd \(short(m.transfer)) of \(m.pages.count) pages"
        case .transferCommitted(let m): "transferCommitted \(short(m.transfer))"
        case .transferFailed(let m): "transferFailed \(short(m.transfer)) \(m.reason.rawValue)"
        case .leaseRenew(let m): "leaseRenew \(short(m.transfer))"
        case .cancel(let m): "cancel \(short(m.transfer)) \(m.reason.rawValue)"
        case .cancelAck(let m): "cancelAck \(short(m.transfer))"
        }
    }

    private static func step(_ step: TokenStep) -> String {
        var text = "\(short(step.transfer))@\(step.offset)+\(step.tokens.count)"
        switch step.end {
        case nil: break
        case .finished(let reason): text += " \(reason.rawValue)"
        case .failed(let error): text += " failed \(error.code)"
        case .evicted: text += " evicted"
        }
        return text
    }

    private static func count(_ change: KVEvent.Change) -> String {
        switch change {
        case .stored(let pages): "stored \(pages.count)"
        case .removed(let pages): "removed \(pages.count)"
        case .snapshot(let pages): "snapshot of \(pages.count)"
        }
    }

    /// A word for the digest: the kind and whom it is about.
    static func code(of message: Message) -> UInt64 {
        switch message {
        case .hello, .helloAck: 1
        case .register(let m): Hashing.fold(2, UInt64(m.held.count))
        case .registerAck: 3
        case .heartbeat(let m): Hashing.fold(4, UInt64(m.load.blocks.available))
        case .kvEvent(let m): Hashing.fold(5, m.sequence)
        case .drain: 6
        case .drainDone: 7
        case .reservePages(let m): word(8, m.transfer)
        case .reserveAck(let m): word(9, m.transfer)
        case .reserveNack(let m): word(10, m.transfer)
        case .startDecode(let m): word(11, m.transfer)
        case .startDecodeAck(let m): word(12, m.transfer)
        case .setRunning(let m): (m.run + m.pause).reduce(13) { Hashing.fold($0, $1.job.low) }
        case .tokenSteps(let m): m.steps.reduce(14) { Hashing.fold($0, $1.transfer.job.low) }
        case .assignPrefill(let m): word(15, m.transfer)
        case .assignAck(let m): word(16, m.transfer)
        case .assignNack(let m): word(17, m.transfer)
        case .prefillProgress(let m): word(18, m.transfer)
        case .prefillDone(let m): word(19, m.transfer)
        case .pageOffer(let m): word(20, m.transfer)
        case .pageWant(let m): word(21, m.transfer)
        case .pagePush(let m): word(22, m.transfer)
        case .pageAck(let m): word(23, m.transfer)
        case .pageNack(let m): word(24, m.transfer)
        case .credit(let m): word(25, m.transfer)
        case .transferEnd(let m): word(26, m.transfer)
        case .transferCommitted(let m): word(27, m.transfer)
        case .transferFailed(let m): word(28, m.transfer)
        case .leaseRenew(let m): word(29, m.transfer)
        case .cancel(let m): word(30, m.transfer)
        case .cancelAck(let m): word(31, m.transfer)
        }
    }

    private static func word(_ kind: UInt64, _ transfer: TransferID) -> UInt64 {
        Hashing.fold(kind, transfer.job.low &* 131 &+ UInt64(transfer.attempt.number))
    }
}
