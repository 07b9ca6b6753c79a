import ServingTypes
import Testing

@testable import ModelFiles

@Suite struct GGUFHeaderTests {
    private func refuse(
        _ parts: String..., sourceLocation: SourceLocation = #_sourceLocation, _ change: (inout GGUFTestFile) -> Void
    ) {
        var file = GGUFTestFile.small
        change(&file)
        let bytes = file.bytes()
        do {
            _ = try parsedGGUF(bytes)
            Issue.record("nothing was thrown", sourceLocation: sourceLocation)
        } catch {
            #expect(error.message.hasPrefix("m.gguf: "), sourceLocation: sourceLocation)
            for part in parts {
                #expect(error.message.contains(part), "\(error.message)", sourceLocation: sourceLocation)
            }
        }
    }

    @Test func aSmallFileIsUnderstood() throws {
        let header = try parsedGGUF(GGUFTestFile.small.bytes())
        #expect(header.metadata["general.architecture"] == .string("llama"))
        #expect(header.metadata["a.texts"] == .strings(["one", "", "drei"]))
        #expect(header.metadata["a.integers"] == .integers([1, -2]))
        #expect(header.metadata["a.number"] == .number(0.5) && header.metadata["a.flag"] == .bool(true))
        #expect(header.tensors.map(\.shape) == [[2, 3], [32]])
        #expect(header.tensors.map(\.type) == [.f32, .q8_0])
        #expect(header.dataStart % 32 == 0 && header.tensors[1].range.count == 34)
    }

    @Test func everyKindOfValueThatTheReferenceWritesIsRead() throws {
        let header = try parsedGGUF(try Repository.fixture("tiny-llama.gguf"))
        let expected: [(String, GGUFValue)] = [
            ("uint8", .integer(200)), ("int8", .integer(-100)), ("uint16", .integer(60000)),
            ("int16", .integer(-30000)), ("uint32", .integer(4_000_000_000)), ("int32", .integer(-2_000_000_000)),
            ("uint64", .large(1 << 63 + 5)), ("int64", .integer(-(1 << 62))), ("float32", .number(Double(Float(0.1)))),
            ("float64", .number(0.1)), ("bool", .bool(true)), ("string", .string("zw\u{F6}lf \u{2581}")),
            ("integers", .integers([1, -2, 3])), ("numbers", .numbers([0.5, -0.25])), ("bools", .bools([true, false])),
            ("strings", .strings(["", "a", "\u{FC}"])),
        ]
        for (name, value) in expected { #expect(header.metadata["test.\(name)"] == value, "\(name)") }
    }

    @Test func everyTruncationIsRefused() throws {
        let whole = GGUFTestFile.small.bytes()
        for count in 0..<whole.count {
            #expect(throws: ServingError.self, "\(count) of \(whole.count) bytes") {
                _ = try parsedGGUF(Array(whole.prefix(count)))
            }
        }
    }

    @Test func noFlippedBitTraps() throws {
        let whole = GGUFTestFile.small.bytes()
        for place in whole.indices {
            for bit in 0..<8 {
                var bytes = whole
                bytes[place] ^= 1 << bit
                guard let header = try? parsedGGUF(bytes) else { continue }
                for tensor in header.tensors {
                    #expect(tensor.range.lowerBound >= header.dataStart && tensor.range.upperBound <= bytes.count)
                }
            }
        }
    }

