import Crypto
import ServingTypes

/// SHA-256 where the front door needs one: digests of requests and of keys.
enum Digest {
    static func sha256(_ bytes: [UInt8]) -> [UInt8] { Array(SHA256.hash(data: bytes)) }

    /// Names a request by what was asked: its route and its body's bytes.
    static func request(kind: JobRequestRecord.Kind, body: [UInt8]) -> PageID {
        var hash = SHA256()
        hash.update(data: Array("request/1/\(kind.rawValue)/".utf8))
        hash.update(data: body)
        let bytes = Array(hash.finalize())
        func word(_ index: Int) -> UInt64 {
            bytes[index * 8..<index * 8 + 8].reduce(0) { $0 << 8 | UInt64($1) }
        }
        return PageID(word(0), word(1), word(2), word(3))
    }

    /// The name of a salted page space. The separator occurs in no tenant's name, so no tenant has such a name.
    static func pageSpace(tenant: TenantID, salt: String) -> TenantID {
        let digest = sha256(Array("space/1/\(tenant.name)\u{1F}\(salt)".utf8))
        return TenantID("\u{1F}" + digest.map { String(UInt16($0) + 0x100, radix: 16).dropFirst() }.joined())
    }

    /// Takes the same time wherever two digests differ.
    static func same(_ a: [UInt8], _ b: [UInt8]) -> Bool {
        guard a.count == b.count else { return false }
        var difference: UInt8 = 0
        for at in a.indices { difference |= a[at] ^ b[at] }
        return difference == 0
    }
}
