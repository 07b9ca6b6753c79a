import NIOCore
import NIOSSL

/// TLS with ALPN. The protocol is then told by its first bytes, as without TLS: a client that agreed
/// on h2 sends its preface.
struct TLSFrontDoor: ConnectionSecurity {
    private let context: NIOSSLContext

    /// Throws where a file cannot be read or the key does not belong to the certificate.
    init(files: TLSFiles) throws {
        let certificates = try NIOSSLCertificate.fromPEMFile(files.certificateChain)
        let key = try NIOSSLPrivateKey(file: files.privateKey, format: .pem)
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: certificates.map { .certificate($0) }, privateKey: .privateKey(key))
        configuration.applicationProtocols = ["h2", "http/1.1"]
        configuration.minimumTLSVersion = .tlsv12
        context = try NIOSSLContext(configuration: configuration)
    }

    func protect(_ pipeline: ChannelPipeline.SynchronousOperations) throws {
        try pipeline.addHandler(NIOSSLServerHandler(context: context))
    }
}
