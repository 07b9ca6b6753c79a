#!/usr/bin/env python3
"""Does the fault simulation notice planted bugs? Builds the simulator from a copy of the sources with one bug each
and runs seeds until one fails:

    ops/simulation/mutants.py [--seeds 400] [--only NAME]

Exit status 1 where a bug goes unnoticed. Takes about a minute per bug; the copy lives in a temporary folder."""
import argparse, pathlib, shutil, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = ["ServingTypes", "BoundedJSON", "Messages", "KVPaging", "Scheduling", "ServingMetrics", "CoordinatorCore",
           "PrefillCore", "DecodeCore", "Simulation"]
# Name, file, what it says, what the bug makes of it.
MUTANTS = [
    ("stale attempts at C", "CoordinatorCore/Coordinator.swift", "job.attempt == transfer.attempt",
     "job.attempt >= transfer.attempt"),
    ("stale attempts at workers", "KVPaging/BoundedMemory.swift", "transfer.attempt <= seen { return false }",
     "transfer.attempt < seen, seen.number > 1000 { return false }"),
    ("lease expiry", "DecodeCore/Landings.swift", "now >= landing.expires else { continue }",
     "now >= landing.expires, landing.wantRounds > 99 else { continue }"),
    ("no fence at D", "DecodeCore/Ending.swift",
     "if case .landing(let landing) = job.phase, !landing.wanted.isEmpty",
     "if case .landing(let landing) = job.phase, !landing.wanted.isEmpty, landing.wantRounds > 99"),
    ("no fence at P", "PrefillCore/Sending.swift", "guard job.outgoing.isBeingRead, isLinked(job.target) else {",
     "guard job.outgoing.isBeingRead, isLinked(job.target), job.computed < 0 else {"),
    ("repeats logged again", "CoordinatorCore/Job.swift", "let known = min(log.count - offset, tokens.count)",
     "let known = 0"),
    ("output charged twice", "CoordinatorCore/Tokens.swift", "policy.produced(id, tokens: fresh.count)",
     "policy.produced(id, tokens: fresh.count + (start == 0 ? 1 : 0))"),
]
MANIFEST = """// swift-tools-version: 6.2
import PackageDescription
let package = Package(
    name: "mutants", dependencies: [],
    targets: [
        .target(name: "ServingTypes"), .target(name: "BoundedJSON", dependencies: ["ServingTypes"]),
        .target(name: "Messages", dependencies: ["ServingTypes"]),
        .target(name: "KVPaging", dependencies: ["ServingTypes", "Messages"]),
        .target(name: "Scheduling", dependencies: ["ServingTypes"]),
        .target(name: "ServingMetrics", dependencies: ["ServingTypes"]),
        .target(name: "CoordinatorCore", dependencies: ["ServingTypes", "Messages", "Scheduling", "ServingMetrics", "KVPaging"]),
        .target(name: "PrefillCore", dependencies: ["ServingTypes", "Messages", "Scheduling", "KVPaging"]),
        .target(name: "DecodeCore", dependencies: ["ServingTypes", "Messages", "Scheduling", "KVPaging"]),
        .target(name: "Simulation", dependencies: ["ServingTypes", "Messages", "KVPaging", "Scheduling",
            "ServingMetrics", "CoordinatorCore", "PrefillCore", "DecodeCore"]),
        .executableTarget(name: "mutant", dependencies: ["Simulation"]),
    ], swiftLanguageModes: [.v6])
"""
MAIN = """import Simulation
let seeds = CommandLine.arguments.dropFirst().compactMap { UInt64($0) }.first ?? 400
for seed in 1...seeds {
    guard let failure = SafetyRun.run(seed: seed).failure else { continue }
    print("seed \\(seed): \\(failure)")
    break
}
"""


def build(folder):
    done = subprocess.run(["swift", "build", "-c", "release"], cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-800:]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=400)
    options.add_argument("--only")
    options = options.parse_args()
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for target in TARGETS:
            shutil.copytree(ROOT / "Sources" / target, folder / "Sources" / target)
        (folder / "Sources/mutant").mkdir()
        (folder / "Sources/mutant/main.swift").write_text(MAIN)
        (folder / "Package.swift").write_text(MANIFEST)
        for name, path, before, after in [("no bug", None, "", "")] + MUTANTS:
            if options.only and options.only not in name:
                continue
            file = folder / "Sources" / path if path else None
            text = file.read_text() if file else ""
            if file and before not in text:
                print(f"{name}: {path} does not say `{before}` any more", flush=True)
                unnoticed += 1
                continue
            if file:
                file.write_text(text.replace(before, after, 1))
            error = build(folder)
            if error:
                print(f"{name}: does not build: {error}", flush=True)
                unnoticed += 1
            else:
                run = subprocess.run([folder / ".build/release/mutant", str(options.seeds)], capture_output=True, text=True)
                found = run.stdout.strip() or ("trap" if run.returncode else "")
                print(f"{name}: {found or f'nothing in {options.seeds} seeds'}", flush=True)
                unnoticed += (found == "") == bool(file)
            if file:
                file.write_text(text)
    sys.exit(1 if unnoticed else 0)


main()
