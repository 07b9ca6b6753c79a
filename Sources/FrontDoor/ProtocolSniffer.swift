import NIOCore
import NIOHTTP1

/// Reads the first bytes of a connection: HTTP/2's preface (RFC 9113 §3.4) or a request of HTTP/1.
final class ProtocolSniffer: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = ByteBuffer

    private let door: FrontDoor
    private var first = ByteBuffer()
    private var isDecided = false
    private var timer: Scheduled<Void>?

    /// No HTTP/1 request starts so: there is no method PRI.
    static let preface = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)

    init(door: FrontDoor) { self.door = door }

    func handlerAdded(context: ChannelHandlerContext) {
        if context.channel.isActive { begin(context) }
    }

    func channelActive(context: ChannelHandlerContext) {
        begin(context)
        context.fireChannelActive()
    }

    private func begin(_ context: ChannelHandlerContext) {
        guard timer == nil else { return }
        let channel = context.channel
        timer = context.eventLoop.assumeIsolated().scheduleTask(in: door.configuration.limits.headTime.amount) {
            channel.close(promise: nil)
        }
        context.read()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var bytes = unwrapInboundIn(data)
        first.writeBuffer(&bytes)
        decide(context)
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        if !isDecided { context.read() }
        context.fireChannelReadComplete()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if !isDecided, let event = event as? ChannelEvent, event == .inputClosed {
            context.close(promise: nil)
        } else {
            context.fireUserInboundEventTriggered(event)
        }
    }

    func handlerRemoved(context: ChannelHandlerContext) { timer?.cancel() }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if isDecided { context.fireErrorCaught(error) } else { context.close(promise: nil) }
    }

    private func decide(_ context: ChannelHandlerContext) {
        guard !isDecided else { return }
        let seen = first.readableBytesView
        let isPrefix = Self.preface.starts(with: seen.prefix(Self.preface.count))
        // Four bytes are enough: no method begins with "PRI ".
        if isPrefix, seen.count < 4 { return }
        isDecided = true
        timer?.cancel()
        do {
            let pipeline = context.pipeline.syncOperations
            if isPrefix {
                try installHTTP2(context, pipeline)
            } else {
                let connection = try HTTP1Connection.install(in: pipeline, door: door)
                door.register(context.channel) { [weak connection] in connection?.drain() }
            }
            context.fireChannelRead(NIOAny(first))
            context.fireChannelReadComplete()
            context.pipeline.syncOperations.removeHandler(self, promise: nil)
        } catch {
            context.close(promise: nil)
        }
    }

    private func installHTTP2(
        _ context: ChannelHandlerContext, _ pipeline: ChannelPipeline.SynchronousOperations
    ) throws {
        let connection = try HTTP2Connection(door: door)
        try pipeline.addHandler(connection)
        door.register(context.channel) { [weak connection] in connection?.drain() }
    }
}
