import ServingTypes

/// What a client would like of one request's latency, from its headers.
struct Objectives: Hashable, Sendable {
    /// By when, from its arrival, the first token should be there: a hint that orders jobs inside the
    /// tenant and never across; when it has passed it is forgotten.
    var firstToken: TimeSpan?
    /// By when the whole answer must be there: the job ends with 504 otherwise.
    var deadline: TimeSpan?

    static let millisecondsRange = 1...3_600_000

    init() {}

    init(_ headers: HeaderList) throws(ServingError) {
        firstToken = try Self.span("x-slo-ttft-ms", headers)
        deadline = try Self.span("x-slo-deadline-ms", headers)
        if let firstToken, let deadline, firstToken > deadline {
            throw .invalid(
                "x-slo-ttft-ms",
                "is \(firstToken.nanoseconds / 1_000_000), after 'x-slo-deadline-ms', which is"
                    + " \(deadline.nanoseconds / 1_000_000)")
        }
    }

    private static func span(_ name: String, _ headers: HeaderList) throws(ServingError) -> TimeSpan? {
        guard let text = headers[name] else { return nil }
        guard let milliseconds = Int(trimmed(text)), millisecondsRange.contains(milliseconds) else {
            throw .invalid(
                name,
                "is \(quotedForPeople(text)); it must be an integer of milliseconds from"
                    + " \(millisecondsRange.lowerBound) to \(millisecondsRange.upperBound)")
        }
        return .milliseconds(Int64(milliseconds))
    }
}
