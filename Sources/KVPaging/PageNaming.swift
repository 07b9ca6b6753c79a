import ServingTypes

/// Names full blocks by content. The cores receive a naming as a value, since a cryptographic hash
/// belongs to a library that the pure layers do not import; the live one is SHA-256 in `Hosting`.
///
/// `root` = H("page/1" || compatibility digest || tenant salt); the name of a block is
/// H(parent || token count || tokens as little-endian UInt32) (disaggregation.md §6.2).
public protocol PageNaming: Sendable {
    /// The parent of a tenant's first blocks; tenants with different salts never share a name.
    func root(tenant: TenantID) -> PageID
    func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID
}

extension PageNaming {
    /// Names of all full blocks of `tokens`, in order.
    public func names(of tokens: [TokenID], blockTokens: Int, tenant: TenantID) -> [PageID] {
        var parent = root(tenant: tenant)
        var names: [PageID] = []
        names.reserveCapacity(tokens.count / max(blockTokens, 1))
        var start = 0
        while start + blockTokens <= tokens.count {
            parent = child(of: parent, tokens: tokens[start..<start + blockTokens])
            names.append(parent)
            start += blockTokens
        }
        return names
    }
}
