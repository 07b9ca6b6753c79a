import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes

struct TenantsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tenants", abstract: "Who is entitled to what share of the service, and who got it.",
        discussion: """
            A unit of service is a computed prompt token, or half an output token. ENTITLED is a tenant's part of the
            weights of those that were active in the window, SERVED its part of the units given in it. Tokens are counted
            since the ledger began: COMPUTED and DECODED are charged, CACHED and RECOMPUTED to nobody.

              tandem tenants --watch
              tandem tenants set acme weight=4 tokens-per-minute=100k
              tandem tenants set acme tokens-per-minute=none
            """,
        subcommands: [TenantsShowCommand.self, TenantsSetCommand.self], defaultSubcommand: TenantsShowCommand.self)
}

struct TenantsShowCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "show", abstract: "The table (default).")

    @Flag(help: "The coordinator's own JSON.")
    var json = false

    @Flag(help: "Again every second, until Ctrl-C.")
    var watch = false

    @Option(help: "Seconds that shares are told over, 1 to 120.")
    var window: Int = 60

    @OptionGroup var cluster: ClusterOptions

    /// A verb behind the options: `tandem tenants --state X set acme weight=4` comes here.
    @Argument(help: .hidden)
    var words: [String] = []

    /// Says what the words ask for; an error names what to write.
    static func request(_ words: [String]) throws -> TenantsRequest {
        switch words.first {
        case nil: return .show
        case "show" where words.count == 1: return .show
        case "set" where words.count > 1: return .set(tenant: words[1], settings: Array(words.dropFirst(2)))
        case "set": throw CLIError("tenants: set needs a tenant; write `tandem tenants set TENANT NAME=VALUE ...`")
        case let word?:
            throw CLIError(
                "tenants: \(word) is no word of it; write `tandem tenants` or `tandem tenants set TENANT NAME=VALUE ...`"
            )
        }
    }

    func run() async throws {
        let client = ClusterClient(cluster)
        if case .set(let tenant, let settings) = try Self.request(words) {
            return try await TenantsSetCommand.set(tenant, settings, client)
        }
        while true {
            let table = try await client.get("/admin/tenants?window=\(window)")
            if watch, Terminal.isInteractive { Terminal.stream("\u{1B}[H\u{1B}[2J") }
            Terminal.say(json ? JSON.text(table, pretty: true) : TenantsReport(table).text)
            guard watch else { return }
            try await Task.sleep(for: .seconds(1))
        }
    }
}

enum TenantsRequest: Equatable {
    case show
    case set(tenant: String, settings: [String])
}

struct TenantsSetCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Change a tenant's weight or quotas, at once and for good.",
        discussion: "Settings: weight, requests-per-minute, tokens-per-minute, concurrent-jobs; `none` takes one away.")

    @Argument(help: "The tenant; * stands for those without quotas of their own.")
    var tenant: String

    @Argument(help: "NAME=VALUE, e.g. weight=4 or tokens-per-minute=100k.")
    var settings: [String] = []

    @OptionGroup var cluster: ClusterOptions

    private static let names = ["weight", "requests-per-minute", "tokens-per-minute", "concurrent-jobs"]

    func run() async throws { try await Self.set(tenant, settings, ClusterClient(cluster)) }

    static func set(_ tenant: String, _ settings: [String], _ client: ClusterClient) async throws {
        let reply = try await client.post("/admin/tenants", .object(try body(tenant, settings)))
        Terminal.say(JSON.text(reply, pretty: true))
    }

    private static func body(_ tenant: String, _ settings: [String]) throws -> JSONObject {
        var body = JSONObject([("tenant", .string(tenant))])
        guard !settings.isEmpty else {
            throw CLIError("settings: give at least one of \(Self.names.joined(separator: ", "))")
        }
        for setting in settings {
            let halves = setting.split(separator: "=", maxSplits: 1).map(String.init)
            guard halves.count == 2, Self.names.contains(halves[0]) else {
                throw CLIError(
                    "settings: \(setting) is not NAME=VALUE with one of \(Self.names.joined(separator: ", "))")
            }
            body[halves[0].replacingOccurrences(of: "-", with: "_")] = try Self.value(halves[1], of: halves[0])
        }
        return body
    }

    private static func value(_ text: String, of name: String) throws -> JSONValue {
        if text == "none" { return .null }
        if let integer = HumanSize.integer(text) { return .integer(Int64(integer)) }
        if name == "weight", let number = Double(text), number.isFinite { return .number(number) }
        throw CLIError("\(name): \(text) is not a number")
    }
}

/// The table of /admin/tenants.
struct TenantsReport {
    private let table: JSONValue

    init(_ table: JSONValue) { self.table = table }

    var text: String {
        let tenants = table["data"]?.arrayValue ?? []
        let head =
            "policy \(table["policy"]?.stringValue ?? "?"), shares of the last "
            + "\(Int(table["window_seconds"]?.doubleValue ?? 0)) s"
        guard !tenants.isEmpty else { return head + "\nno tenant has been seen yet" }
        return head + "\n\n"
            + Terminal.table(
                [
                    "TENANT", "WEIGHT", "ENTITLED", "SERVED", "UNITS", "COUNTER", "WAIT", "RUN", "TTFT P50", "TTFT P99",
                    "COMPUTED", "CACHED", "DECODED", "RECOMPUTED",
                ], tenants.map(Self.row))
    }

    private static func row(_ tenant: JSONValue) -> [String] {
        func share(_ name: String) -> String { String(format: "%.1f %%", 100 * (tenant[name]?.doubleValue ?? 0)) }
        func count(_ name: String) -> String { "\(tenant[name]?.intValue ?? 0)" }
        func tokens(_ name: String) -> String { "\(tenant["tokens"]?[name]?.intValue ?? 0)" }
        return [
            tenant["name"]?.stringValue ?? "?", String(format: "%g", tenant["weight"]?.doubleValue ?? 1),
            share("entitled_share"), share("served_share"), count("served_units"),
            String(format: "%.0f", tenant["virtual_counter"]?.doubleValue ?? 0), count("waiting_jobs"),
            count("running_jobs"), Terminal.milliseconds(tenant["ttft_ms"]?["p50"]?.doubleValue),
            Terminal.milliseconds(tenant["ttft_ms"]?["p99"]?.doubleValue), tokens("computed"), tokens("cached"),
            tokens("decoded"), tokens("recomputed"),
        ]
    }
}
