import ArgumentParser
import Hosting
import ServingTypes

@main
struct PrefillProgram: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tandem-prefill",
        abstract: "A prefill worker: turns prompts into KV pages and pushes them to decode workers.")

    @OptionGroup var flags: WorkerFlags

    func run() async throws {
        try await WorkerProgram.run(flags, program: "tandem-prefill") { [flags] loop, model, log in
            let host = try PrefillWorkerHost.start(loop: loop, flags: flags, model: model, log: log)
            return { host.value.leave(within: $0) }
        }
    }
}
