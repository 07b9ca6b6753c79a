import Foundation
import FrontDoor
import ModelFiles
import ServingTypes

/// From a model folder and flags to what the front door needs to know.
enum DoorSetup {
    static func configuration(_ flags: CoordinatorFlags, _ folder: ModelFolder) throws(ServingError)
        -> FrontDoorConfiguration
    {
        var model = ServedModel(
            name: flags.modelName ?? folder.modelName, contextTokensMax: folder.spec.contextTokensMax,
            vocabularySize: folder.spec.vocabularySize, tokenizer: folder.tokenizer,
            chatTemplate: folder.chatTemplate, endTokens: folder.generation.endTokens)
        model.bosToken = folder.bosToken
        model.eosToken = folder.eosToken
        model.created = MonotonicClock().wallClockSeconds
        apply(folder.generation, to: &model)
        var configuration = FrontDoorConfiguration(model: model, version: "0.1.0")
        configuration.host = flags.host
        configuration.port = flags.port
        configuration.tls = try tls(flags)
        configuration.keys = try flags.apiKeys.map { path throws(ServingError) in try KeyFile.read(path) } ?? []
        return configuration
    }

    /// What the folder recommends wins over the front door's own defaults.
    private static func apply(_ generation: ModelFiles.GenerationDefaults, to model: inout ServedModel) {
        if let temperature = generation.temperature { model.defaults.temperature = temperature }
        if let topP = generation.topP { model.defaults.topP = topP }
        if let topK = generation.topK { model.defaults.topK = topK }
        if let minP = generation.minP { model.defaults.minP = minP }
        if let penalty = generation.repetitionPenalty { model.defaults.repetitionPenalty = penalty }
    }

    private static func tls(_ flags: CoordinatorFlags) throws(ServingError) -> TLSFiles? {
        switch (flags.tlsCertificate, flags.tlsKey) {
        case (nil, nil): return nil
        case (let certificate?, let key?): return TLSFiles(certificateChain: certificate, privateKey: key)
        case (nil, _), (_, nil):
            throw ServingError(
                .invalidValue, "tls: --tls-certificate and --tls-key go together", field: "tls", blast: .process)
        }
    }
}

/// A text file, one `key tenant [scope,scope]` per line, `#` begins a comment. A key without scopes may
/// ask for output and look at its own jobs (`infer`); the cluster and its metrics are for keys that say so.
enum KeyFile {
    static let keysMax = 100_000
    static let tenantBytesMax = 64

    static func read(_ path: String) throws(ServingError) -> [APIKey] {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw ServingError(.invalidValue, "api-keys: \(path) cannot be read", field: "api-keys", blast: .process)
        }
        var keys: [APIKey] = []
        for (number, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            let words = line.prefix { $0 != "#" }.split(whereSeparator: \.isWhitespace).map(String.init)
            guard !words.isEmpty else { continue }
            keys.append(try key(words, path: path, line: number + 1))
        }
        guard !keys.isEmpty, keys.count <= keysMax else {
            throw ServingError(
                .invalidValue, "api-keys: \(path) holds \(keys.count) keys; 1 to \(keysMax) are taken",
                field: "api-keys", blast: .process)
        }
        return keys
    }

    private static func key(_ words: [String], path: String, line: Int) throws(ServingError) -> APIKey {
        guard words.count == 2 || words.count == 3 else {
            throw ServingError(
                .invalidValue, "api-keys: \(path) line \(line) is not `key tenant [scopes]`", field: "api-keys",
                blast: .process)
        }
        let name = words[1]
        guard (1...tenantBytesMax).contains(name.utf8.count), !name.hasPrefix("*") else {
            throw ServingError(
                .invalidValue,
                "api-keys: \(path) line \(line): a tenant's name has 1 to \(tenantBytesMax) bytes and does not begin"
                    + " with *", field: "api-keys", blast: .process)
        }
        var scopes: Set<APIKey.Scope> = [.infer]
        if words.count == 3 {
            scopes = []
            for name in words[2].split(separator: ",") {
                guard let scope = APIKey.Scope(rawValue: String(name)) else {
                    throw ServingError(
                        .invalidValue,
                        "api-keys: \(path) line \(line): scope \(name) is not one of infer, admin, metrics",
                        field: "api-keys", blast: .process)
                }
                scopes.insert(scope)
            }
        }
        return APIKey(name: "line-\(line)", plain: words[0], tenant: TenantID(words[1]), scopes: scopes)
    }
}
