/// An error by what must die of it (aesthetics.md §3): the request, the link, or the process.
public struct ServingError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What the error ends.
    public enum Blast: String, Hashable, Sendable {
        case request
        case link
        case process
    }

    /// An extensible name, spelled as in OpenAI's `code` where one exists.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        public var name: String
        public init(_ name: String) { self.name = name }
        public var description: String { name }

        public static let invalidValue = Code("invalid_value")
        public static let missingField = Code("missing_required_parameter")
        public static let contextTooLong = Code("context_length_exceeded")
        public static let modelNotFound = Code("model_not_found")
        public static let unauthorized = Code("invalid_api_key")
        public static let forbidden = Code("permission_denied")
        public static let notFound = Code("not_found")
        public static let queueFull = Code("queue_full")
        public static let rateLimited = Code("rate_limit_exceeded")
        public static let noWorker = Code("no_worker")
        public static let draining = Code("draining")
        public static let conflict = Code("idempotency_conflict")
        public static let deadline = Code("deadline_exceeded")
        public static let poisoned = Code("request_poisoned")
        public static let cancelled = Code("cancelled")
        public static let unsupported = Code("unsupported")
        public static let malformed = Code("malformed")
        public static let internalError = Code("internal_error")
    }

    public var blast: Blast
    public var code: Code
    /// One sentence for a person, naming field, value and limit where there are such.
    public var message: String
    /// The request field or the file at fault.
    public var field: String?
    /// Seconds after which a retry may succeed, for refusals that pass.
    public var retryAfterSeconds: Int?

    public init(
        _ code: Code, _ message: String, field: String? = nil, blast: Blast = .request, retryAfterSeconds: Int? = nil
    ) {
        self.blast = blast
        self.code = code
        self.message = message
        self.field = field
        self.retryAfterSeconds = retryAfterSeconds
    }

    public var description: String { message }
}