    @Test func randomMutationsNeverTrap() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        let whole = GGUFTestFile.small.bytes()
        let extremes: [UInt64] = [0, 1, .max, 1 << 63, 1 << 62, 1 << 32, 0xFFFF_FFFF, 1 << 56]
        for round in 0..<3000 {
            var bytes = whole
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<4, using: &random) {
                case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.removeSubrange(place..<min(bytes.count, place + 5))
                case 2: bytes.insert(contentsOf: [0xFF, 0xFF, 0xFF], at: place)
                default:
                    let value = GGUFTestFile.little(extremes[Int.random(in: 0..<extremes.count, using: &random)])
                    for (index, byte) in value.enumerated() where place + index < bytes.count {
                        bytes[place + index] = byte
                    }
                }
            }
            guard let header = try? parsedGGUF(bytes) else { continue }
            for tensor in header.tensors {
                #expect(tensor.range.upperBound <= bytes.count, "seed \(seed) round \(round)")
            }
        }
    }

    @Test func countsBeyondTheRestOfTheFileAreRefusedUnread() {
        for count in [UInt64(1) << 20, 1 << 40, 1 << 63, .max] {
            for bytes in [
                GGUFTestFile.small.bytes(tensorCount: count), GGUFTestFile.small.bytes(keyCount: count),
            ] {
                expectFault("m.gguf: ", "\(count) entries") { _ = try parsedGGUF(bytes) }
            }
            refuse("\(count) entries") {
                $0.add("many", type: 9, GGUFTestFile.little(UInt32(8)) + GGUFTestFile.little(count))
            }
            refuse("string of \(count) bytes") { $0.add("long", type: 8, GGUFTestFile.little(count)) }
        }
    }

    @Test func valuesOfUnknownOrNestedTypesAreRefused() {
        refuse("odd", "value type 13") { $0.add("odd", type: 13, []) }
        refuse("nested", "array") {
            $0.add("nested", type: 9, GGUFTestFile.little(UInt32(9)) + GGUFTestFile.little(UInt64(0)))
        }
        refuse("boolean 2") { $0.add("b", type: 7, [2]) }
        refuse("not valid UTF-8") { $0.add("s", type: 8, GGUFTestFile.little(UInt64(1)) + [0xFF]) }
        refuse("above 2^63") {
            let element = GGUFTestFile.little(UInt64.max)
            $0.add("u", type: 9, GGUFTestFile.little(UInt32(10)) + GGUFTestFile.little(UInt64(1)) + element)
        }
    }

    @Test func namesAreAsciiAndAppearOnce() {
        refuse("\"a.flag\" twice") { $0.add("a.flag", false) }
        refuse("\"x\" twice") { $0.tensors[1].name = "x" }
        refuse("printable ASCII") { $0.add("k\u{E9}y", true) }
        refuse("printable ASCII") { $0.tensors[0].name = "" }
        refuse("printable ASCII") { $0.tensors[0].name = String(repeating: "n", count: 200) }
    }

    @Test func alignmentIsAPowerOfTwo() throws {
        for value in [UInt32(0), 3, 48, 1 << 21, .max] {
            refuse("general.alignment") { $0.add("general.alignment", value) }
        }
        var file = GGUFTestFile.small
        file.alignment = 128
        file.add("general.alignment", UInt32(128))
        let header = try parsedGGUF(file.bytes())
        #expect(header.alignment == 128 && header.tensors.allSatisfy { $0.range.lowerBound % 128 == 0 })
    }

    @Test func tensorsStayInTheFileAlignedAndApart() {
        refuse("beyond the end") { $0.tensors[1].offset = 1 << 20 }
        refuse("no multiple of the alignment") { $0.tensors[1].offset = 33 }
        refuse("no multiple of the alignment") { $0.tensors[1].offset = .max }
        refuse("beyond the end") { $0.tensors[1].offset = UInt64(Int.max) & ~31 }
        refuse("overlapping") { $0.tensors[1].offset = 0 }
        refuse("unknown type 4") { $0.tensors[0].type = 4 }
        refuse("unknown type 999") { $0.tensors[0].type = 999 }
        refuse("5 dimensions") { $0.tensors[0].dimensions = [1, 1, 1, 1, 1] }
        refuse("0 dimensions") { $0.tensors[0].dimensions = [] }
        refuse("dimension 0") { $0.tensors[0].dimensions = [3, 0] }
        refuse("dimension 9223372036854775808") { $0.tensors[0].dimensions = [3, 1 << 63] }
        refuse("no whole blocks") { $0.tensors[1].dimensions = [33] }
        // CVE-2026-33298: sizes whose product overflows.
        refuse("2^63 bytes") { $0.tensors[0].dimensions = [1 << 62, 4] }
        refuse("2^63 bytes") { $0.tensors[0].dimensions = [1 << 33, 1 << 33] }
        refuse("beyond the end") { $0.tensors[0].dimensions = [1 << 30, 1 << 30] }
    }

    @Test func otherVersionsAndByteOrdersAreNamed() {
        refuse("version 1") { $0.version = 1 }
        refuse("version 4") { $0.version = 4 }
        refuse("big-endian") { $0.version = 3 << 24 }
        expectFault("does not begin with GGUF") { _ = try parsedGGUF(Array("GGML".utf8) + [3, 0, 0, 0]) }
    }
}
