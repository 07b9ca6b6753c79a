import Messages
import NIOCore
import ServingTypes
import WireCodec

/// One control connection on its event loop: bytes in, envelopes out, and back. Writes of one turn of
/// the loop leave together. Any frame error ends the link.
final class ControlLink: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let own: WorkerRef
    private let outboundBytesMax: Int
    private let codec = FrameCodec()
    private var decoder = FrameDecoder()
    private var context: ChannelHandlerContext?
    private var sequence: UInt64 = 0
    private var pending = ByteBuffer()
    /// Given to the channel and not yet taken by the kernel.
    private var inFlightBytes = 0
    private var flushScheduled = false
    private var ended = false
    var onEnvelope: ((Envelope) -> Void)?
    /// Once, when the link ends for whatever reason.
    var onEnd: ((String) -> Void)?

    init(own: WorkerRef, outboundBytesMax: Int) {
        self.own = own
        self.outboundBytesMax = outboundBytesMax
    }

    func handlerAdded(context: ChannelHandlerContext) { self.context = context }
    func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

    // Inbound.

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !ended else { return }
        let buffer = unwrapInboundIn(data)
        buffer.withUnsafeReadableBytes { decoder.push($0) }
        do {
            while !ended, let frame = try decoder.next() { onEnvelope?(frame.envelope) }
        } catch {
            end(error.description)
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        end("The peer closed the link.")
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { end("The link failed: \(error).") }

    // Outbound.

    func send(_ message: Message) {
        guard !ended else { return }
        sequence += 1
        do {
            let frame = try codec.encode(Envelope(sequence: sequence, sender: own, message: message))
            pending.writeBytes(frame)
        } catch {
            end("A message could not be encoded. \(error.description)")
            return
        }
        guard pending.readableBytes + inFlightBytes <= outboundBytesMax else {
            end("The peer does not read: more than \(outboundBytesMax) bytes wait for it.")
            return
        }
        scheduleFlush()
    }

    private func scheduleFlush() {
        guard !flushScheduled, let context else { return }
        flushScheduled = true
        context.eventLoop.assumeIsolated().execute { self.flush() }
    }

    private func flush() {
        flushScheduled = false
        guard let context, pending.readableBytes > 0 else { return }
        let bytes = pending
        pending = ByteBuffer()
        inFlightBytes += bytes.readableBytes
        let count = bytes.readableBytes
        context.writeAndFlush(wrapOutboundOut(bytes)).assumeIsolated().whenComplete { result in
            self.inFlightBytes -= count
            if case .failure(let error) = result { self.end("Writing failed: \(error).") }
        }
    }

    /// Sends what is pending and then closes.
    func finish(_ reason: String) {
        flush()
        end(reason)
    }

    func end(_ reason: String) {
        guard !ended else { return }
        ended = true
        let report = onEnd
        onEnvelope = nil
        onEnd = nil
        // Bytes already handed to the socket go out before it closes; nobody waits for those that block.
        context?.close(promise: nil)
        report?(reason)
    }
}
