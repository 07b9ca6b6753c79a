import ArgumentParser
import Foundation
import ServingTypes

@main
struct Tandem: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tandem",
        abstract: "A disaggregated LLM inference cluster: prefill workers, decode workers, one coordinator.",
        discussion: """
            Start a cluster, use it, change its size, stop it:

              tandem up --model PATH          start a local cluster (Ctrl-C, or `tandem down`, stops it)
              tandem submit "Once upon a"     run one job and stream its text
              tandem chat                     talk to the model
              tandem scale prefill=2 decode=3 change the number of workers while jobs run
              tandem status                   workers, queues, pages, tenants
              tandem tenants                  who gets what share, and how fast
              tandem down                     finish what runs, then stop

            Any OpenAI client works with base_url set to the URL that `up` prints, plus /v1.
            Settings come from flags, then TANDEM_* variables, then a YAML file (--config), then defaults.
            """,
        version: "tandem 0.1.0",
        subcommands: [
            UpCommand.self, DownCommand.self, StatusCommand.self, TopCommand.self, TenantsCommand.self,
            ScaleCommand.self,
            SubmitCommand.self, ChatCommand.self, JobsCommand.self, ModelsCommand.self, BenchCommand.self,
            SimulateCommand.self, ProfileCommand.self, DoctorCommand.self, DemoCommand.self, RandomModelCommand.self,
            QuantizeCommand.self, PackCommand.self,
        ])

    static func main() async {
        signal(SIGPIPE, SIG_IGN)
        do {
            var command = try parseAsRoot()
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
        } catch let error as CLIError {
            Terminal.complain(error.description)
            exit(withError: ExitCode(1))
        } catch let error as ServingError {
            Terminal.complain(error.message)
            exit(withError: ExitCode(1))
        } catch {
            exit(withError: error)
        }
    }
}

/// Options of every command that speaks to a running cluster.
struct ClusterOptions: ParsableArguments {
    @Option(help: "State directory of the local cluster (default: TANDEM_STATE, else ~/.tandem).")
    var state: String?

    @Option(help: "URL of the coordinator (default: TANDEM_URL, else that of the local cluster).")
    var url: String?

    @Option(help: "API key (default: TANDEM_API_KEY, else that of the local cluster).")
    var apiKey: String?

    @Option(help: "Tenant to act as, where the cluster has no API keys.")
    var tenant: String?
}
