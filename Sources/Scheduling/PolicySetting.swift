import ServingTypes

/// A constant of the scheduling policy that people may set, by the name that they write.
public enum PolicySetting: String, CaseIterable, Sendable {
    case theta
    case promptWeight = "prompt-weight"
    case outputWeight = "output-weight"
    case baseQuantum = "base-quantum-us"
    case quantumRatio = "quantum-ratio"
    case levels
    case promotionAge = "promotion-age-ms"
    case promotionPeriod = "promotion-period"
    case rebuildCompletions = "rebuild-completions"
    case samplesMin = "samples-min"
    case decayShift = "decay-shift"
    case runningBonus = "running-bonus-ms"
    case predictionWindow = "prediction-window"
    case requestsPerMinute = "requests-per-minute"
    case promptUnits = "drf-prompt-units"
    case outputUnits = "drf-output-units"
    case dovetail = "drf-dovetail"

    /// Names for people, in a line.
    public static var names: String { allCases.map(\.rawValue).joined(separator: ", ") }

    /// What it may be, wide enough for any cluster and far from where a counter would overflow.
    public var range: ClosedRange<Int64> {
        switch self {
        case .theta, .dovetail: 0...1_000_000_000_000
        case .promptWeight, .outputWeight, .promptUnits, .outputUnits: 1...1_000_000_000
        case .baseQuantum: 1...60_000_000
        case .quantumRatio: 1...1024
        case .levels: 1...64
        case .promotionAge, .runningBonus: 0...86_400_000
        case .promotionPeriod: 0...1_000_000
        case .rebuildCompletions, .samplesMin: 1...1_000_000
        case .decayShift: 0...30
        case .predictionWindow: 1...1000
        case .requestsPerMinute: 1...100_000
        }
    }

    fileprivate func set(_ value: Int64, in policy: inout PolicyConfiguration) throws(ServingError) {
        switch self {
        case .theta: policy.theta = value
        case .promptWeight: policy.promptWeight = value
        case .outputWeight: policy.outputWeight = value
        case .baseQuantum: policy.baseQuantum = .microseconds(value)
        case .quantumRatio: policy.quantumRatio = value
        case .levels: policy.levelsMax = Int(value)
        case .promotionAge: policy.promotionAge = .milliseconds(value)
        case .promotionPeriod: policy.promotionPeriod = Int(value)
        case .rebuildCompletions: policy.rebuildCompletions = Int(value)
        case .samplesMin: policy.samplesMin = Int(value)
        case .decayShift: policy.decayShift = Int(value)
        case .runningBonus: policy.runningBonus = .milliseconds(value)
        case .predictionWindow: policy.predictionWindow = Int(value)
        case .requestsPerMinute: policy.requestsPerMinute = Int(value)
        case .promptUnits, .outputUnits, .dovetail: try setDominantShare(value, in: &policy)
        }
    }

    private func setDominantShare(_ value: Int64, in policy: inout PolicyConfiguration) throws(ServingError) {
        guard case .dominantShare(var prompt, var output, var dovetail) = policy.counting else {
            throw Self.refusal("\(rawValue) is of the policies drf and drf-gittins, not of \(policy.name)")
        }
        switch self {
        case .promptUnits: prompt = value
        case .outputUnits: output = value
        default: dovetail = value
        }
        policy.counting = .dominantShare(promptUnits: prompt, outputUnits: output, dovetail: dovetail)
    }

    fileprivate static func refusal(_ reason: String) -> ServingError {
        ServingError(.invalidValue, "policy-settings: \(reason)", field: "policy-settings", blast: .process)
    }
}

extension PolicyConfiguration {
    /// What clusters and simulations run where nobody names a policy.
    public static let standardName = "fair-mlfq"

    /// Changes constants as people write them: `theta=1000,base-quantum-us=20000`. An empty text changes nothing; one
    /// that is wrong anywhere changes nothing either.
    public mutating func apply(_ text: String) throws(ServingError) {
        var changed = self
        var seen: Set<PolicySetting> = []
        for part in text.split(separator: ",", omittingEmptySubsequences: !text.contains(",")) {
            let (setting, value) = try Self.setting(part)
            guard seen.insert(setting).inserted else {
                throw PolicySetting.refusal("\(setting.rawValue) is there twice")
            }
            try setting.set(value, in: &changed)
        }
        self = changed
    }

    private static func setting(_ part: Substring) throws(ServingError) -> (PolicySetting, Int64) {
        let halves = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            .map { $0.filter { $0 != " " } }
        guard halves.count == 2, let setting = PolicySetting(rawValue: halves[0]) else {
            throw PolicySetting.refusal("\"\(part)\" is not NAME=NUMBER with one of \(PolicySetting.names)")
        }
        guard let value = Int64(halves[1]), setting.range.contains(value) else {
            throw PolicySetting.refusal(
                "\(setting.rawValue): \"\(halves[1])\" is no whole number from \(setting.range.lowerBound) to "
                    + "\(setting.range.upperBound)")
        }
        return (setting, value)
    }
}
