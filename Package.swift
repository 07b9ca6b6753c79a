// swift-tools-version: 6.2
import PackageDescription

// Targets by layer (ARCHITECTURE.md): imports point downward only, and TidyTests holds them to it.

let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"),
]

let vocabulary: [Target] = [
    .target(name: "ServingTypes"),
    .target(name: "CKernels", cSettings: [.unsafeFlags(["-O3"])]),
    .target(name: "CWire", dependencies: ["CProtobufC"]),
    .systemLibrary(name: "CProtobufC", pkgConfig: "libprotobuf-c", providers: [.apt(["libprotobuf-c-dev"])]),
    .systemLibrary(name: "CNGHTTP2", pkgConfig: "libnghttp2", providers: [.apt(["libnghttp2-dev"])]),
]

let pureParts: [Target] = [
    .target(name: "BoundedJSON", dependencies: ["ServingTypes"]),
    .target(name: "Messages", dependencies: ["ServingTypes"]),
    .target(name: "KVPaging", dependencies: ["ServingTypes", "Messages"]),
    .target(name: "Scheduling", dependencies: ["ServingTypes"]),
    .target(name: "ServingMetrics", dependencies: ["ServingTypes"]),
    .target(name: "Tokenization", dependencies: ["ServingTypes", "BoundedJSON"]),
    .target(name: "ChatTemplate", dependencies: ["ServingTypes", "BoundedJSON"]),
    .target(
        name: "LoadBench",
        dependencies: ["ServingTypes", "BoundedJSON", .product(name: "Histogram", package: "hdrhistogram-swift")]),
]

let roleCores: [Target] = [
    .target(
        name: "CoordinatorCore", dependencies: ["ServingTypes", "Messages", "Scheduling", "ServingMetrics", "KVPaging"]),
    .target(name: "PrefillCore", dependencies: ["ServingTypes", "Messages", "Scheduling", "KVPaging"]),
    .target(name: "DecodeCore", dependencies: ["ServingTypes", "Messages", "Scheduling", "KVPaging"]),
]

let mechanisms: [Target] = [
    .target(name: "WireCodec", dependencies: ["ServingTypes", "Messages", "CWire"]),
    .target(name: "HTTPSession", dependencies: ["ServingTypes", "CNGHTTP2"]),
    .target(name: "ModelRuntime", dependencies: ["ServingTypes", "CKernels"]),
    .target(
        name: "ModelFiles",
        dependencies: ["ServingTypes", "BoundedJSON", "Tokenization", "ChatTemplate", "ModelRuntime", "CKernels"]),
]

let drivers: [Target] = [
    .target(name: "ClusterTransport", dependencies: ["ServingTypes", "Messages", "WireCodec", "CWire"] + nio),
    .target(
        name: "FrontDoor",
        dependencies: [
            "ServingTypes", "BoundedJSON", "Messages", "CoordinatorCore", "ServingMetrics", "Tokenization",
            "ChatTemplate",
            "HTTPSession", .product(name: "Crypto", package: "swift-crypto"),
            .product(name: "NIOHTTP1", package: "swift-nio"), .product(name: "NIOSSL", package: "swift-nio-ssl"),
        ] + nio),
    .target(name: "Ledger", dependencies: ["ServingTypes", .product(name: "GRDB", package: "GRDB.swift")]),
    .target(
        name: "Hosting",
        dependencies: [
            "ServingTypes", "BoundedJSON", "Messages", "KVPaging", "Scheduling", "ServingMetrics", "CoordinatorCore",
            "PrefillCore", "DecodeCore", "WireCodec", "ModelRuntime", "ModelFiles", "ClusterTransport", "FrontDoor",
            "Ledger", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            .product(name: "Crypto", package: "swift-crypto"), .product(name: "Logging", package: "swift-log"),
        ] + nio),
    .target(
        name: "Simulation",
        dependencies: [
            "ServingTypes", "Messages", "KVPaging", "Scheduling", "ServingMetrics", "CoordinatorCore", "PrefillCore",
            "DecodeCore",
        ]),
    .target(
        name: "LocalSupervisor",
        dependencies: [
            "ServingTypes", "BoundedJSON", .product(name: "Logging", package: "swift-log"),
            .product(name: "Subprocess", package: "swift-subprocess"),
        ] + nio),
]

let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

let programs: [Target] = [
    .executableTarget(
        name: "tandem",
        dependencies: [
            "ServingTypes", "BoundedJSON", "LoadBench", "LocalSupervisor", "ModelFiles", "ModelRuntime", "Scheduling",
            "Simulation",
            argumentParser,
            .product(name: "AsyncHTTPClient", package: "async-http-client"), .product(name: "Yams", package: "Yams"),
            .product(name: "NIOFoundationCompat", package: "swift-nio"),
        ] + nio),
    .executableTarget(
        name: "tandem-measure",
        dependencies: [
            "ServingTypes", "Messages", "Scheduling", "ClusterTransport", "CKernels", "ModelFiles", "ModelRuntime",
            "Tokenization",
            argumentParser,
        ]),
    .executableTarget(name: "tandem-safety", dependencies: ["Simulation"]),
    .executableTarget(name: "tandem-coordinator", dependencies: ["Hosting", argumentParser]),
    .executableTarget(name: "tandem-prefill", dependencies: ["Hosting", "ServingTypes", argumentParser]),
    .executableTarget(name: "tandem-decode", dependencies: ["Hosting", "ServingTypes", argumentParser]),
]

