import BoundedJSON
import Testing

private func failure(_ text: String, limits: JSONLimits = JSONLimits()) -> JSONError? {
    failure(Array(text.utf8), limits: limits)
}

private func failure(_ bytes: [UInt8], limits: JSONLimits = JSONLimits()) -> JSONError? {
    do throws(JSONError) {
        _ = try JSON.parse(bytes, limits: limits)
        return nil
    } catch {
        return error
    }
}

/// A generator with a seed that a failure message can name.
private struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

private func randomValue(depth: Int, using random: inout SplitMix) -> JSONValue {
    switch UInt8.random(in: 0..<(depth > 0 ? 8 : 6), using: &random) {
    case 0: return .null
    case 1: return .bool(Bool.random(using: &random))
    case 2: return .integer(Int64(bitPattern: random.next() >> UInt64.random(in: 0..<64, using: &random)))
    case 3:
        let value = Double(bitPattern: random.next())
        return .number(value.isFinite ? value : 0.5)
    case 4, 5: return .string(randomString(using: &random))
    case 6:
        return .array(
            (0..<Int.random(in: 0..<5, using: &random)).map { _ in randomValue(depth: depth - 1, using: &random) })
    default:
        var object = JSONObject()
        for _ in 0..<Int.random(in: 0..<20, using: &random) {
            object[randomString(using: &random)] = randomValue(depth: depth - 1, using: &random)
        }
        return .object(object)
    }
}

private func randomString(using random: inout SplitMix) -> String {
    var text = String.UnicodeScalarView()
    for _ in 0..<Int.random(in: 0..<12, using: &random) {
        let ranges: [ClosedRange<UInt32>] = [
            0...0x7F, 0x80...0x7FF, 0x800...0xD7FF, 0xE000...0xFFFF, 0x10000...0x10FFFF,
        ]
        let range = ranges[Int.random(in: 0..<ranges.count, using: &random)]
        if let scalar = Unicode.Scalar(UInt32.random(in: range, using: &random)) { text.append(scalar) }
    }
    return String(text)
}

@Suite struct ParsingTests {
    @Test func everyKindOfValueIsRead() throws {
        let value = try JSON.parse(
            #" {"a": [1, -2, 0.5, 1e3, -0, true, false, null, "x"], "b": {}, "c": [] , "d":""} "#)
        #expect(
            value == [
                "a": [1, -2, 0.5, 1000.0, 0, true, false, nil, "x"], "b": [:], "c": [], "d": "",
            ])
        #expect(value["a"]?.arrayValue?[0].intValue == 1)
        #expect(value["a"]?.arrayValue?[3].intValue == 1000)
        #expect(value["a"]?.arrayValue?[1].doubleValue == -2)
        #expect(value["nothing"] == nil)
    }

    @Test func integersKeepSixtyFourBitsAndLargerOnesBecomeDoubles() throws {
        #expect(try JSON.parse("9223372036854775807") == .integer(.max))
        #expect(try JSON.parse("-9223372036854775808") == .integer(.min))
        #expect(try JSON.parse("9223372036854775808") == .number(9223372036854775808))
        #expect(try JSON.parse("-9223372036854775809") == .number(-9223372036854775808))
        #expect(try JSON.parse("100000000000000000000") == .number(1e20))
    }

    @Test func escapesAreDecodedAndLoneSurrogatesReplaced() throws {
        #expect(try JSON.parse(#""\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC\ud83d\ude00""#) == "\"\\/\u{8}\u{c}\n\r\tAé€😀")
        #expect(try JSON.parse(#""\ud83dx""#) == "\u{FFFD}x")
        #expect(try JSON.parse(#""\ude00""#) == "\u{FFFD}")
        #expect(try JSON.parse(#""\ud83d\u0041""#) == "\u{FFFD}A")
        #expect(try JSON.parse(#""\ud83d\ud83d\ude00""#) == "\u{FFFD}😀")
        #expect(try JSON.parse(#""\u0000""#) == "\0")
    }

    @Test(arguments: [
        "", " ", "{", "[", "[1", "[1,", "[1,]", "[,1]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{1:1}", "01",
        "-", "+1", "1.", ".5", "1e", "1e+", "--1", "0x1", "1 2", "tru", "nul", "True", "NaN", "Infinity", "'a'", "\"a",
        "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\", "\"a\nb\"", "[1}", "{\"a\":1]", "//x\n1", "1e999", "-1e999",
        "\u{FEFF}1", "nulll", "\"\\u", "{\"a\":1 \"b\":2}", "]", "\0",
    ])
    func malformedTextIsRefused(_ text: String) {
        #expect(failure(text) != nil)
    }

    @Test func invalidUTF8IsRefusedWithAndWithoutEscapes() {
        #expect(failure([0x22, 0xFF, 0x22]) != nil)
        #expect(failure([0x22, 0xC3, 0x22]) != nil)
        #expect(failure([0x22, 0xED, 0xA0, 0x80, 0x22]) != nil)
        #expect(failure([0x22, 0xC3, 0x5C, 0x6E, 0xA9, 0x22]) != nil)
        #expect(failure([0x22, 0xF4, 0x90, 0x80, 0x80, 0x22]) != nil)
        #expect(failure([0x22, 0xC3, 0xA9, 0x5C, 0x6E, 0x22]) == nil)
    }

    @Test func aDuplicateNameIsRefusedInSmallAndLargeObjects() {
        #expect(failure(#"{"a":1,"a":2}"#)?.message == #"the member "a" is there twice"#)
        let many = (0..<50).map { "\"k\($0)\":\($0)" }.joined(separator: ",")
        #expect(failure("{\(many)}") == nil)
        #expect(failure("{\(many),\"k7\":1}")?.message == #"the member "k7" is there twice"#)
        #expect(failure(#"{"\u0061":1,"a":2}"#) != nil)
    }

