import BoundedJSON
import Foundation
import ServingTypes
import Simulation

/// What `tandem profile` measured, as a file, so that a fit can be repeated without the cluster.
/// A job is an array, times in milliseconds, in the order of `fields`; -1 stands for none.
enum SamplesFile {
    static let bytesMax = 256 << 20

    static func json(_ session: LiveSession) -> JSONValue {
        let cluster = session.cluster
        let numbers = [
            ("prefill", cluster.prefill), ("decode", cluster.decode), ("mixed", cluster.mixed),
            ("block_tokens", cluster.blockTokens), ("page_bytes", cluster.pageBytes), ("blocks", cluster.blocks),
            ("batch_jobs", cluster.batchJobs), ("step_tokens", cluster.stepTokens),
            ("chunk_tokens", cluster.chunkTokens), ("threads", cluster.threads),
            ("local_prefill_tokens", cluster.localPrefill), ("relief_wait_ms", cluster.reliefWait),
            ("step_stretch_percent", cluster.stepStretch), ("prefill_window", cluster.prefillWindow),
        ].map { ($0.0, JSONValue.integer(Int64($0.1))) }
        return .object(
            JSONObject([
                ("cluster", .object(JSONObject(numbers + [("policy", .string(cluster.policy))]))),
                (
                    "experiments",
                    .array(
                        session.experiments.map { experiment in
                            .object(
                                JSONObject([
                                    ("kind", .string(experiment.kind.rawValue)), ("load", .string(experiment.load)),
                                    ("seed", .integer(Int64(clamping: experiment.seed))),
                                    ("turn", .integer(Int64(experiment.turn))),
                                    ("jobs", .array(experiment.jobs.map(json))),
                                ]))
                        })
                ),
            ]))
    }

    private static func json(_ job: LiveJob) -> JSONValue {
        let values: [Double] = [
            job.sent, Double(job.inputTokens), Double(job.outputTokens), job.prefilling ?? -1, job.firstToken,
            job.transferring ?? -1, job.decoding ?? -1, job.secondToken ?? -1, job.finished, Double(job.kvBytes),
            job.clientFirstToken, job.clientCompletion, job.placed ?? -1, job.reserved ?? -1,
        ]
        return .array((values + job.clientTokens).map { .number(($0 * 1000).rounded() / 1000) })
    }

    static func read(_ path: String) throws -> LiveSession {
        guard let data = FileManager.default.contents(atPath: path), data.count <= bytesMax,
            let json = try? JSON.parse(Array(data)), let session = session(json)
        else {
            throw ServingError(.malformed, "samples: \(path) holds no session of `tandem profile`", field: "samples")
        }
        return session
    }

    private static func session(_ json: JSONValue) -> LiveSession? {
        guard let shape = json["cluster"] else { return nil }
        func number(_ key: String) -> Int { max(shape[key]?.intValue ?? 0, 0) }
        var cluster = LiveCluster()
        (cluster.prefill, cluster.decode, cluster.mixed) = (number("prefill"), number("decode"), number("mixed"))
        (cluster.blockTokens, cluster.pageBytes) = (max(number("block_tokens"), 1), number("page_bytes"))
        (cluster.blocks, cluster.batchJobs) = (number("blocks"), max(number("batch_jobs"), 1))
        (cluster.stepTokens, cluster.chunkTokens) = (max(number("step_tokens"), 1), max(number("chunk_tokens"), 1))
        cluster.policy = shape["policy"]?.stringValue ?? "fair"
        (cluster.threads, cluster.prefillWindow) = (max(number("threads"), 1), max(number("prefill_window"), 1))
        (cluster.localPrefill, cluster.reliefWait) = (number("local_prefill_tokens"), number("relief_wait_ms"))
        cluster.stepStretch = number("step_stretch_percent")
        var session = LiveSession(cluster: cluster)
        for experiment in json["experiments"]?.arrayValue ?? [] {
            guard let kind = experiment["kind"]?.stringValue.flatMap(LiveExperiment.Kind.init),
                let jobs = experiment["jobs"]?.arrayValue
            else { return nil }
            var result = LiveExperiment(kind: kind, jobs: jobs.compactMap(job))
            result.load = experiment["load"]?.stringValue ?? ""
            result.seed = UInt64(clamping: experiment["seed"]?.intValue ?? 0)
            result.turn = min(max(experiment["turn"]?.intValue ?? 0, 0), 1 << 20)
            session.experiments.append(result)
        }
        return session
    }

    private static func job(_ json: JSONValue) -> LiveJob? {
        guard let values = json.arrayValue?.compactMap(\.doubleValue), values.count >= 14 else { return nil }
        func some(_ value: Double) -> Double? { value < 0 ? nil : value }
        func count(_ value: Double) -> Int { Int(min(max(value, 0), 1e15)) }
        var job = LiveJob()
        (job.sent, job.inputTokens, job.outputTokens) = (values[0], count(values[1]), count(values[2]))
        (job.prefilling, job.firstToken, job.transferring) = (some(values[3]), values[4], some(values[5]))
        (job.decoding, job.secondToken, job.finished) = (some(values[6]), some(values[7]), values[8])
        (job.kvBytes, job.clientFirstToken, job.clientCompletion) = (count(values[9]), values[10], values[11])
        (job.placed, job.reserved) = (some(values[12]), some(values[13]))
        job.clientTokens = Array(values[14...])
        return job
    }
}
