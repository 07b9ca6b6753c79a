import Foundation
import ServingTypes
import Testing

@testable import FrontDoor

/// A certificate for localhost that signs itself, good for a hundred years and for nothing else.
enum TestCertificate {
    static let certificate = """
        -----BEGIN CERTIFICATE-----
        MIIBnDCCAUGgAwIBAgIUXEN+oHwNBERY5cMkTT8vmO/DTpkwCgYIKoZIzj0EAwIw
        FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTEyMDcyMFoYDzIxMjYxMDI4
        MTIwNzIwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
        PQMBBwNCAAROHBxK4bvsbFsUK6DvwDgBIhb41tG72+J9fR3U7ug/MuOC7eC38YyJ
        lsZmTU95ujvN+azblZ6B/HbcFy54MFv4o28wbTAdBgNVHQ4EFgQUYVg45DkVsYnC
        UGShL6qsBh5IUj8wHwYDVR0jBBgwFoAUYVg45DkVsYnCUGShL6qsBh5IUj8wDwYD
        VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
        zj0EAwIDSQAwRgIhAJsuAzPHezf09GJy9Z1TybA4+UtXC8N9KvK4pYOfBBgZAiEA
        lzFoX0VPIpGrFjFuH2H5ZOnLiBT+VTerdKiG1n9ToOI=
        -----END CERTIFICATE-----

        """

    static let key = """
        -----BEGIN PRIVATE KEY-----
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg3OL9uYuN1YPW/f8c
        5hipJfcRd/CYbBBS236r6h6oz9ihRANCAAROHBxK4bvsbFsUK6DvwDgBIhb41tG7
        2+J9fR3U7ug/MuOC7eC38YyJlsZmTU95ujvN+azblZ6B/HbcFy54MFv4
        -----END PRIVATE KEY-----

        """

    /// Writes both and returns where.
    static func files() throws -> TLSFiles {
        let base = FileManager.default.temporaryDirectory.appendingPathComponent("front-door-tls-\(UUID())")
        try FileManager.default.createDirectory(at: base, withIntermediateDirectories: true)
        let (chain, secret) = (base.appendingPathComponent("c.pem"), base.appendingPathComponent("k.pem"))
        try Data(certificate.utf8).write(to: chain)
        try Data(key.utf8).write(to: secret)
        return TLSFiles(certificateChain: chain.path, privateKey: secret.path)
    }
}

@Suite struct TLSTests {
    @Test func theProtocolIsAgreedOnByALPN() async throws {
        let files = try TestCertificate.files()
        let server = try await LoopbackServer {
            $0.tls = files
        } jobs: { jobs, loop in
            jobs.streamEverything("Hello", on: loop)
        }
        for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let result = try await LoopbackServer.run(
                "curl",
                [
                    "-sS", "-N", flag, "--cacert", files.certificateChain, "-w", "\n%{http_version}", "-H",
                    "content-type: application/json", "-d", #"{"prompt":"a","stream":true}"#,
                    "https://localhost:\(server.port)/v1/completions",
                ])
            #expect(result.status == 0, "\(result.errors)")
            #expect(result.output.hasSuffix("data: [DONE]\n\n\n\(version)"))
        }
        try await server.stop()
    }

    @Test func aMissingKeyFileFailsTheStart() async throws {
        await #expect(throws: (any Error).self) {
            _ = try await LoopbackServer {
                $0.tls = TLSFiles(certificateChain: "/nowhere/c.pem", privateKey: "/nowhere/k.pem")
            } jobs: { _, _ in
            }
        }
    }
}
