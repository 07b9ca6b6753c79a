import BoundedJSON
import Foundation
import NIOCore
import NIOPosix
import ServingTypes

/// The supervisor's own door: a Unix socket in the state directory, one JSON object per line each
/// way. File permissions are its access control.
public struct ControlSocket: Sendable {
    public enum Limits {
        public static let lineBytesMax = 65_536
    }

    private let channel: NIOAsyncChannel<NIOAsyncChannel<ByteBuffer, ByteBuffer>, Never>

    public static func bind(path: String) async throws -> ControlSocket {
        try? FileManager.default.removeItem(atPath: path)
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .bind(unixDomainSocketPath: path) { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(ByteToMessageHandler(LineDecoder()))
                    return try NIOAsyncChannel<ByteBuffer, ByteBuffer>(wrappingChannelSynchronously: channel)
                }
            }
        chmod(path, 0o600)
        return ControlSocket(channel: channel)
    }

    /// Answers every line with what `handle` makes of it, until cancelled.
    public func serve(_ handle: @escaping @Sendable (JSONValue) async -> JSONValue) async throws {
        try await withThrowingDiscardingTaskGroup { group in
            try await channel.executeThenClose { connections in
                for try await connection in connections {
                    group.addTask { try? await Self.answer(connection, handle) }
                }
            }
        }
    }

    private static func answer(
        _ connection: NIOAsyncChannel<ByteBuffer, ByteBuffer>,
        _ handle: @Sendable (JSONValue) async -> JSONValue
    ) async throws {
        try await connection.executeThenClose { lines, replies in
            for try await line in lines {
                let request = (try? JSON.parse([UInt8](line.readableBytesView))) ?? .null
                let reply = await handle(request)
                try await replies.write(ByteBuffer(string: JSON.text(reply) + "\n"))
            }
        }
    }

    /// Sends one request to a running supervisor.
    public static func ask(path: String, _ request: JSONValue) async throws(ServingError) -> JSONValue {
        do {
            let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                .connect(unixDomainSocketPath: path) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try channel.pipeline.syncOperations.addHandler(ByteToMessageHandler(LineDecoder()))
                        return try NIOAsyncChannel<ByteBuffer, ByteBuffer>(wrappingChannelSynchronously: channel)
                    }
                }
            return try await channel.executeThenClose { lines, requests in
                try await requests.write(ByteBuffer(string: JSON.text(request) + "\n"))
                for try await line in lines { return try JSON.parse([UInt8](line.readableBytesView)) }
                return .null
            }
        } catch {
            throw ServingError(
                .notFound, "no cluster answers on \(path); start one with `tandem up`", field: "state", blast: .process)
        }
    }
}

/// Splits at line feeds, with a bound on a line's length.
struct LineDecoder: ByteToMessageDecoder {
    typealias InboundOut = ByteBuffer

    mutating func decode(context: ChannelHandlerContext, buffer: inout ByteBuffer) throws -> DecodingState {
        guard let length = buffer.readableBytesView.firstIndex(of: UInt8(ascii: "\n")).map({ $0 - buffer.readerIndex })
        else {
            guard buffer.readableBytes <= ControlSocket.Limits.lineBytesMax else {
                throw ServingError(
                    .malformed, "a control line exceeds \(ControlSocket.Limits.lineBytesMax) bytes", blast: .link)
            }
            return .needMoreData
        }
        guard let line = buffer.readSlice(length: length) else { return .needMoreData }
        buffer.moveReaderIndex(forwardBy: 1)
        context.fireChannelRead(wrapInboundOut(line))
        return .continue
    }
}
