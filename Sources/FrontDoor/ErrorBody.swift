import BoundedJSON
import ServingTypes

/// A `ServingError` in HTTP and in OpenAI's words (user-experience.md §1.4). The status is the
/// client library's retry policy, so each one says whether to try again.
struct ErrorBody {
    var status: Int
    var type: String
    var error: ServingError
    var headers = HeaderList()

    /// `billed`: tokens were computed, so a retry costs again.
    init(_ error: ServingError, billed: Bool = false) {
        self.error = error
        (status, type) = Self.statusAndType(error.code)
        switch status {
        case 401: headers.add("www-authenticate", "Bearer")
        case 429, 503:
            let seconds = max(1, error.retryAfterSeconds ?? 1)
            headers.add("retry-after", String(seconds))
            headers.add("retry-after-ms", String(seconds * 1000))
        case 408, 409, 501, 504:
            headers.add("x-should-retry", "false")
        case 500:
            if billed || error.code == .poisoned { headers.add("x-should-retry", "false") }
        default: break
        }
    }

    /// For what HTTP knows and `ServingError` does not: 405, 408, 413, 414, 415, 431, 501.
    init(status: Int, _ error: ServingError, headers: HeaderList = HeaderList()) {
        self.init(error)
        self.status = status
        self.type = status == 501 ? "not_implemented_error" : "invalid_request_error"
        self.headers = headers
        if status == 501 { self.headers.add("x-should-retry", "false") }
    }

    private static func statusAndType(_ code: ServingError.Code) -> (Int, String) {
        switch code {
        case .invalidValue, .missingField, .contextTooLong, .unsupported, .malformed: (400, "invalid_request_error")
        case .unauthorized: (401, "authentication_error")
        case .forbidden: (403, "permission_error")
        case .modelNotFound, .notFound: (404, "invalid_request_error")
        case .conflict: (409, "invalid_request_error")
        case .queueFull, .rateLimited: (429, "rate_limit_error")
        case .cancelled: (499, "cancelled_error")
        case .noWorker, .draining: (503, "service_unavailable_error")
        case .deadline: (504, "timeout_error")
        case .poisoned, .internalError: (500, "server_error")
        default: (500, "server_error")
        }
    }

    var json: JSONValue {
        [
            "error": [
                "message": .string(error.message), "type": .string(type),
                "param": error.field.map { .string($0) } ?? .null, "code": .string(error.code.name),
            ]
        ]
    }

    static func notFound(_ path: String) -> ErrorBody {
        ErrorBody(ServingError(.notFound, "There is no route \(quotedForPeople(path))."))
    }

    static func methodNotAllowed(_ method: String, path: String, allowed: [String]) -> ErrorBody {
        let list = allowed.joined(separator: ", ")
        return ErrorBody(
            status: 405,
            ServingError(
                ServingError.Code("method_not_allowed"),
                "\(quotedForPeople(path)) takes \(list), not \(quotedForPeople(method))."),
            headers: ["allow": list])
    }

    static func tooLarge(limit: Int, declared: Int?) -> ErrorBody {
        let size = declared.map { "has \($0) bytes" } ?? "is too long"
        return ErrorBody(
            status: 413,
            ServingError(
                ServingError.Code("request_too_large"), "The body \(size); the limit is \(limit) bytes.", field: "body")
        )
    }

    static func wrongMediaType(_ value: String) -> ErrorBody {
        ErrorBody(
            status: 415,
            ServingError(
                ServingError.Code("unsupported_media_type"),
                "The content type is \(quotedForPeople(value)); send application/json.", field: "content-type"))
    }

    static func absent(_ path: String, why: String) -> ErrorBody {
        ErrorBody(
            status: 501,
            ServingError(ServingError.Code("not_implemented"), "\(quotedForPeople(path)) is not served here: \(why)."))
    }

    static func slow(_ what: String) -> ErrorBody {
        ErrorBody(
            status: 408, ServingError(ServingError.Code("request_timeout"), "The request's \(what) came too slowly."))
    }
}

/// A value from outside inside a sentence: quoted, cut at 64 characters.
func quotedForPeople(_ text: String) -> String {
    let cut = text.unicodeScalars.prefix(64)
    return JSON.quoted(String(String.UnicodeScalarView(cut)) + (text.unicodeScalars.count > 64 ? "..." : ""))
}
