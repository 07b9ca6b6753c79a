import ArgumentParser
import BoundedJSON
import Foundation
import LocalSupervisor
import ServingTypes

struct DownCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "down", abstract: "Finish the jobs that run, then stop the local cluster.")

    @Option(help: "State directory of the cluster.")
    var state: String?

    func run() async throws {
        let directory = ClusterClient.stateDirectory(state)
        guard directory.isHeld else {
            throw CLIError("no cluster runs on state directory \(directory.path): nothing to stop")
        }
        Terminal.say("stopping (jobs that run are finished first)")
        let reply = try? await ControlSocket.ask(
            path: directory.controlSocket, .object(JSONObject([("verb", .string("down"))])))
        for _ in 0..<500 where directory.isHeld { try await Task.sleep(for: .milliseconds(20)) }
        if directory.isHeld {
            throw CLIError(
                reply == nil
                    ? "the supervisor on \(directory.path) does not answer; its process id is in \(directory.lockFile)"
                    : "the supervisor on \(directory.path) did not end")
        }
        Terminal.say("stopped")
    }
}

struct ScaleCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "scale", abstract: "Change the number of workers while jobs run.",
        discussion: """
            New workers start at once; those too many are drained: they take no new job, finish or hand over what
            they hold, and leave. No job is lost.

              tandem scale prefill=2 decode=3
            """)

    @Argument(help: "role=count, where role is prefill, decode or mixed.")
    var counts: [String]

    @Option(help: "State directory of the cluster.")
    var state: String?

    func run() async throws {
        let reply = try await Self.scale(counts, state: ClusterClient.stateDirectory(state))
        Terminal.say(
            "scaling to \(reply["prefill"]?.intValue ?? 0) prefill, \(reply["decode"]?.intValue ?? 0) decode, "
                + "\(reply["mixed"]?.intValue ?? 0) mixed; watch it with `tandem status`")
    }

    static func scale(_ counts: [String], state: StateDirectory) async throws -> JSONValue {
        var request = JSONObject([("verb", .string("scale"))])
        for text in counts {
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, ["prefill", "decode", "mixed"].contains(parts[0]), let count = Int(parts[1]) else {
                throw CLIError("scale: \(text) is not role=count with role prefill, decode or mixed")
            }
            request[parts[0]] = .integer(Int64(count))
        }
        let reply = try await ControlSocket.ask(path: state.controlSocket, .object(request))
        if let error = reply["error"]?.stringValue { throw CLIError("scale: \(error)") }
        return reply
    }
}

struct ModelsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(commandName: "models", abstract: "List the models served.")

    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        let reply = try await ClusterClient(cluster).get("/v1/models")
        let rows = (reply["data"]?.arrayValue ?? []).map { model in
            [model["id"]?.stringValue ?? "?", model["max_model_len"]?.intValue.map(String.init) ?? "-"]
        }
        Terminal.say(Terminal.table(["MODEL", "CONTEXT"], rows))
    }
}