let tests: [Target] = [
    .testTarget(name: "BoundedJSONTests", dependencies: ["BoundedJSON"]),
    .testTarget(
        name: "TokenizationTests", dependencies: ["Tokenization", "BoundedJSON", "ServingTypes"], exclude: ["Fixtures"]),
    .testTarget(
        name: "ChatTemplateTests", dependencies: ["ChatTemplate", "BoundedJSON", "ServingTypes"], exclude: ["Fixtures"]),
    .testTarget(name: "KVPagingTests", dependencies: ["KVPaging", "Messages", "ServingTypes"]),
    .testTarget(name: "PrefillCoreTests", dependencies: ["PrefillCore", "KVPaging", "Messages", "ServingTypes"]),
    .testTarget(name: "SchedulingTests", dependencies: ["Scheduling", "ServingTypes"]),
    .testTarget(name: "ServingMetricsTests", dependencies: ["ServingMetrics", "ServingTypes"]),
    .testTarget(
        name: "CoordinatorCoreTests",
        dependencies: ["CoordinatorCore", "Messages", "Scheduling", "KVPaging", "ServingTypes"]),
    .testTarget(
        name: "DecodeCoreTests", dependencies: ["DecodeCore", "PrefillCore", "KVPaging", "Messages", "ServingTypes"]),
    .testTarget(name: "WireCodecTests", dependencies: ["WireCodec", "CWire", "Messages", "ServingTypes"]),
    .testTarget(name: "HTTPSessionTests", dependencies: ["HTTPSession", "CNGHTTP2", "ServingTypes"]),
    .testTarget(name: "CKernelsTests", dependencies: ["CKernels"]),
    .testTarget(
        name: "ModelRuntimeTests", dependencies: ["AllocationCounter", "ModelRuntime", "CKernels", "ServingTypes"],
        exclude: ["Fixtures"]),
    .target(name: "AllocationCounter", path: "Tests/AllocationCounter"),
    .testTarget(
        name: "ModelFilesTests",
        dependencies: ["ModelFiles", "ModelRuntime", "Tokenization", "BoundedJSON", "ServingTypes"],
        exclude: ["Fixtures"]),
    .testTarget(
        name: "ClusterTransportTests",
        dependencies: ["ClusterTransport", "WireCodec", "CWire", "Messages", "ServingTypes"] + nio),
    .testTarget(
        name: "FrontDoorTests",
        dependencies: [
            "FrontDoor", "CoordinatorCore", "Messages", "BoundedJSON", "Tokenization", "ChatTemplate", "ServingTypes",
            "HTTPSession", .product(name: "NIOHTTP1", package: "swift-nio"),
            .product(name: "NIOEmbedded", package: "swift-nio"), .product(name: "NIOSSL", package: "swift-nio-ssl"),
        ] + nio),
    .testTarget(name: "LoadBenchTests", dependencies: ["LoadBench", "BoundedJSON"]),
    .testTarget(name: "LedgerTests", dependencies: ["Ledger", "ServingTypes"]),
    .testTarget(name: "LocalSupervisorTests", dependencies: ["LocalSupervisor", "ServingTypes"]),
    .testTarget(
        name: "HostingTests",
        dependencies: [
            "Hosting", "CoordinatorCore", "DecodeCore", "ClusterTransport", "FrontDoor", "Ledger", "KVPaging",
            "Messages",
            "Scheduling", "BoundedJSON", "ServingTypes", .product(name: "Logging", package: "swift-log"),
            .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOEmbedded", package: "swift-nio"),
            .product(name: "NIOPosix", package: "swift-nio"),
        ]),
    .testTarget(
        name: "SimulationTests",
        dependencies: [
            "Simulation", "CoordinatorCore", "PrefillCore", "DecodeCore", "Scheduling", "KVPaging", "Messages",
            "ServingMetrics", "ServingTypes",
        ]),
    .testTarget(name: "TidyTests"),
    .testTarget(
        name: "ClusterTests",
        dependencies: [
            "FaultProxy", "BoundedJSON", "tandem", "tandem-coordinator", "tandem-prefill", "tandem-decode",
            .product(name: "AsyncHTTPClient", package: "async-http-client"),
        ] + nio),
    .target(name: "FaultProxy", path: "Tests/FaultProxy"),
]

let package = Package(
    name: "tandem",
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.0"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.0"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
    ],
    targets: vocabulary + pureParts + roleCores + mechanisms + drivers + programs + tests,
    swiftLanguageModes: [.v6],
    cLanguageStandard: .gnu17
)
