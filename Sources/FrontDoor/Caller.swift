import ServingTypes

/// Whose request it is and what they may do.
struct Caller: Hashable {
    var tenant: TenantID
    var scopes: Set<APIKey.Scope>

    /// Jobs of other tenants are invisible to all but administrators.
    func sees(_ tenant: TenantID) -> Bool { tenant == self.tenant || scopes.contains(.admin) }
}

/// Reads keys, or, with no keys configured, believes the tenant header.
struct Doorkeeper {
    let keys: [APIKey]

    static let tenantNameBytesMax = 64

    func caller(_ head: RequestHead) throws(ServingError) -> Caller {
        guard !keys.isEmpty else {
            return Caller(tenant: try openTenant(head), scopes: Set(APIKey.Scope.allCases))
        }
        guard let authorization = head.headers["authorization"] else {
            throw ServingError(
                .unauthorized, "No API key was given; send it as 'Authorization: Bearer KEY'.", field: "authorization")
        }
        let parts = authorization.split(separator: " ", maxSplits: 1)
        let presented = parts.count == 2 && parts[0].lowercased() == "bearer" ? trimmed(parts[1]) : ""
        guard let key = find(presented) else {
            throw ServingError(.unauthorized, "The API key is not known here.", field: "authorization")
        }
        return Caller(tenant: key.tenant, scopes: key.scopes)
    }

    func check(_ caller: Caller, may scope: APIKey.Scope) throws(ServingError) {
        guard caller.scopes.contains(scope) || caller.scopes.contains(.admin) else {
            throw ServingError(.forbidden, "This API key lacks the scope '\(scope.rawValue)'.", field: "authorization")
        }
    }

    /// Looks at every key, so that the time tells nothing about which one is near.
    private func find(_ presented: String) -> APIKey? {
        let digest = Digest.sha256(Array(presented.utf8))
        var found: APIKey?
        for key in keys where Digest.same(key.sha256, digest) { found = key }
        return found
    }

    private func openTenant(_ head: RequestHead) throws(ServingError) -> TenantID {
        guard let name = head.headers["x-tandem-tenant"] else { return .anonymous }
        let lawful = name.utf8.allSatisfy { byte in
            switch byte {
            case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "."): true
            default: false
            }
        }
        guard lawful, (1...Self.tenantNameBytesMax).contains(name.utf8.count) else {
            throw .invalid(
                "x-tandem-tenant",
                "is \(quotedForPeople(name)); it must be 1 to \(Self.tenantNameBytesMax) letters, digits, '.', '_', '-'"
            )
        }
        return TenantID(name)
    }
}
