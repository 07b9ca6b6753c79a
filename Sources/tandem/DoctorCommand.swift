import ArgumentParser
import Foundation
import LocalSupervisor
import ServingTypes

struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Report what matters about this machine and this installation.",
        discussion: "Paste its output into a bug report. Exit status 1 means that something will not work.")

    @Option(help: "Model folder to check.")
    var model: String?

    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        var checks = MachineChecks.all()
        if let model = model ?? ClusterFlags.bundledModel { checks.append(MachineChecks.model(model)) }
        let client = ClusterClient(cluster)
        let live = await client.status("/livez")
        checks.append(
            Check(
                "cluster", live == 200 ? .good : .note,
                live == 200 ? "answers on \(client.baseURL)" : "none on \(client.baseURL)"))
        Terminal.say(
            Terminal.table(["CHECK", "", "FOUND"], checks.map { [$0.name, $0.verdict.rawValue, $0.finding] }))
        if checks.contains(where: { $0.verdict == .bad }) { throw ExitCode(1) }
    }
}

struct Check {
    enum Verdict: String {
        case good = "ok"
        case note = "note"
        case bad = "BAD"
    }

    var name: String
    var verdict: Verdict
    var finding: String

    init(_ name: String, _ verdict: Verdict, _ finding: String) {
        self.name = name
        self.verdict = verdict
        self.finding = finding
    }
}

enum MachineChecks {
    static func all() -> [Check] {
        [processor(), memory(), descriptors(), libraries(), programs()]
    }

    private static func processor() -> Check {
        let info = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
        func field(_ name: String) -> String {
            info.split(separator: "\n").first { $0.hasPrefix(name) }?.split(separator: ":").last
                .map { $0.trimmingCharacters(in: .whitespaces) } ?? "unknown"
        }
        let flags = Set(field("flags").split(separator: " "))
        let wanted = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni"]
        let present = wanted.filter { flags.contains(Substring($0)) }
        let cores = ProcessInfo.processInfo.activeProcessorCount
        return Check(
            "processor", present.contains("avx2") ? .good : .note,
            "\(field("model name")), \(cores) cores, \(present.isEmpty ? "scalar kernels" : present.joined(separator: " "))"
        )
    }

    private static func memory() -> Check {
        let info = (try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8)) ?? ""
        func kibibytes(_ name: String) -> Double {
            info.split(separator: "\n").first { $0.hasPrefix(name) }?.split(separator: " ").dropFirst().first
                .flatMap { Double($0) } ?? 0
        }
        let available = kibibytes("MemAvailable:") * 1024
        return Check(
            "memory", available > 1e9 ? .good : .bad,
            "\(Terminal.bytes(available)) available of \(Terminal.bytes(kibibytes("MemTotal:") * 1024))")
    }

    private static func descriptors() -> Check {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        return Check("open files", limit.rlim_cur >= 1024 ? .good : .bad, "limit \(limit.rlim_cur), 1024 needed")
    }

    private static func libraries() -> Check {
        let maps = (try? String(contentsOfFile: "/etc/os-release", encoding: .utf8)) ?? ""
        let name = maps.split(separator: "\n").first { $0.hasPrefix("PRETTY_NAME=") }?.dropFirst(12) ?? "unknown"
        return Check("system", .good, name.trimmingCharacters(in: CharacterSet(charactersIn: "\"")))
    }

    private static func programs() -> Check {
        do {
            return Check("programs", .good, try ClusterFlags.programsFolder())
        } catch {
            return Check("programs", .bad, "\(error)")
        }
    }

    static func model(_ path: String) -> Check {
        if path.lowercased().hasSuffix(".gguf") {
            let isThere = FileManager.default.fileExists(atPath: path)
            return Check("model", isThere ? .good : .bad, isThere ? path : "\(path) does not exist")
        }
        let needed = ["config.json", "tokenizer.json"]
        let missing = needed.filter { !FileManager.default.fileExists(atPath: "\(path)/\($0)") }
        return missing.isEmpty
            ? Check("model", .good, path) : Check("model", .bad, "\(path) lacks \(missing.joined(separator: ", "))")
    }
}
