import Foundation
import NIOCore
import NIOPosix
import ServingTypes

@testable import FrontDoor

/// A front door on a real loop and a real port, before jobs that do what the test says.
final class LoopbackServer: Sendable {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let loop: any EventLoop
    let port: Int
    private let state: NIOLoopBound<State>

    struct State {
        var door: FrontDoor
        var jobs: FakeJobs
    }

    init(
        _ change: @escaping @Sendable (inout FrontDoorConfiguration) -> Void = { _ in },
        jobs prepare: @escaping @Sendable (FakeJobs, any EventLoop) -> Void
    ) async throws {
        let loop = group.next()
        let (state, port) = try await loop.submit {
            let jobs = FakeJobs()
            prepare(jobs, loop)
            var configuration = FrontDoorConfiguration(
                model: try TinyModel.make(contextTokensMax: 20_000), version: "0.0")
            configuration.port = 0
            change(&configuration)
            let (door, port) = FrontDoor.start(on: loop, configuration: configuration, service: jobs)
            return (NIOLoopBound(State(door: door, jobs: jobs), eventLoop: loop), port)
        }.get()
        self.loop = loop
        self.state = state
        self.port = try await port.get()
    }

    func on<Value: Sendable>(_ work: @escaping @Sendable (FrontDoor, FakeJobs) -> Value) async throws -> Value {
        try await loop.submit { [state] in work(state.value.door, state.value.jobs) }.get()
    }

    /// Asks again and again until it is so; gives up after ten seconds.
    func eventually(_ condition: @escaping @Sendable (FrontDoor, FakeJobs) -> Bool) async throws -> Bool {
        for _ in 0..<1000 {
            if try await on(condition) { return true }
            try await Task.sleep(for: .milliseconds(10))
        }
        return false
    }

    func stop() async throws {
        try await loop.flatSubmit { [state] in state.value.door.stop() }.get()
        try await group.shutdownGracefully()
    }

    /// Runs a client program to its end: status, standard output, standard error.
    static func run(_ program: String, _ arguments: [String]) async throws -> (
        status: Int32, output: String, errors: String
    ) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = [program] + arguments
        let (output, errors) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = errors
        process.standardInput = FileHandle.nullDevice
        try process.run()
        async let text = read(output)
        async let complaints = read(errors)
        let result = await (text, complaints)
        process.waitUntilExit()
        return (process.terminationStatus, result.0, result.1)
    }

    private static func read(_ pipe: Pipe) async -> String {
        await withCheckedContinuation { continuation in
            Thread.detachNewThread {
                let data = pipe.fileHandleForReading.readDataToEndOfFile()
                continuation.resume(returning: String(decoding: data, as: UTF8.self))
            }
        }
    }
}

extension FakeJobs {
    /// Admits at once, then gives one byte per turn of the loop, so that clients see a stream.
    func streamEverything(_ text: String, on loop: any EventLoop) {
        onSubmit = { jobs, job in
            jobs.admit(job)
            Self.step(jobs, job, Array(text.utf8)[...], loop)
        }
    }

    private static func step(_ jobs: FakeJobs, _ job: Job, _ rest: ArraySlice<UInt8>, _ loop: any EventLoop) {
        loop.assumeIsolated().execute {
            guard let byte = rest.first else { return jobs.end(job, .finished(.length)) }
            jobs.emit(job, [SampledToken(token: TokenID(UInt32(byte)))])
            step(jobs, job, rest.dropFirst(), loop)
        }
    }
}

/// A blocking socket, for what no client program does.
final class RawSocket {
    private let descriptor: Int32

    init(port: Int) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = UInt16(port).bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else { throw POSIXError(.ECONNREFUSED) }
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { Glibc.close(descriptor) }

    func send(_ text: String) {
        let bytes = Array(text.utf8)
        _ = Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    func finishSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// Reads until the text is there or the server closes.
    func read(until mark: String? = nil) -> String {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while mark.map({ !String(decoding: bytes, as: UTF8.self).contains($0) }) ?? true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            guard count > 0 else { break }
            bytes += buffer[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
