import ServingTypes

/// Every path that the front door knows.
enum Route: Hashable {
    case completions
    case chat
    case models
    case model(String)
    case tokenize
    case detokenize
    case jobs
    case job(String)
    case jobEvents(String)
    case cluster
    case drain
    case tenants
    case health
    case live
    case ready
    case ping
    case version
    case metrics
    /// A route of OpenAI's that is not served, and why.
    case absent(String)

    /// Nil for a path that nobody knows.
    init?(path: String) {
        if let fixed = Self.fixed[path] {
            self = fixed
        } else if let rest = path.suffix(after: "/v1/models/"), !rest.isEmpty {
            self = .model(percentDecoded(rest))
        } else if let rest = path.suffix(after: "/v1/jobs/"), !rest.isEmpty {
            let parts = rest.split(separator: "/", omittingEmptySubsequences: false)
            switch (parts.count, parts.last) {
            case (1, _): self = .job(String(rest))
            case (2, "events"): self = .jobEvents(String(parts[0]))
            default: return nil
            }
        } else if let why = Self.absentPrefixes.first(where: { path == $0.prefix || path.hasPrefix($0.prefix + "/") }) {
            self = .absent(why.why)
        } else {
            return nil
        }
    }

    private static let fixed: [String: Route] = [
        "/v1/completions": .completions, "/v1/chat/completions": .chat, "/v1/models": .models,
        "/tokenize": .tokenize, "/v1/tokenize": .tokenize, "/detokenize": .detokenize,
        "/v1/detokenize": .detokenize, "/v1/jobs": .jobs, "/admin/cluster": .cluster, "/admin/drain": .drain,
        "/admin/tenants": .tenants,
        "/health": .health, "/livez": .live, "/live": .live, "/readyz": .ready, "/ready": .ready, "/ping": .ping,
        "/version": .version, "/metrics": .metrics,
    ]

    private static let absentPrefixes: [(prefix: String, why: String)] = [
        ("/v1/embeddings", "the model gives text, not embeddings"),
        ("/v1/responses", "use /v1/chat/completions"),
        ("/v1/messages", "use /v1/chat/completions"),
        ("/v1/images", "the model gives text only"),
        ("/v1/audio", "the model gives text only"),
        ("/v1/moderations", "the model gives text only"),
        ("/v1/files", "there is no file store"),
        ("/v1/batches", "there is no batch queue; submit jobs one by one"),
        ("/v1/fine_tuning", "models are not trained here"),
        ("/v1/assistants", "use /v1/chat/completions"),
        ("/v1/threads", "use /v1/chat/completions"),
        ("/v1/vector_stores", "there is no vector store"),
        ("/v1/uploads", "there is no file store"),
    ]

    /// Methods it takes; HEAD goes wherever GET does. Nil takes any.
    var methods: [String]? {
        switch self {
        case .completions, .chat, .tokenize, .detokenize, .drain: ["POST"]
        case .models, .model, .jobs, .jobEvents, .cluster, .version, .metrics: ["GET", "HEAD"]
        case .health, .live, .ready, .ping: ["GET", "HEAD", "POST"]
        case .job: ["GET", "HEAD", "DELETE"]
        case .tenants: ["GET", "HEAD", "POST"]
        case .absent: nil
        }
    }

    /// What a key must allow; nil where no key is asked for.
    var scope: APIKey.Scope? {
        switch self {
        case .health, .live, .ready: nil
        case .cluster, .drain, .tenants: .admin
        case .metrics: .metrics
        case .completions, .chat, .models, .model, .tokenize, .detokenize, .jobs, .job, .jobEvents, .ping, .version,
            .absent:
            .infer
        }
    }

    /// Whether a JSON body is read.
    var takesJSON: Bool {
        switch self {
        case .completions, .chat, .tokenize, .detokenize, .drain, .tenants: true
        case .models, .model, .jobs, .job, .jobEvents, .cluster, .health, .live, .ready, .ping, .version, .metrics,
            .absent:
            false
        }
    }

    /// Its name in metrics: bounded, whatever clients ask for.
    var label: String {
        switch self {
        case .completions: "completions"
        case .chat: "chat"
        case .models, .model: "models"
        case .tokenize: "tokenize"
        case .detokenize: "detokenize"
        case .jobs, .job: "jobs"
        case .jobEvents: "job_events"
        case .cluster, .drain, .tenants: "admin"
        case .health, .live, .ready, .ping: "health"
        case .version: "version"
        case .metrics: "metrics"
        case .absent: "absent"
        }
    }
}

extension String {
    /// What follows a prefix; nil where it is not there.
    func suffix(after prefix: String) -> Substring? {
        hasPrefix(prefix) ? dropFirst(prefix.count) : nil
    }
}
