import ArgumentParser
import Hosting

@main
struct CoordinatorMain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tandem-coordinator",
        abstract: "The coordinator: takes HTTP requests, schedules jobs, brokers every exchange of pages.")

    @OptionGroup var flags: CoordinatorFlags

    func run() async throws { try await CoordinatorProgram.run(flags) }
}
