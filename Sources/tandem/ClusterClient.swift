import AsyncHTTPClient
import BoundedJSON
import Foundation
import LocalSupervisor
import NIOCore
import NIOFoundationCompat
import NIOPosix
import ServingTypes

/// Speaks HTTP to a coordinator.
struct ClusterClient: Sendable {
    let baseURL: String
    let apiKey: String?
    let tenant: String?
    let state: StateDirectory

    static let bodyBytesMax = 64 << 20

    /// One attempt to connect: a cluster that is not there is said at once.
    private static let http = HTTPClient(
        eventLoopGroup: .singletonMultiThreadedEventLoopGroup,
        configuration: {
            var configuration = HTTPClient.Configuration()
            configuration.timeout.connect = .seconds(10)
            configuration.connectionPool.retryConnectionEstablishment = false
            // The default of 8 would make a bench of more clients wait in line here.
            configuration.connectionPool.concurrentHTTP1ConnectionsPerHostSoftLimit = BenchRunner.Limits.concurrencyMax
            return configuration
        }())

    init(_ options: ClusterOptions) {
        let environment = ProcessInfo.processInfo.environment
        state = Self.stateDirectory(options.state)
        let card = state.readCard()
        let url = options.url ?? environment["TANDEM_URL"] ?? card?.url ?? "http://127.0.0.1:8000"
        baseURL = url.hasSuffix("/") ? String(url.dropLast()) : url
        apiKey = options.apiKey ?? environment["TANDEM_API_KEY"] ?? card?.apiKey
        tenant = options.tenant
    }

    init(baseURL: String, apiKey: String? = nil, tenant: String? = nil, state: StateDirectory) {
        self.baseURL = baseURL
        self.apiKey = apiKey
        self.tenant = tenant
        self.state = state
    }

    static func stateDirectory(_ flag: String?) -> StateDirectory {
        StateDirectory(path: flag ?? ProcessInfo.processInfo.environment["TANDEM_STATE"] ?? "~/.tandem")
    }

    func get(_ path: String) async throws -> JSONValue {
        try await json(request(path, .GET), path)
    }

    func delete(_ path: String) async throws -> JSONValue {
        try await json(request(path, .DELETE), path)
    }

    func post(_ path: String, _ body: JSONValue) async throws -> JSONValue {
        try await json(request(path, .POST, body), path)
    }

    /// Status only; nil where nobody answers.
    func status(_ path: String) async -> UInt? {
        try? await Self.http.execute(request(path, .GET), timeout: .seconds(2)).status.code
    }

    /// Server-sent events of one request; the first element is the job id from the headers.
    func events(_ path: String, _ body: JSONValue?, headers: [(String, String)] = []) async throws -> EventStream {
        var request = request(path, body == nil ? .GET : .POST, body)
        for (name, value) in headers { request.headers.replaceOrAdd(name: name, value: value) }
        let response = try await execute(request, timeout: .hours(24))
        guard response.status.code < 300 else { throw try await failure(response, path) }
        return EventStream(jobID: response.headers.first(name: "x-tandem-job-id"), body: response.body)
    }

    private func request(_ path: String, _ method: HTTPMethodName, _ body: JSONValue? = nil) -> HTTPClientRequest {
        var request = HTTPClientRequest(url: baseURL + path)
        request.method = .init(rawValue: method.rawValue)
        request.headers.add(name: "user-agent", value: "tandem-cli")
        if let apiKey { request.headers.add(name: "authorization", value: "Bearer \(apiKey)") }
        if let tenant { request.headers.add(name: "x-tandem-tenant", value: tenant) }
        if let body {
            request.headers.add(name: "content-type", value: "application/json")
            request.body = .bytes(ByteBuffer(string: JSON.text(body)))
        }
        return request
    }

    private func json(_ request: HTTPClientRequest, _ path: String) async throws -> JSONValue {
        let response = try await execute(request, timeout: .seconds(600))
        guard response.status.code < 300 else { throw try await failure(response, path) }
        let body = try await response.body.collect(upTo: Self.bodyBytesMax)
        return try JSON.parse([UInt8](body.readableBytesView))
    }

    private func execute(_ request: HTTPClientRequest, timeout: TimeAmount) async throws -> HTTPClientResponse {
        do {
            return try await Self.http.execute(request, timeout: timeout)
        } catch let error as HTTPClientError where [.emptyScheme, .emptyHost, .invalidURL].contains(error) {
            throw CLIError("url: \(baseURL) is no URL of the form http://host:port")
        } catch {
            throw CLIError(
                "no coordinator answers on \(baseURL); start a cluster with `tandem up` (\(Self.reason(error)))",
                isLoss: true)
        }
    }

    private static func reason(_ error: any Error) -> String {
        switch error {
        case let error as IOError: String(cString: strerror(error.errnoCode))
        case let error as NIOConnectionError:
            error.connectionErrors.first.map { reason($0.error) } ?? "\(error.host) has no address"
        default: "\(error)"
        }
    }

    private func failure(_ response: HTTPClientResponse, _ path: String) async throws -> CLIError {
        let body = try await response.body.collect(upTo: Self.bodyBytesMax)
        let message = (try? JSON.parse([UInt8](body.readableBytesView)))?["error"]?["message"]?.stringValue
        return CLIError("\(path): \(response.status.code) \(message ?? response.status.reasonPhrase)")
    }
}

enum HTTPMethodName: String { case GET, POST, DELETE }

/// The `data:` lines of a stream, parsed; ends at `[DONE]`.
struct EventStream: AsyncSequence {
    let jobID: String?
    let body: HTTPClientResponse.Body

    func makeAsyncIterator() -> Iterator { Iterator(jobID: jobID, chunks: body.makeAsyncIterator()) }

    struct Iterator: AsyncIteratorProtocol {
        let jobID: String?
        var chunks: HTTPClientResponse.Body.AsyncIterator
        var pending: [UInt8] = []
        var done = false

        mutating func next() async throws -> JSONValue? {
            while !done {
                while let line = takeLine() {
                    guard line.starts(with: Array("data:".utf8)) else { continue }
                    let text = line.dropFirst(5).drop { $0 == UInt8(ascii: " ") }
                    if text.elementsEqual("[DONE]".utf8) {
                        done = true
                        return nil
                    }
                    guard let event = try? JSON.parse(Array(text)) else { throw lost("the stream is not JSON") }
                    return event
                }
                do {
                    guard let chunk = try await chunks.next() else { throw lost("the stream ended before its job") }
                    pending += chunk.readableBytesView
                } catch let error as CLIError {
                    throw error
                } catch {
                    throw lost("the coordinator closed the connection")
                }
            }
            return nil
        }

        private func lost(_ what: String) -> CLIError {
            CLIError(
                what + (jobID.map { "; if the job still runs, `tandem jobs attach \($0)` follows it" } ?? ""),
                isLoss: true)
        }

        private mutating func takeLine() -> [UInt8]? {
            guard let end = pending.firstIndex(of: UInt8(ascii: "\n")) else { return nil }
            var line = Array(pending[..<end])
            pending.removeSubrange(...end)
            if line.last == UInt8(ascii: "\r") { line.removeLast() }
            return line
        }
    }
}
