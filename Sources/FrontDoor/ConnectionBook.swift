/// Open connections, in all and by address, against their limits.
struct ConnectionBook {
    private var byAddress: [String: Int] = [:]
    private(set) var count = 0

    let countMax: Int
    let perAddressMax: Int

    init(limits: FrontDoorLimits) {
        countMax = limits.connectionsMax
        perAddressMax = limits.connectionsPerAddressMax
    }

    /// Whether one more may come from there; if so it is counted.
    mutating func admit(_ address: String) -> Bool {
        guard count < countMax, byAddress[address, default: 0] < perAddressMax else { return false }
        count += 1
        byAddress[address, default: 0] += 1
        return true
    }

    mutating func leave(_ address: String) {
        count -= 1
        if let open = byAddress[address] { byAddress[address] = open > 1 ? open - 1 : nil }
    }
}
