import ArgumentParser
import Hosting
import ServingTypes

@main
struct DecodeProgram: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tandem-decode",
        abstract: "A decode worker: takes KV pages in and streams tokens out.",
        discussion: "With --role mixed it prefills too: the aggregated mode that disaggregation is compared with.")

    @OptionGroup var flags: WorkerFlags

    @Option(help: "decode or mixed.")
    var role: String = "decode"

    func validate() throws {
        guard ["decode", "mixed"].contains(role) else {
            throw ValidationError("--role: \(role) is not one of decode, mixed")
        }
    }

    func run() async throws {
        let role: WorkerRole = role == "mixed" ? .mixed : .decode
        try await WorkerProgram.run(flags, program: "tandem-decode") { [flags] loop, model, log in
            let host = try DecodeWorkerHost.start(loop: loop, flags: flags, role: role, model: model, log: log)
            return { host.value.leave(within: $0) }
        }
    }
}
