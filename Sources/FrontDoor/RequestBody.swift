import BoundedJSON
import ServingTypes

/// A request's JSON body: a value, so that a long one can be parsed on any thread.
struct RequestBody: Sendable {
    /// As they came: what tells a repeated request from another one.
    var bytes: [UInt8] = []
    var object = JSONObject()

    func parsed(_ limits: FrontDoorLimits) throws(ServingError) -> RequestBody {
        var bounds = JSONLimits()
        bounds.depthMax = limits.jsonDepthMax
        bounds.bytesMax = limits.bodyBytesMax
        bounds.membersMax = limits.jsonMembersMax
        let value: JSONValue
        do throws(JSONError) {
            value = try JSON.parse(bytes, limits: bounds)
        } catch {
            throw ServingError(.malformed, "The body is not valid JSON: \(error).", field: "body")
        }
        guard let object = value.objectValue else {
            throw ServingError(.malformed, "The body is \(value.kindName); it must be an object.", field: "body")
        }
        return RequestBody(bytes: bytes, object: object)
    }
}
