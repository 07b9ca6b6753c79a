import BoundedJSON
import ServingTypes
import Testing

@testable import ModelFiles

@Suite struct SafetensorsHeaderTests {
    static let good = [
        HandTensor(name: "b", shape: [2, 3], begin: 8, end: 32),
        HandTensor(name: "a", type: "BF16", shape: [4], begin: 0, end: 8),
        HandTensor(name: "scalar", type: "F16", shape: [], begin: 32, end: 34),
    ]

    @Test func tensorsAreFoundInTheOrderOfTheirBytes() throws {
        let bytes = safetensors(Self.good, dataBytes: 34)
        let header = try parsedHeader(bytes)
        #expect(header.tensors.map(\.name) == ["a", "b", "scalar"])
        #expect(header.tensors.map(\.shape) == [[4], [2, 3], []])
        #expect(header.tensors[1].range == bytes.count - 26..<bytes.count - 2)
    }

    @Test func metadataOfStringsAndTrailingSpacesAreAllowed() throws {
        let text = #"{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   "#
        #expect(try parsedHeader(safetensors(text, dataBytes: 2)).tensors.count == 1)
        expectFault("__metadata__", "number") {
            _ = try parsedHeader(safetensors(#"{"__metadata__":{"format":1}}"#, dataBytes: 0))
        }
    }

    @Test func emptyTensorsHaveNoBytes() throws {
        let tensors = [
            HandTensor(name: "a", shape: [0, 1 << 60, 1 << 60], begin: 0, end: 0),
            HandTensor(name: "b", shape: [1], begin: 0, end: 4),
        ]
        #expect(try parsedHeader(safetensors(tensors, dataBytes: 4)).tensors.count == 2)
    }

    @Test func aFileCutAtAnyByteIsRefused() {
        let bytes = safetensors(Self.good, dataBytes: 34)
        for length in 0..<bytes.count {
            let message = fault { _ = try parsedHeader(Array(bytes[..<length])) }?.message
            #expect(message?.hasPrefix("w.safetensors: ") == true, "cut at \(length)")
        }
        #expect(throws: ServingError.self) { try parsedHeader(bytes + [0]) }
    }

    @Test func aHeaderLengthBeyondTheCapIsRefusedBeforeItIsRead() {
        var bytes = safetensors(Self.good, dataBytes: 34)
        for length in [UInt64(0), 1, UInt64(ModelFileLimits.headerBytesMax) + 1, 1 << 63, .max] {
            bytes.replaceSubrange(0..<8, with: withUnsafeBytes(of: length.littleEndian) { [UInt8]($0) })
            expectFault("header length is \(length)", "\(ModelFileLimits.headerBytesMax)") {
                _ = try parsedHeader(bytes)
            }
        }
    }

    @Test func sizesThatOverflowAreRefused() {
        for shape in [[1 << 62, 2], [1 << 32, 1 << 32], [Int.max], [Int.max, Int.max]] {
            expectFault("tensor \"a\"", "no whole number of bytes") {
                _ = try parsedHeader(safetensors([HandTensor(name: "a", shape: shape, begin: 0, end: 4)], dataBytes: 4))
            }
        }
        expectFault("beyond any file") {
            let far = [HandTensor(name: "a", type: "U8", shape: [4], begin: Int.max - 4, end: Int.max)]
            _ = try parsedHeader(safetensors(far, dataBytes: 4))
        }
    }

    @Test func offsetsMustFitShapeAndType() {
        expectFault("F32", "[2, 3]", "24 bytes", "23") {
            _ = try parsedHeader(
                safetensors([HandTensor(name: "a", shape: [2, 3], begin: 0, end: 23)], dataBytes: 23))
        }
        expectFault("run backwards") {
            _ = try parsedHeader(safetensors([HandTensor(name: "a", shape: [1], begin: 8, end: 4)], dataBytes: 8))
        }
    }

    @Test func overlapsGapsAndRestsAreRefused() {
        func two(_ begin: Int, dataBytes: Int) throws {
            _ = try parsedHeader(
                safetensors(
                    [
                        HandTensor(name: "a", shape: [2], begin: 0, end: 8),
                        HandTensor(name: "b", shape: [2], begin: begin, end: begin + 8),
                    ], dataBytes: dataBytes))
        }
        expectFault("\"b\"", "begins at byte 4", "overlaps") { try two(4, dataBytes: 12) }
        expectFault("\"b\"", "begins at byte 0", "overlaps") { try two(0, dataBytes: 8) }
        expectFault("\"b\"", "begins at byte 12", "gap") { try two(12, dataBytes: 20) }
        expectFault("the file has") { try two(8, dataBytes: 17) }
        expectFault("the file has") { try two(8, dataBytes: 15) }
    }

    @Test func malformedTensorsAreNamed() {
        let cases = [
            (#"{"a":[]}"#, "an array, not an object"),
            (#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, "has no dtype"),
            (#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, "\"F31\""),
            (#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, "has no shape"),
            (#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "dimension -1"),
            (#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, "dimension 1.5"),
            (#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, "9 dimensions"),
            (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, "data_offsets"),
            (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,"4"]}}"#, "data_offsets"),
            (#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, "no whole number"),
            (#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}"#, "JSON"),
            (#"[]"#, "'{'"),
            (#" {}"#, "'{'"),
            (#"{"a":[[[[[[]]]]]]}"#, "JSON"),
        ]
        for (header, part) in cases {
            expectFault(part) { _ = try parsedHeader(safetensors(header, dataBytes: 4)) }
        }
    }

    @Test func moreTensorsThanTheLimitAreRefused() {
        var header = "{"
        for number in 0...ModelFileLimits.tensorsMax + 1 { header += "\"\(number)\":0," }
        expectFault("65536") { _ = try parsedHeader(safetensors(header.dropLast() + "}", dataBytes: 0)) }
    }

    @Test func everyFlippedBitGivesATensorListThatFitsTheFileOrAFault() {
        let bytes = safetensors(Self.good, dataBytes: 34)
        for place in 0..<bytes.count - 34 {
            for bit in 0..<8 {
                var changed = bytes
                changed[place] ^= 1 << UInt8(bit)
                expectSound(changed, "byte \(place) bit \(bit)")
            }
        }
    }

    @Test func randomMutationsNeverTrap() {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        let pieces = [
            "{", "}", "[", "]", "\"", ":", ",", "-1", "9223372036854775807", "18446744073709551616", "1e300", "0",
            "F64", "BOOL",
        ]
        for round in 0..<1500 {
            var bytes = safetensors(Self.good, dataBytes: 34)
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<4, using: &random) {
                case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.remove(at: place)
                case 2:
                    bytes.insert(contentsOf: pieces[Int.random(in: 0..<pieces.count, using: &random)].utf8, at: place)
                default: bytes.append(contentsOf: bytes[place..<min(bytes.count, place + 16)])
                }
            }
            // Half of the time the length field is put right again.
            if Bool.random(using: &random), bytes.count > 42 {
                let length = UInt64(bytes.count - 42)
                bytes.replaceSubrange(0..<8, with: withUnsafeBytes(of: length.littleEndian) { [UInt8]($0) })
            }
            expectSound(bytes, "seed \(seed) round \(round)")
        }
    }

    private func expectSound(_ bytes: [UInt8], _ comment: String) {
        guard let header = try? parsedHeader(bytes) else { return }
        var end = header.tensors.first?.range.lowerBound ?? bytes.count
        for tensor in header.tensors {
            #expect(tensor.range.lowerBound == end, "\(comment)")
            end = tensor.range.upperBound
        }
        #expect(end == bytes.count, "\(comment)")
    }
}
