import Crypto
import KVPaging
import Messages
import ServingTypes

/// The live page naming: SHA-256 chains (disaggregation.md §6.2). Tenants have different roots, so
/// two tenants never share a page and none can probe for another's prompt (reliability.md §4.2).
public struct SHA256PageNaming: PageNaming {
    private let compatibility: CompatibilityDigest

    public init(compatibility: CompatibilityDigest) { self.compatibility = compatibility }

    public func root(tenant: TenantID) -> PageID {
        var hash = SHA256()
        hash.update(data: Array("page/1".utf8))
        Self.update(&hash, with: compatibility.page)
        hash.update(data: Array(tenant.name.utf8))
        return PageID(hash.finalize())
    }

    public func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID {
        var hash = SHA256()
        Self.update(&hash, with: parent)
        withUnsafeBytes(of: UInt32(tokens.count).littleEndian) { hash.update(bufferPointer: $0) }
        var words = tokens.map { $0.value.littleEndian }
        words.withUnsafeMutableBytes { hash.update(bufferPointer: UnsafeRawBufferPointer($0)) }
        return PageID(hash.finalize())
    }

    private static func update(_ hash: inout SHA256, with page: PageID) {
        for word in [page.words.0, page.words.1, page.words.2, page.words.3] {
            withUnsafeBytes(of: word.littleEndian) { hash.update(bufferPointer: $0) }
        }
    }
}

extension PageID {
    /// SHA-256 of some bytes, for digests of requests and of configurations.
    public init(hashing bytes: some Sequence<UInt8>) {
        var hash = SHA256()
        hash.update(data: Array(bytes))
        self.init(hash.finalize())
    }

    fileprivate init(_ digest: SHA256.Digest) {
        self = digest.withUnsafeBytes { bytes in
            func word(_ index: Int) -> UInt64 {
                UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self))
            }
            return PageID(word(0), word(1), word(2), word(3))
        }
    }
}
