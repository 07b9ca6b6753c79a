import CNGHTTP2
import Glibc

/// The library's options and callbacks, each set in one place.
enum NGHTTP2Setup {
    /// Every option that bounds what a client can make the library do. The caller deletes the result.
    static func options(_ limits: HTTP2Limits) -> OpaquePointer? {
        var made: OpaquePointer?
        guard nghttp2_option_new(&made) == 0, let option = made else { return nil }
        // Windows grow as the driver consumes, not as bytes arrive.
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_option_set_no_closed_streams(option, 1)
        nghttp2_option_set_stream_reset_rate_limit(option, limits.resetBurst, limits.resetsPerSecond)
        nghttp2_option_set_max_continuations(option, limits.continuationsMax)
        nghttp2_option_set_max_settings(option, limits.settingsMax)
        nghttp2_option_set_max_outbound_ack(option, limits.outboundAcksMax)
        setGlitchLimitIfKnown(option)
        return option
    }

    /// nghttp2 1.67 and later limit peers' protocol glitches themselves; the headers of 1.52 do not
    /// know the function, so it is looked up.
    private static func setGlitchLimitIfKnown(_ option: OpaquePointer) {
        typealias Setter = @convention(c) (OpaquePointer, UInt64, UInt64) -> Void
        guard let symbol = dlsym(nil, "nghttp2_option_set_glitch_rate_limit") else { return }
        unsafeBitCast(symbol, to: Setter.self)(option, 1_000, 33)
    }

    /// What the server announces.
    static func settings(_ limits: HTTP2Limits) -> [nghttp2_settings_entry] {
        func entry(_ id: nghttp2_settings_id, _ value: UInt32) -> nghttp2_settings_entry {
            nghttp2_settings_entry(settings_id: Int32(id.rawValue), value: value)
        }
        return [
            entry(NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits.streamsMax),
            entry(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, UInt32(clamping: limits.streamWindowBytes)),
            entry(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, UInt32(clamping: limits.headerListBytesMax)),
            // RFC 7540's priority tree is work for the server at a client's bidding; RFC 9113 dropped it.
            entry(NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1),
        ]
    }

    /// Set once and shared: the library copies them into each session and nobody writes them again.
    nonisolated(unsafe) static let callbacks: OpaquePointer? = {
        var made: OpaquePointer?
        guard nghttp2_session_callbacks_new(&made) == 0, let callbacks = made else { return nil }
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks) { _, frame, user in
            guard let session = HTTP2ServerSession.from(user), let frame = frame?.pointee else { return failure }
            if frame.headers.cat == NGHTTP2_HCAT_REQUEST { session.requestBegins(frame.hd.stream_id) }
            return 0
        }
        nghttp2_session_callbacks_set_on_header_callback(callbacks) {
            _, frame, name, nameCount, value, valueCount, _, user in
            guard let session = HTTP2ServerSession.from(user), let frame = frame?.pointee else { return failure }
            if frame.hd.type == frameType(NGHTTP2_HEADERS), frame.headers.cat == NGHTTP2_HCAT_REQUEST {
                session.fieldArrives(
                    frame.hd.stream_id, UnsafeBufferPointer(start: name, count: nameCount),
                    UnsafeBufferPointer(start: value, count: valueCount))
            }
            return 0
        }
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks) { _, _, stream, bytes, count, user in
            guard let session = HTTP2ServerSession.from(user) else { return failure }
            session.bodyArrives(stream, UnsafeBufferPointer(start: bytes, count: count))
            return 0
        }
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks) { _, frame, user in
            guard let session = HTTP2ServerSession.from(user), let frame else { return failure }
            session.frameArrived(frame.pointee)
            return 0
        }
        nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks) { _, _, _, user in
            HTTP2ServerSession.from(user)?.invalidFrameArrived()
            return 0
        }
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks) { _, frame, user in
            guard let session = HTTP2ServerSession.from(user), let frame else { return failure }
            session.frameSent(frame.pointee)
            return 0
        }
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks) { _, stream, code, user in
            HTTP2ServerSession.from(user)?.streamClosed(stream, HTTP2ErrorCode(code))
            return 0
        }
        return callbacks
    }()

    /// Reads a stream's output; waits (`NGHTTP2_ERR_DEFERRED`) where there is none yet.
    static let readOutput: nghttp2_data_source_read_callback = { _, stream, target, room, flags, _, user in
        guard let session = HTTP2ServerSession.from(user), let target, let flags else {
            return Int(NGHTTP2_ERR_CALLBACK_FAILURE.rawValue)
        }
        return session.readOutput(stream, target, room, flags)
    }

    static let failure = Int32(NGHTTP2_ERR_CALLBACK_FAILURE.rawValue)

    static func frameType(_ type: nghttp2_frame_type) -> UInt8 { UInt8(truncatingIfNeeded: type.rawValue) }

    static func has(_ flags: UInt8, _ flag: nghttp2_flag) -> Bool { UInt32(flags) & UInt32(flag.rawValue) != 0 }

    static func text(_ error: Int) -> String {
        nghttp2_strerror(Int32(clamping: error)).map { String(cString: $0) } ?? "error \(error)"
    }
}
