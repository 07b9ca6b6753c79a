import ServingTypes
import Testing

@testable import Scheduling

/// Constants of the policies as people set them.
struct PolicySettingTests {
    /// A text that sets a constant to a value that is not its default, and what then holds.
    private static let changes: [(PolicySetting, String, @Sendable (PolicyConfiguration) -> Bool)] = [
        (.theta, "1000", { $0.theta == 1000 }), (.promptWeight, "3", { $0.promptWeight == 3 }),
        (.outputWeight, "5", { $0.outputWeight == 5 }),
        (.baseQuantum, "20000", { $0.baseQuantum == .milliseconds(20) }),
        (.quantumRatio, "4", { $0.quantumRatio == 4 }), (.levels, "7", { $0.levelsMax == 7 }),
        (.promotionAge, "450", { $0.promotionAge == .milliseconds(450) }),
        (.promotionPeriod, "0", { $0.promotionPeriod == 0 && !$0.promotes }),
        (.rebuildCompletions, "16", { $0.rebuildCompletions == 16 }), (.samplesMin, "5", { $0.samplesMin == 5 }),
        (.decayShift, "2", { $0.decayShift == 2 }), (.runningBonus, "40", { $0.runningBonus == .milliseconds(40) }),
        (.predictionWindow, "9", { $0.predictionWindow == 9 }),
        (.requestsPerMinute, "12", { $0.requestsPerMinute == 12 }),
        (.promptUnits, "7", { $0.counting == .dominantShare(promptUnits: 7, outputUnits: 4, dovetail: 4000) }),
        (.outputUnits, "9", { $0.counting == .dominantShare(promptUnits: 1, outputUnits: 9, dovetail: 4000) }),
        (.dovetail, "50", { $0.counting == .dominantShare(promptUnits: 1, outputUnits: 4, dovetail: 50) }),
    ]

    @Test func everyConstantIsSetByItsNameAlone() throws {
        #expect(Self.changes.map(\.0) == PolicySetting.allCases)
        for (setting, value, holds) in Self.changes {
            let plain = policy("drf-gittins").configuration
            var changed = plain
            try changed.apply("\(setting.rawValue)=\(value)")
            #expect(holds(changed) && !holds(plain), "\(setting.rawValue)")
            #expect(changed.name == plain.name && changed.discipline == plain.discipline)
        }
    }

    @Test func severalAreSetAtOnceAndNoneByAnEmptyText() throws {
        var changed = policy("fair-mlfq").configuration
        try changed.apply("")
        #expect(changed == policy("fair-mlfq").configuration)
        try changed.apply("theta = 500, base-quantum-us=16000")
        #expect(changed.theta == 500 && changed.baseQuantum == .milliseconds(16))
    }

    @Test(arguments: [
        "theta", "theta=", "theta=x", "theta=-1", "theta=1.5", "thêta=1", "theta=1,", "theta=1,theta=2", "levels=0",
        "levels=65", "base-quantum-us=0", "theta=99999999999999999999", "drf-dovetail=1", "theta=1,levels=0", ",",
    ])
    func whatIsNoSettingIsRefusedAndChangesNothing(text: String) {
        var changed = policy("fair-mlfq").configuration
        #expect(throws: ServingError.self) { try changed.apply(text) }
        #expect(changed == policy("fair-mlfq").configuration)
    }

    /// The first quantum decides where a job joins: with one near a slow model's iteration, lower.
    @Test func aSettingDecidesWhereJobsJoin() throws {
        var slow = policy("mlfq").configuration
        let before = slow.level(covering: .milliseconds(40))
        try slow.apply("base-quantum-us=40000")
        #expect(before == 2 && slow.level(covering: .milliseconds(40)) == 0)
    }
}
