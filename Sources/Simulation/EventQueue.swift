/// Things that will happen on virtual time, earliest first; equal times in the order of submission.
/// The heap holds small nodes, so that a large event is moved once in and once out.
struct EventQueue<Event> {
    private struct Node {
        var time: Int64
        var order: UInt64
        var place: Int

        func precedes(_ other: Node) -> Bool {
            time == other.time ? order < other.order : time < other.time
        }
    }

    private var heap: [Node] = []
    private var events: [Event?] = []
    private var freePlaces: [Int] = []
    private var submitted: UInt64 = 0

    var count: Int { heap.count }
    var isEmpty: Bool { heap.isEmpty }
    var nextTime: Int64? { heap.first?.time }

    mutating func add(_ event: Event, at time: Int64) {
        submitted += 1
        let place: Int
        if let free = freePlaces.popLast() {
            place = free
            events[free] = event
        } else {
            place = events.count
            events.append(event)
        }
        heap.append(Node(time: time, order: submitted, place: place))
        siftUp(heap.count - 1)
    }

    mutating func removeFirst() -> (time: Int64, event: Event)? {
        guard let first = heap.first, let last = heap.popLast(), let event = events[first.place].take() else {
            return nil
        }
        freePlaces.append(first.place)
        if !heap.isEmpty {
            heap[0] = last
            siftDown()
        }
        return (first.time, event)
    }

    private mutating func siftUp(_ start: Int) {
        let node = heap[start]
        var child = start
        while child > 0 {
            let parent = (child - 1) / 2
            guard node.precedes(heap[parent]) else { break }
            heap[child] = heap[parent]
            child = parent
        }
        heap[child] = node
    }

    private mutating func siftDown() {
        let node = heap[0]
        var parent = 0
        while true {
            var least = 2 * parent + 1
            guard least < heap.count else { break }
            if least + 1 < heap.count, heap[least + 1].precedes(heap[least]) { least += 1 }
            guard heap[least].precedes(node) else { break }
            heap[parent] = heap[least]
            parent = least
        }
        heap[parent] = node
    }
}
