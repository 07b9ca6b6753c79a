import DecodeCore
import Foundation
import PrefillCore
import ServingTypes

extension DecodeConfiguration {
    /// From a worker's flags and its loaded model.
    static func live(
        _ flags: WorkerFlags, own: WorkerRef, role: WorkerRole, model: WorkerModel, dataEndpoint: HostPort
    ) -> DecodeConfiguration {
        var configuration = DecodeConfiguration(
            own: own, role: role, blockTokens: flags.blockTokens, blockCount: model.store.slotCount,
            pageBytes: model.store.layout.pageBytes)
        configuration.dataHost = dataEndpoint.host
        configuration.dataPort = dataEndpoint.port
        configuration.processID = ProcessInfo.processInfo.processIdentifier
        configuration.batchJobsMax = flags.batchJobs
        configuration.stepTokensMax = flags.stepTokens
        configuration.prefillChunkTokens = flags.chunkTokens
        configuration.stepStretch = flags.stepStretch > 0 ? flags.stepStretch : nil
        configuration.stepLimit = flags.stepLimitMs > 0 ? .milliseconds(flags.stepLimitMs) : nil
        configuration.contextTokensMax = model.contextTokensMax
        configuration.swapPages = min(flags.swapBytes / max(model.store.layout.pageBytes, 1), Int(UInt32.max) - 1)
        configuration.reservesWholeJobs = flags.reserveWholeJobs
        return configuration
    }
}

extension PrefillConfiguration {
    static func live(_ flags: WorkerFlags, own: WorkerRef, model: WorkerModel) -> PrefillConfiguration {
        var configuration = PrefillConfiguration(
            own: own, blockTokens: flags.blockTokens, blockCount: model.store.slotCount,
            pageBytes: model.store.layout.pageBytes)
        configuration.processID = ProcessInfo.processInfo.processIdentifier
        configuration.stepTokensMax = flags.stepTokens
        configuration.prefillChunkTokens = flags.chunkTokens
        configuration.contextTokensMax = model.contextTokensMax
        return configuration
    }
}
