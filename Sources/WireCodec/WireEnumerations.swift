import CWire
import Messages
import ServingTypes

/// A Swift enumeration and its numbers in proto/tandem.proto.
protocol WireEnumeration: CaseIterable {
    associatedtype Wire: RawRepresentable where Wire.RawValue == UInt32
    var wire: Wire { get }
}

extension WorkerRole: WireEnumeration {
    var wire: Tandem__WorkerRole {
        switch self {
        case .prefill: TANDEM__WORKER_ROLE__ROLE_PREFILL
        case .decode: TANDEM__WORKER_ROLE__ROLE_DECODE
        case .mixed: TANDEM__WORKER_ROLE__ROLE_MIXED
        }
    }
}

extension LinkPurpose: WireEnumeration {
    var wire: Tandem__LinkPurpose {
        switch self {
        case .control: TANDEM__LINK_PURPOSE__PURPOSE_CONTROL
        case .pages: TANDEM__LINK_PURPOSE__PURPOSE_PAGES
        case .relay: TANDEM__LINK_PURPOSE__PURPOSE_RELAY
        }
    }
}

extension Refusal: WireEnumeration {
    var wire: Tandem__Refusal {
        switch self {
        case .noMemory: TANDEM__REFUSAL__REFUSAL_NO_MEMORY
        case .tooManyJobs: TANDEM__REFUSAL__REFUSAL_TOO_MANY_JOBS
        case .draining: TANDEM__REFUSAL__REFUSAL_DRAINING
        case .staleEpoch: TANDEM__REFUSAL__REFUSAL_STALE_EPOCH
        case .staleAttempt: TANDEM__REFUSAL__REFUSAL_STALE_ATTEMPT
        case .tooLong: TANDEM__REFUSAL__REFUSAL_TOO_LONG
        case .unknownTransfer: TANDEM__REFUSAL__REFUSAL_UNKNOWN_TRANSFER
        case .malformed: TANDEM__REFUSAL__REFUSAL_MALFORMED
        }
    }
}

extension KVPath: WireEnumeration {
    var wire: Tandem__AssignPrefill__Path {
        switch self {
        case .direct: TANDEM__ASSIGN_PREFILL__PATH__PATH_DIRECT
        case .relay: TANDEM__ASSIGN_PREFILL__PATH__PATH_RELAY
        case .auto: TANDEM__ASSIGN_PREFILL__PATH__PATH_AUTO
        }
    }
}

extension PageNack.Reason: WireEnumeration {
    var wire: Tandem__PageNack__Reason {
        switch self {
        case .noSlot: TANDEM__PAGE_NACK__REASON__NACK_NO_SLOT
        case .checksum: TANDEM__PAGE_NACK__REASON__NACK_CHECKSUM
        case .staleEpoch: TANDEM__PAGE_NACK__REASON__NACK_STALE_EPOCH
        case .cancelled: TANDEM__PAGE_NACK__REASON__NACK_CANCELLED
        case .badRange: TANDEM__PAGE_NACK__REASON__NACK_BAD_RANGE
        }
    }
}

extension TransferFailed.Reason: WireEnumeration {
    var wire: Tandem__TransferFailed__Reason {
        switch self {
        case .linkLost: TANDEM__TRANSFER_FAILED__REASON__FAILED_LINK_LOST
        case .cannotConnect: TANDEM__TRANSFER_FAILED__REASON__FAILED_CANNOT_CONNECT
        case .checksum: TANDEM__TRANSFER_FAILED__REASON__FAILED_CHECKSUM
        case .incomplete: TANDEM__TRANSFER_FAILED__REASON__FAILED_INCOMPLETE
        case .leaseExpired: TANDEM__TRANSFER_FAILED__REASON__FAILED_LEASE_EXPIRED
        case .targetRefused: TANDEM__TRANSFER_FAILED__REASON__FAILED_TARGET_REFUSED
        case .stalled: TANDEM__TRANSFER_FAILED__REASON__FAILED_STALLED
        case .engine: TANDEM__TRANSFER_FAILED__REASON__FAILED_ENGINE
        }
    }
}

extension Cancel.Reason: WireEnumeration {
    var wire: Tandem__Cancel__Reason {
        switch self {
        case .client: TANDEM__CANCEL__REASON__CANCEL_CLIENT
        case .superseded: TANDEM__CANCEL__REASON__CANCEL_SUPERSEDED
        case .peerLost: TANDEM__CANCEL__REASON__CANCEL_PEER_LOST
        case .deadline: TANDEM__CANCEL__REASON__CANCEL_DEADLINE
        case .stopString: TANDEM__CANCEL__REASON__CANCEL_STOP_STRING
        case .drain: TANDEM__CANCEL__REASON__CANCEL_DRAIN
        }
    }
}

extension FinishReason {
    var wire: Tandem__StepEnd__Kind {
        switch self {
        case .stop: TANDEM__STEP_END__KIND__END_STOP
        case .length: TANDEM__STEP_END__KIND__END_LENGTH
        case .cancelled: TANDEM__STEP_END__KIND__END_CANCELLED
        case .failed: TANDEM__STEP_END__KIND__END_FAILED
        }
    }
}

extension ServingError.Blast {
    static let all: [ServingError.Blast] = [.request, .link, .process]

    var wire: Tandem__Failure__Blast {
        switch self {
        case .request: TANDEM__FAILURE__BLAST__BLAST_REQUEST
        case .link: TANDEM__FAILURE__BLAST__BLAST_LINK
        case .process: TANDEM__FAILURE__BLAST__BLAST_PROCESS
        }
    }
}
