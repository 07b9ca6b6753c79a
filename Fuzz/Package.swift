// swift-tools-version: 6.2
import PackageDescription

// Fuzzers of what reads bytes from outside. A package of its own, because the code under test is
// compiled with other flags; the sources are links to those of the main package.
let swiftFlags: [SwiftSetting] = [.unsafeFlags(["-parse-as-library", "-sanitize=fuzzer,address"])]
let cFlags: [CSetting] = [.unsafeFlags(["-O1", "-fsanitize=fuzzer-no-link,address"])]

let package = Package(
    name: "fuzz",
    targets: [
        .target(name: "ServingTypes", swiftSettings: swiftFlags),
        .target(name: "Messages", dependencies: ["ServingTypes"], swiftSettings: swiftFlags),
        .systemLibrary(name: "CProtobufC", pkgConfig: "libprotobuf-c", providers: [.apt(["libprotobuf-c-dev"])]),
        .target(name: "CWire", dependencies: ["CProtobufC"], cSettings: cFlags),
        .target(name: "WireCodec", dependencies: ["ServingTypes", "Messages", "CWire"], swiftSettings: swiftFlags),
        .target(name: "CKernels", cSettings: cFlags),
        .target(name: "BoundedJSON", dependencies: ["ServingTypes"], swiftSettings: swiftFlags),
        .target(name: "Tokenization", dependencies: ["ServingTypes", "BoundedJSON"], swiftSettings: swiftFlags),
        .target(name: "ChatTemplate", dependencies: ["ServingTypes", "BoundedJSON"], swiftSettings: swiftFlags),
        .target(name: "ModelRuntime", dependencies: ["ServingTypes", "CKernels"], swiftSettings: swiftFlags),
        .target(
            name: "ModelFiles",
            dependencies: ["ServingTypes", "BoundedJSON", "Tokenization", "ChatTemplate", "ModelRuntime", "CKernels"],
            swiftSettings: swiftFlags + [.unsafeFlags(["-enable-testing"])]),
        .executableTarget(
            name: "GGUFFuzzer", dependencies: ["ModelFiles", "Tokenization", "ServingTypes"], swiftSettings: swiftFlags,
            linkerSettings: [.unsafeFlags(["-sanitize=fuzzer,address", "-use-ld=lld"])]),
        .executableTarget(
            name: "FrameFuzzer", dependencies: ["WireCodec", "Messages", "ServingTypes"], swiftSettings: swiftFlags,
            linkerSettings: [.unsafeFlags(["-sanitize=fuzzer,address", "-use-ld=lld"])]),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .gnu17
)
