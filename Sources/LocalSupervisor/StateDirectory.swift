import BoundedJSON
import Foundation
import ServingTypes

/// Where a local cluster keeps what outlives a command: its lock, its control socket, its logs,
/// its journal, and a card that tells other commands how to reach it.
public struct StateDirectory: Sendable {
    public let path: String

    public init(path: String) {
        self.path = URL(fileURLWithPath: (path as NSString).expandingTildeInPath).standardizedFileURL.path
    }

    /// A Unix socket's path is at most 107 bytes long.
    public static let pathBytesMax = 90

    public var lockFile: String { path + "/supervisor.lock" }
    public var controlSocket: String { path + "/control.sock" }
    public var journalFile: String { path + "/journal.sqlite" }
    public var cardFile: String { path + "/cluster.json" }
    public func logFile(of process: String) -> String { path + "/logs/\(process).log" }

    public func create() throws(ServingError) {
        guard path.utf8.count <= Self.pathBytesMax else {
            throw ServingError(
                .invalidValue,
                "state directory \(path) is \(path.utf8.count) bytes long; its control socket allows \(Self.pathBytesMax)",
                field: "state", blast: .process)
        }
        do {
            try FileManager.default.createDirectory(
                atPath: path + "/logs", withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        } catch {
            throw ServingError(
                .invalidValue, "state directory \(path) cannot be made: \(error.localizedDescription)", field: "state",
                blast: .process)
        }
    }

    /// Holds the directory for one supervisor. The kernel lets go when the process ends, however it
    /// ends, so a crash never leaves a stale lock.
    public func lock() throws(ServingError) -> StateLock {
        let descriptor = open(lockFile, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw ServingError(
                .invalidValue, "\(lockFile) cannot be opened: \(String(cString: strerror(errno)))", field: "state",
                blast: .process)
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let holder = (try? String(contentsOfFile: lockFile, encoding: .utf8))?
                .trimmingCharacters(in: .whitespacesAndNewlines)
            close(descriptor)
            throw ServingError(
                .conflict,
                "a cluster is already running on state directory \(path)"
                    + (holder.map { " (process \($0))" } ?? "")
                    + "; use `tandem status`, `tandem down`, or another --state", field: "state", blast: .process)
        }
        ftruncate(descriptor, 0)
        let text = "\(getpid())\n"
        _ = text.withCString { write(descriptor, $0, strlen($0)) }
        return StateLock(descriptor: descriptor)
    }

    /// Whether some supervisor holds the directory.
    public var isHeld: Bool {
        let descriptor = open(lockFile, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        return flock(descriptor, LOCK_EX | LOCK_NB) != 0
    }

    public func writeCard(_ card: ClusterCard) throws(ServingError) {
        do {
            try JSON.text(card.json, pretty: true).write(toFile: cardFile, atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: cardFile)
        } catch {
            throw ServingError(
                .internalError, "\(cardFile) cannot be written: \(error.localizedDescription)", blast: .process)
        }
    }

    public func readCard() -> ClusterCard? {
        guard let data = FileManager.default.contents(atPath: cardFile), let json = try? JSON.parse([UInt8](data))
        else {
            return nil
        }
        return ClusterCard(json: json)
    }

    public func removeCard() {
        try? FileManager.default.removeItem(atPath: cardFile)
        try? FileManager.default.removeItem(atPath: controlSocket)
    }
}

/// Held for as long as the supervisor lives.
public final class StateLock: Sendable {
    private let descriptor: Int32

    init(descriptor: Int32) { self.descriptor = descriptor }

    deinit { close(descriptor) }
}

/// How to reach a running local cluster.
public struct ClusterCard: Hashable, Sendable {
    public var url: String
    public var model: String
    public var apiKey: String?
    public var supervisorProcessID: Int32

    public init(url: String, model: String, apiKey: String?, supervisorProcessID: Int32) {
        self.url = url
        self.model = model
        self.apiKey = apiKey
        self.supervisorProcessID = supervisorProcessID
    }

    var json: JSONValue {
        var members: [(String, JSONValue)] = [
            ("url", .string(url)), ("model", .string(model)), ("supervisor", .integer(Int64(supervisorProcessID))),
        ]
        if let apiKey { members.append(("api_key", .string(apiKey))) }
        return .object(JSONObject(members))
    }

    init?(json: JSONValue) {
        guard let url = json["url"]?.stringValue, let model = json["model"]?.stringValue,
            let process = json["supervisor"]?.intValue
        else { return nil }
        self.init(
            url: url, model: model, apiKey: json["api_key"]?.stringValue,
            supervisorProcessID: Int32(clamping: process))
    }
}
