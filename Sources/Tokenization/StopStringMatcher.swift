/// Looks for stop strings in a stream of text. Holds back only what may still become one; the stop
/// that ends first wins, of those that end together the longest. Where the pieces end changes nothing.
public struct StopStringMatcher: Sendable {
    /// What a piece of text led to.
    public struct Output: Hashable, Sendable {
        /// Text that is no part of a stop string.
        public var text: String
        /// The stop string that was met; nothing follows it.
        public var stop: String?

        public init(text: String, stop: String?) {
            self.text = text
            self.stop = stop
        }
    }

    /// One stop string as a Knuth-Morris-Pratt automaton over bytes.
    private struct Automaton: Sendable {
        let text: String
        let bytes: [UInt8]
        /// For each length, the longest proper prefix that is also a suffix of that prefix.
        let fallback: [Int]
        var matched = 0

        init(_ text: String) {
            self.text = text
            bytes = Array(text.utf8)
            var fallback = [0, 0]
            var length = 0
            for place in bytes.indices.dropFirst() {
                while length > 0, bytes[place] != bytes[length] { length = fallback[length] }
                if bytes[place] == bytes[length] { length += 1 }
                fallback.append(length)
            }
            self.fallback = fallback
        }

        /// Whether the string ends with this byte.
        mutating func step(_ byte: UInt8) -> Bool {
            while matched > 0, bytes[matched] != byte { matched = fallback[matched] }
            if bytes[matched] == byte { matched += 1 }
            return matched == bytes.count
        }
    }

    private var automata: [Automaton]
    private var held: [UInt8] = []
    private var stopped = false

    /// Empty strings are ignored.
    public init(_ stops: [String]) {
        automata = stops.filter { !$0.utf8.isEmpty }.map { Automaton($0) }
    }

    /// Whether text is being held back.
    public var isHolding: Bool { !held.isEmpty }

    /// The text that is certain after this piece. After a stop everything is swallowed.
    public mutating func push(_ text: String) -> Output {
        guard !stopped else { return Output(text: "", stop: nil) }
        guard !automata.isEmpty else { return Output(text: text, stop: nil) }
        for byte in text.utf8 {
            held.append(byte)
            if let stop = step(byte) {
                stopped = true
                held.removeLast(stop.utf8.count)
                return Output(text: take(held.count), stop: stop)
            }
        }
        let undecided = automata.reduce(0) { max($0, $1.matched) }
        return Output(text: take(held.count - undecided), stop: nil)
    }

    /// What was held back, when the stream ends without a stop string.
    public mutating func finish() -> String { stopped ? "" : take(held.count) }

    private mutating func step(_ byte: UInt8) -> String? {
        var longest: Automaton?
        for index in automata.indices where automata[index].step(byte) {
            if longest.map({ $0.bytes.count < automata[index].bytes.count }) ?? true { longest = automata[index] }
        }
        return longest?.text
    }

    private mutating func take(_ count: Int) -> String {
        defer { held.removeFirst(count) }
        return String(decoding: held[..<count], as: UTF8.self)
    }
}
