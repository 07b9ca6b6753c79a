import BoundedJSON
import Foundation
import ServingTypes
import Yams

/// Where a setting's value came from, strongest first (user-experience.md §3).
enum SettingOrigin: String {
    case flag
    case environment
    case file
    case standard = "default"
}

/// Resolves settings in the order flag, environment, file, default, and remembers who won.
struct SettingResolver {
    private let environment: [String: String]
    private let file: [String: String]
    private let fileName: String?
    private(set) var trail: [(name: String, value: String, origin: SettingOrigin)] = []

    /// - Parameter configPath: a YAML file whose top level is a mapping of setting names to scalars.
    init(configPath: String?, environment: [String: String] = ProcessInfo.processInfo.environment) throws {
        self.environment = environment
        fileName = configPath
        file = try configPath.map(Self.readFile) ?? [:]
    }

    mutating func text(_ name: String, flag: String?, standard: String) -> String {
        optionalText(name, flag: flag) ?? record(name, standard, .standard)
    }

    mutating func optionalText(_ name: String, flag: String?) -> String? {
        if let flag { return record(name, flag, .flag) }
        if let value = environment[Self.environmentName(name)] { return record(name, value, .environment) }
        if let value = file[name] { return record(name, value, .file) }
        return nil
    }

    mutating func integer(_ name: String, flag: Int?, standard: Int, in range: ClosedRange<Int>) throws -> Int {
        let text = text(name, flag: flag.map(String.init), standard: String(standard))
        guard let value = HumanSize.integer(text) else {
            throw CLIError("\(name): \(text) is not a whole number\(whence(name))")
        }
        guard range.contains(value) else {
            throw CLIError(
                "\(name): \(value) is outside \(range.lowerBound) to \(range.upperBound)\(whence(name))")
        }
        return value
    }

    mutating func choice(_ name: String, flag: String?, standard: String, from choices: [String]) throws -> String {
        let value = text(name, flag: flag, standard: standard)
        guard choices.contains(value) else {
            throw CLIError("\(name): \(value) is not one of \(choices.joined(separator: ", "))\(whence(name))")
        }
        return value
    }

    /// Names in the file that nothing asked for: a misspelling must not pass in silence.
    func refuseUnknownFileKeys() throws {
        let known = Set(trail.map(\.name))
        if let unknown = file.keys.filter({ !known.contains($0) && !Self.optional.contains($0) }).sorted().first {
            throw CLIError("\(fileName ?? "config"): unknown setting \(unknown)")
        }
    }

    static let optional: Set<String> = [
        "model-name", "policy-settings", "api-keys", "tenants", "tls-certificate", "tls-key",
    ]

    private mutating func record(_ name: String, _ value: String, _ origin: SettingOrigin) -> String {
        trail.removeAll { $0.name == name }
        trail.append((name, value, origin))
        return value
    }

    private func whence(_ name: String) -> String {
        switch trail.first(where: { $0.name == name })?.origin {
        case .flag: " (from --\(name))"
        case .environment: " (from \(Self.environmentName(name)))"
        case .file: " (from \(fileName ?? "the config file"))"
        case .standard, nil: ""
        }
    }

    static func environmentName(_ name: String) -> String {
        "TANDEM_" + name.uppercased().replacingOccurrences(of: "-", with: "_")
    }

    private static func readFile(_ path: String) throws -> [String: String] {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw CLIError("config: \(path) cannot be read")
        }
        let composed: Node?
        do { composed = try Yams.compose(yaml: text) } catch {
            throw CLIError("config: \(path) is not YAML: \(error)")
        }
        guard let node = composed else { return [:] }
        guard case .mapping(let mapping) = node else {
            throw CLIError("config: the top level of \(path) is not a mapping of setting names to values")
        }
        var settings: [String: String] = [:]
        for (key, value) in mapping {
            if key.string == "tenants", case .mapping(let tenants) = value {
                settings["tenants"] = try tenantTable(tenants, path)
                continue
            }
            guard let name = key.string, case .scalar(let scalar) = value else {
                throw CLIError("config: \(path): \(key.string ?? "a key") must have one plain value")
            }
            settings[name] = scalar.string
        }
        return settings
    }
}

extension SettingResolver {
    /// `acme: {weight: 4, tokens-per-minute: 10k}` in the words of the flag.
    fileprivate static func tenantTable(_ tenants: Node.Mapping, _ path: String) throws -> String {
        try tenants.map { key, value in
            guard let tenant = key.string, case .mapping(let settings) = value else {
                throw CLIError(
                    "config: \(path): tenants: \(key.string ?? "a key") must be a mapping of settings to numbers")
            }
            let parts = try settings.map { name, value -> String in
                guard let name = name.string, case .scalar(let scalar) = value else {
                    throw CLIError("config: \(path): tenants: \(tenant) must have plain values")
                }
                return "\(name)=\(HumanSize.integer(scalar.string).map(String.init) ?? scalar.string)"
            }
            return "\(tenant):\(parts.joined(separator: ","))"
        }.joined(separator: ";")
    }
}

/// `25.6k`, `32K`, `4M`: decimal thousands in lower case, powers of 1024 in upper case.
enum HumanSize {
    static func integer(_ text: String) -> Int? {
        let units: [Character: Double] = ["k": 1e3, "K": 1024, "m": 1e6, "M": 1_048_576, "g": 1e9, "G": 1_073_741_824]
        guard let last = text.last, let factor = units[last] else { return Int(text) }
        guard let number = Double(text.dropLast()), number.isFinite else { return nil }
        return Int(exactly: (number * factor).rounded())
    }
}

/// A sentence for the person at the terminal.
struct CLIError: Error, CustomStringConvertible {
    var description: String
    /// The coordinator went away; it may come back.
    var isLoss: Bool

    init(_ description: String, isLoss: Bool = false) {
        self.description = description
        self.isLoss = isLoss
    }
}