    @Test func canonicallyEqualNamesAreDifferentNames() throws {
        let value = try JSON.parse("{\"\u{E9}\":1,\"e\u{301}\":2}")
        #expect(value["\u{E9}"] == 1)
        #expect(value["e\u{301}"] == 2)
        #expect(JSONValue.string("\u{E9}") != JSONValue.string("e\u{301}"))
        #expect(Set([JSONValue.string("\u{E9}"), JSONValue.string("e\u{301}")]).count == 2)
    }

    @Test func aFaultIsLocatedByLineAndColumn() {
        let error = failure("{\n  \"a\": 1,\n  \"b\": x\n}")
        #expect(error?.line == 3)
        #expect(error?.column == 8)
        #expect(error?.byteOffset == 19)
        #expect(error?.description == "unexpected 'x' where a value should be at line 3, column 8 (byte 19)")
    }

    @Test func limitsHoldAtTheirExactValue() {
        var limits = JSONLimits()
        limits.depthMax = 3
        #expect(failure("[[[1]]]", limits: limits) == nil)
        #expect(failure("[[[[]]]]", limits: limits) != nil)
        #expect(failure("{\"a\":[{}]}", limits: limits) == nil)
        limits.membersMax = 3
        #expect(failure("[1,2]", limits: limits) == nil)
        #expect(failure("[1,2,3]", limits: limits) != nil)
        limits.bytesMax = 5
        #expect(failure("[1,2]", limits: limits) == nil)
        #expect(failure("[1, 2]", limits: limits) != nil)
    }

    @Test func hostileNestingEndsInAnErrorNotInTheStack() {
        #expect(failure(String(repeating: "[", count: 1_000_000)) != nil)
        #expect(failure(String(repeating: "{\"a\":", count: 100_000)) != nil)
    }

    @Test func everyTruncationAndEveryFlippedByteIsSurvived() {
        let text = Array(#"{"a":[1,-2.5e3,"x\u00e9\n",true,null],"é":{"b":false}}"#.utf8)
        for length in 0..<text.count { #expect(failure(Array(text[..<length])) != nil) }
        var random = SplitMix(state: 7)
        for _ in 0..<2000 {
            var broken = text
            broken[Int.random(in: 0..<broken.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            if let value = try? JSON.parse(broken) { #expect((try? JSON.parse(JSON.text(value))) == value) }
        }
    }
}

@Suite struct WritingTests {
    @Test func compactAndPrettyTextsAreStable() {
        let value: JSONValue = ["b": [1, 2.5, nil], "a": ["x": [], "y": [:]]]
        #expect(JSON.text(value) == #"{"b":[1,2.5,null],"a":{"x":[],"y":{}}}"#)
        #expect(JSON.text(value, sortedKeys: true) == #"{"a":{"x":[],"y":{}},"b":[1,2.5,null]}"#)
        #expect(
            JSON.text(value, pretty: true)
                == "{\n  \"b\": [\n    1,\n    2.5,\n    null\n  ],\n  \"a\": {\n    \"x\": [],\n    \"y\": {}\n  }\n}")
    }

    @Test func whatJSONCannotSayIsEscapedOrNull() {
        #expect(JSON.quoted("a\"\\\n\r\t\u{8}\u{c}\u{1}\u{1f}é/") == #""a\"\\\n\r\t\b\f\u0001\u001fé/""#)
        #expect(JSON.text(.number(.nan)) == "null")
        #expect(JSON.text(.array([.number(.infinity), .number(-.infinity)])) == "[null,null]")
    }

    @Test func randomDocumentsSurviveARoundTrip() throws {
        for seed in UInt64(0)..<200 {
            var random = SplitMix(state: seed)
            let value = randomValue(depth: 4, using: &random)
            for pretty in [false, true] {
                let text = JSON.text(value, pretty: pretty)
                #expect(try JSON.parse(text) == value, "seed \(seed)")
            }
        }
    }
}

@Suite struct ObjectTests {
    @Test func membersKeepTheirOrderThroughChanges() {
        var object = JSONObject()
        for number in 0..<30 { object["k\(number)"] = .integer(Int64(number)) }
        object["k3"] = "three"
        object["k5"] = nil
        object["k5"] = "back"
        object["never"] = nil
        #expect(object.count == 30)
        #expect(object["k3"] == "three")
        #expect(object.members.map(\.key).last == "k5")
        #expect(object.members[3].key == "k3")
        #expect(object["k29"] == 29)
        object["k0"] = nil
        #expect(object["k29"] == 29)
        #expect(object["k0"] == nil)
        #expect(object.count == 29)
    }

    @Test func equalityCountsTheOrderOfMembers() {
        #expect(JSONValue(dictionaryLiteral: ("a", 1), ("b", 2)) != ["b": 2, "a": 1])
        #expect(JSONValue(dictionaryLiteral: ("a", 1), ("b", 2)) == ["a": 1, "b": 2])
    }

    @Test func valuesOfTheWrongKindReadAsNil() {
        let value: JSONValue = "text"
        #expect(value.intValue == nil && value.doubleValue == nil && value.boolValue == nil)
        #expect(value.arrayValue == nil && value.objectValue == nil && value["x"] == nil && !value.isNull)
        #expect(JSONValue.number(2.5).intValue == nil)
        #expect(JSONValue.number(1e300).intValue == nil)
    }
}
