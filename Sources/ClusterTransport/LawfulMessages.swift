import Messages
import ServingTypes

/// Which messages a link of each purpose carries after its Hello; any other one closes the link.
enum LawfulMessages {
    static func onControlLink(_ message: Message) -> Bool {
        switch message {
        case .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reservePages, .reserveAck,
            .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill, .assignAck,
            .assignNack, .prefillProgress, .prefillDone, .transferCommitted, .transferFailed, .leaseRenew, .cancel,
            .cancelAck:
            true
        case .hello, .helloAck, .pageOffer, .pageWant, .pagePush, .pageAck, .pageNack, .credit, .transferEnd: false
        }
    }

    /// Besides `PagePush`, which only the receiver of pages takes.
    static func onPageLink(_ message: Message) -> Bool {
        switch message {
        case .pageOffer, .pageWant, .pageAck, .pageNack, .credit, .transferEnd, .transferCommitted, .transferFailed,
            .leaseRenew, .cancel, .cancelAck, .prefillDone:
            true
        case .hello, .helloAck, .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reservePages,
            .reserveAck, .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill,
            .assignAck, .assignNack, .prefillProgress, .pagePush:
            false
        }
    }
}

/// What both ends do with a Hello before anyone is asked.
enum Handshake {
    /// The version to speak, or the sentence of the refusal.
    static func version(of hello: Hello) -> Result<UInt32, Refused> {
        let low = max(hello.versionMin, ProtocolVersion.oldestSupported)
        let high = min(hello.versionMax, ProtocolVersion.current)
        guard low <= high else {
            return .failure(
                Refused(
                    sentence: "\(hello.sender) speaks protocol versions \(hello.versionMin) to \(hello.versionMax); "
                        + "this end speaks \(ProtocolVersion.oldestSupported) to \(ProtocolVersion.current)."))
        }
        return .success(high)
    }

    /// The answer to a Hello, `judge` being asked last.
    static func answer(
        _ hello: Hello, purpose: LinkPurpose, own: WorkerRef, judge: (Hello) -> HelloAck.Verdict
    ) -> HelloAck {
        switch version(of: hello) {
        case .failure(let refused):
            return HelloAck(
                version: ProtocolVersion.current, responder: own, verdict: .refused(refused.sentence))
        case .success(let version):
            guard hello.purpose == purpose else {
                let sentence =
                    "This port takes \(purpose.rawValue) links; the peer asked for \(hello.purpose.rawValue)."
                return HelloAck(version: version, responder: own, verdict: .refused(sentence))
            }
            return HelloAck(version: version, responder: own, verdict: judge(hello))
        }
    }

    struct Refused: Error { var sentence: String }
}
