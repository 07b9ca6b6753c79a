import Foundation
import Subprocess
import Synchronization
import SystemPackage

/// One running program of the cluster: its output goes to a log file, and its standard input is a
/// pipe whose other end lives as long as the supervisor, so that it ends when the supervisor does.
struct ChildProcess {
    var program: String
    var arguments: [String]
    var logFile: String

    /// Runs to its end. `started` gets the process id and may send signals until then.
    func run(started: @escaping @Sendable (pid_t) async -> Void) async -> ProcessEnd {
        do {
            // Subprocess closes in a child whatever it was not given, so no other child inherits the write end
            // and keeps this one alive after the supervisor.
            let lifeline = try FileDescriptor.pipe()
            defer { try? lifeline.writeEnd.close() }
            _ = fcntl(lifeline.writeEnd.rawValue, F_SETFD, FD_CLOEXEC)
            let log = try FileDescriptor.open(
                FilePath(logFile), .writeOnly, options: [.create, .append], permissions: [.ownerReadWrite])
            defer { try? log.close() }
            let result = try await Subprocess.run(
                .path(FilePath(program)), arguments: Arguments(arguments),
                environment: .inherit.updating(["SWIFT_BACKTRACE": "enable=no"]), platformOptions: options,
                input: .fileDescriptor(lifeline.readEnd, closeAfterSpawningProcess: true),
                output: .fileDescriptor(log, closeAfterSpawningProcess: false),
                error: .fileDescriptor(log, closeAfterSpawningProcess: false)
            ) { execution in
                await started(execution.processIdentifier.value)
            }
            switch result.terminationStatus {
            case .exited(let code): return .exited(code)
            case .signaled(let number): return .signaled(number)
            }
        } catch {
            return .notStarted("\(program): \(error)")
        }
    }

    /// Its own process group: a terminal's Ctrl-C reaches the supervisor alone, which then stops
    /// the others in order.
    private var options: PlatformOptions {
        var options = PlatformOptions()
        options.processGroupID = 0
        return options
    }
}
