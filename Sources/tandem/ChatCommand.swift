import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes

struct ChatCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "chat", abstract: "Talk to the model; an empty line or Ctrl-D ends it.")

    @Option(help: "A system message to begin with.")
    var system: String?

    @OptionGroup var sampling: SamplingFlags
    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        let client = ClusterClient(cluster)
        let asks = Terminal.isInteractive && isatty(STDIN_FILENO) == 1
        var messages: [JSONValue] = system.map { [Self.message("system", $0)] } ?? []
        while true {
            if asks { Terminal.stream("> ") }
            guard let line = readLine() else {
                if asks { Terminal.stream("\n") }
                return
            }
            if line.allSatisfy(\.isWhitespace) { return }
            messages.append(Self.message("user", line))
            var body = JSONObject([("messages", .array(messages)), ("stream", .bool(true))])
            sampling.apply(to: &body)
            let events = try await client.events("/v1/chat/completions", .object(body))
            let answer = try await StreamPrinter.print(events)
            if let job = events.jobID { try await SubmitCommand.summarise(job, client) }
            messages.append(Self.message("assistant", answer))
        }
    }

    private static func message(_ role: String, _ content: String) -> JSONValue {
        .object(JSONObject([("role", .string(role)), ("content", .string(content))]))
    }
}
