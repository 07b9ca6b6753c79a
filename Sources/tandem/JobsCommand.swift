import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes

struct JobsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "jobs", abstract: "List jobs, show one, follow one, cancel one.",
        subcommands: [List.self, Show.self, Attach.self, Cancel.self], defaultSubcommand: List.self)

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "The latest jobs, newest first.")
        @Option(help: "How many.") var limit: Int = 20
        @OptionGroup var cluster: ClusterOptions

        func run() async throws {
            let reply = try await ClusterClient(cluster).get("/v1/jobs?limit=\(limit)")
            let rows = (reply["data"]?.arrayValue ?? []).map { view in
                let job = JobSummary(view)
                return [
                    view["id"]?.stringValue ?? "?", view["tenant"]?.stringValue ?? "?",
                    view["status"]?.stringValue ?? "?", "\(job.promptTokens)", "\(job.outputTokens)", job.prefill,
                    job.decode, Terminal.milliseconds(job.ttft), Terminal.milliseconds(job.tpot),
                    Terminal.bytes(job.kvBytes),
                ]
            }
            Terminal.say(
                Terminal.table(
                    ["JOB", "TENANT", "STATUS", "PROMPT", "OUTPUT", "PREFILL", "DECODE", "TTFT", "TPOT", "KV MOVED"],
                    rows))
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "One job with its stamps and its route, as JSON.")
        @Argument(help: "The job's id.") var job: String
        @OptionGroup var cluster: ClusterOptions

        func run() async throws {
            Terminal.say(JSON.text(try await ClusterClient(cluster).get("/v1/jobs/\(job)"), pretty: true))
        }
    }

    struct Attach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Follow a job from an output offset to its end.")
        @Argument(help: "The job's id.") var job: String
        @Option(help: "Output tokens to skip.") var offset: Int = 0
        @OptionGroup var cluster: ClusterOptions

        func run() async throws {
            let events = try await ClusterClient(cluster).events("/v1/jobs/\(job)/events?offset=\(offset)", nil)
            try await StreamPrinter.print(events)
        }
    }

    struct Cancel: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "End a job; its pages are freed on every worker.")
        @Argument(help: "The job's id.") var job: String
        @OptionGroup var cluster: ClusterOptions

        func run() async throws {
            _ = try await ClusterClient(cluster).delete("/v1/jobs/\(job)")
            Terminal.say("cancelled \(job)")
        }
    }
}
