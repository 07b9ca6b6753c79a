import ServingTypes
import Testing

@testable import Scheduling

/// Fair sharing as the live coordinator runs it: who comes to others is raised to the clamp only.
struct ClampTests {
    /// Property 13 with the clamp alone.
    @Test(arguments: ["fair", "fair-mlfq", "fair-gittins"])
    func theClampAloneKeepsTheBound(name: String) {
        var nearest = 0.0
        for seed in UInt64(100)..<116 {
            var random = SeededGenerator(seed: seed)
            let theta = [0, 60, 200][random.pick(0...2)]
            let work = requests(&random, count: 70, tenants: random.pick(2...5), gap: 15, input: 1...100)
            var subject = engine(name, slots: random.pick(1...6)) {
                $0.theta = Int64(theta)
                $0.liftsToClampOnly = true
            }
            var worst = 0.0
            subject.run(work, until: .max) { engine, chosen in
                let values = engine.backlogged(chosen).map { engine.counter($0) }
                worst = max(worst, (values.max() ?? 0) - (values.min() ?? 0))
            }
            #expect(worst <= Double(theta + 100), "\(name) seed \(seed)")
            nearest = max(nearest, worst / Double(theta + 100))
        }
        #expect(nearest > 0.5, "\(name): the bound is not out of reach")
    }

    /// Property 16: the pause is worth theta and one charge, whatever its length.
    @Test func aPauseIsWorthNoMoreThanThetaAndOneCharge() {
        for pause in [Int64(500), 6000, 20_000] {
            var work: [Request] = []
            for number in 0..<1500 {
                work.append(Request(number: number, tenant: "busy", at: 0, input: 10, output: 20))
            }
            for number in 0..<400 {
                work.append(Request(number: 5000 + number, tenant: "idler", at: pause, input: 10, output: 20))
            }
            work.append(Request(number: 9000, tenant: "idler", at: 0, input: 10, output: 1))
            var subject = engine("fair", slots: 2) {
                $0.theta = 100
                $0.liftsToClampOnly = true
            }
            subject.run(work.filter { $0.at == 0 }, until: pause - 10)
            let before = subject.units
            subject.run(work.filter { $0.at == pause }, until: pause + 3000)
            func gained(_ tenant: String) -> Int64 {
                let name = before.keys.first { "\($0)" == tenant }
                return name.map { (subject.units[$0] ?? 0) - (before[$0] ?? 0) } ?? 0
            }
            #expect(gained("idler") - gained("busy") <= 2 * (100 + 10) + 100, "pause \(pause)")
            #expect(gained("busy") > 0, "pause \(pause)")
        }
    }

    /// What the clamp alone is for: a newcomer need not wait until the others are theta ahead again.
    @Test(arguments: [(true, true), (false, false)])
    func aNewcomerGetsASlotAtOnce(clampOnly: Bool, atOnce: Bool) {
        var fair = policy("fair") {
            $0.theta = 100
            $0.liftsToClampOnly = clampOnly
        }
        for number in 1...4 { fair.arrive(number, "flood") }
        for number in 1...2 {
            fair.dispatch(id(number), at: .zero)
            fair.started(id(number))
        }
        fair.produced(id(1), tokens: 5000)
        fair.arrive(9, "light")
        #expect((fair.countAhead(of: id(9), among: [id(1), id(2)], at: .zero) < 2) == atOnce)
    }

    /// Who comes first after everybody had left does not begin behind by what the others had.
    @Test func whoComesToAnEmptyClusterIsLiftedToWhoWaitedLast() {
        var fair = policy("fair") {
            $0.theta = 100
            $0.liftsToClampOnly = true
        }
        fair.arrive(1, "busy")
        fair.dispatch(id(1), at: .zero)
        fair.started(id(1))
        fair.produced(id(1), tokens: 5000)
        fair.arrive(2, "busy")
        fair.dispatch(id(2), at: .zero)
        fair.leave(id(1))
        fair.leave(id(2))
        fair.arrive(3, "idler")
        #expect(fair.virtualCounter(of: TenantID("idler")) == fair.virtualCounter(of: TenantID("busy")))
    }
}
