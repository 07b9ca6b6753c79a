/// What the front door counts of itself, for `/metrics`.
struct HTTPCounts {
    private var answers: [Key: UInt64] = [:]
    var connectionsRefused: UInt64 = 0
    /// Requests whose response is not over, or which somebody still holds.
    var requestsOpen = 0

    private struct Key: Hashable, Comparable {
        var route: String
        var status: Int

        static func < (a: Key, b: Key) -> Bool { (a.route, a.status) < (b.route, b.status) }
    }

    /// Labels come from `Route.label`, so there is a bounded number of them.
    mutating func add(route: String, status: Int) {
        answers[Key(route: route, status: status), default: 0] += 1
    }

    /// Prometheus text, sorted.
    func page(connections: Int) -> String {
        var lines = [
            "# HELP tandem_http_requests_total Responses begun, by route and status; 499 is a client that left.",
            "# TYPE tandem_http_requests_total counter",
        ]
        for (key, count) in answers.sorted(by: { $0.key < $1.key }) {
            lines.append("tandem_http_requests_total{route=\"\(key.route)\",status=\"\(key.status)\"} \(count)")
        }
        lines += [
            "# HELP tandem_http_connections Open client connections.", "# TYPE tandem_http_connections gauge",
            "tandem_http_connections \(connections)",
            "# HELP tandem_http_requests_open Requests in memory.", "# TYPE tandem_http_requests_open gauge",
            "tandem_http_requests_open \(requestsOpen)",
            "# HELP tandem_http_connections_refused_total Connections closed at a limit.",
            "# TYPE tandem_http_connections_refused_total counter",
            "tandem_http_connections_refused_total \(connectionsRefused)",
        ]
        return lines.joined(separator: "\n") + "\n"
    }
}
