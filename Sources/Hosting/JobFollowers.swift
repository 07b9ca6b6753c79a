import CoordinatorCore
import FrontDoor
import ServingTypes

/// Who listens to one job. Each listener has seen the log up to its own offset, so one that joins
/// in the middle of a turn neither misses nor repeats a token (invariant I5).
struct JobFollowers {
    private struct Follower {
        var sink: any JobSink
        var nextOffset: Int
    }

    private var followers: [Follower] = []

    /// Listeners to one job at most.
    static let max = 64

    var isEmpty: Bool { followers.isEmpty }
    var isFull: Bool { followers.count >= Self.max }

    mutating func add(_ sink: any JobSink, nextOffset: Int) {
        followers.append(Follower(sink: sink, nextOffset: nextOffset))
    }

    /// True if it was one of these.
    mutating func remove(_ sink: any JobSink) -> Bool {
        let before = followers.count
        followers.removeAll { $0.sink === sink }
        return followers.count < before
    }

    /// Calls in order of joining. The sinks may call back into the host, which queues what they ask.
    var sinks: [any JobSink] { followers.map(\.sink) }

    /// What each listener lacks of these tokens; marks it as seen.
    mutating func advance(offset: Int, tokens: [SampledToken]) -> [(
        sink: any JobSink, offset: Int, tokens: [SampledToken]
    )] {
        let end = offset + tokens.count
        var deliveries: [(sink: any JobSink, offset: Int, tokens: [SampledToken])] = []
        for index in followers.indices where followers[index].nextOffset < end {
            let start = Swift.max(offset, followers[index].nextOffset)
            followers[index].nextOffset = end
            deliveries.append((followers[index].sink, start, Array(tokens[(start - offset)...])))
        }
        return deliveries
    }
}
