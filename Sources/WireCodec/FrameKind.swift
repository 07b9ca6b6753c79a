import Messages

/// What a frame carries: the number of the body in proto/tandem.proto.
public enum FrameKind: UInt8, Hashable, Sendable, CaseIterable {
    case hello = 10
    case helloAck = 11
    case register = 12
    case registerAck = 13
    case heartbeat = 14
    case kvEvent = 15
    case drain = 16
    case drainDone = 17
    case reservePages = 18
    case reserveAck = 19
    case reserveNack = 20
    case startDecode = 21
    case startDecodeAck = 22
    case setRunning = 23
    case tokenSteps = 24
    case assignPrefill = 25
    case assignAck = 26
    case assignNack = 27
    case prefillProgress = 28
    case prefillDone = 29
    case pageOffer = 30
    case pageWant = 31
    case pagePush = 32
    case pageAck = 33
    case pageNack = 34
    case credit = 35
    case transferEnd = 36
    case transferCommitted = 37
    case transferFailed = 38
    case leaseRenew = 39
    case cancel = 40
    case cancelAck = 41

    public init(of message: Message) {
        self =
            switch message {
            case .hello: .hello
            case .helloAck: .helloAck
            case .register: .register
            case .registerAck: .registerAck
            case .heartbeat: .heartbeat
            case .kvEvent: .kvEvent
            case .drain: .drain
            case .drainDone: .drainDone
            case .reservePages: .reservePages
            case .reserveAck: .reserveAck
            case .reserveNack: .reserveNack
            case .startDecode: .startDecode
            case .startDecodeAck: .startDecodeAck
            case .setRunning: .setRunning
            case .tokenSteps: .tokenSteps
            case .assignPrefill: .assignPrefill
            case .assignAck: .assignAck
            case .assignNack: .assignNack
            case .prefillProgress: .prefillProgress
            case .prefillDone: .prefillDone
            case .pageOffer: .pageOffer
            case .pageWant: .pageWant
            case .pagePush: .pagePush
            case .pageAck: .pageAck
            case .pageNack: .pageNack
            case .credit: .credit
            case .transferEnd: .transferEnd
            case .transferCommitted: .transferCommitted
            case .transferFailed: .transferFailed
            case .leaseRenew: .leaseRenew
            case .cancel: .cancel
            case .cancelAck: .cancelAck
            }
    }

    /// Largest header that is accepted, checked before anything is allocated for it.
    public var headerBytesMax: Int {
        switch self {
        case .kvEvent, .reservePages, .startDecode, .assignPrefill, .tokenSteps, .reserveAck, .setRunning, .register,
            .pageOffer, .pageWant, .pageAck, .transferEnd:
            WireLimits.listHeaderBytesMax
        case .hello, .helloAck, .registerAck, .heartbeat, .drain, .drainDone, .reserveNack, .startDecodeAck,
            .assignAck, .assignNack, .prefillProgress, .prefillDone, .pagePush, .pageNack, .credit,
            .transferCommitted, .transferFailed, .leaseRenew, .cancel, .cancelAck:
            WireLimits.plainHeaderBytesMax
        }
    }

    /// Largest payload after the header; only slices of pages have one.
    public var payloadBytesMax: Int { self == .pagePush ? WireLimits.slicePayloadBytesMax : 0 }
}

/// Bounds of what is accepted from a peer.
public enum WireLimits {
    /// Header of a message without arrays.
    public static let plainHeaderBytesMax = 64 << 10
    /// Header of a message with tokens, blocks or page names.
    public static let listHeaderBytesMax = 16 << 20
    public static let slicePayloadBytesMax = 4 << 20
    /// Memory that unpacking a header of n bytes may take: `unpackBytesBase + unpackFactor * n`, and
    /// never more than `unpackBytesMax`. Arrays of numbers take about n; a list of the smallest lawful
    /// parts (tokens without logprobs, 7 bytes each) takes 25 n.
    public static let unpackBytesBase = 64 << 10
    public static let unpackFactor = 40
    public static let unpackBytesMax = 128 << 20
    /// Memory for building one outgoing message.
    public static let packBytesMax = 256 << 20
    /// UTF-8 bytes of a worker's, a tenant's or a host's name.
    public static let nameBytesMax = 1024
    /// UTF-8 bytes of a sentence for a person; a longer one is cut when it is sent.
    public static let sentenceBytesMax = 8 << 10
    /// Parts of a list of transfers, steps or tokens within a step.
    public static let partsMax = 1 << 16
}
