#!/usr/bin/env python3
"""Serving, side by side in one run: `make bench-serving`.

The same load against a disaggregated Tandem cluster (1 prefill, 1 decode), the same with relief (the decode worker
computes long prompts where the prefill worker is behind), a mixed Tandem worker, and llama.cpp's server with 8 and
with 16 slots, each with two threads in all, on the 0.5B shape in Q8_0. `tandem bench` makes the load. Every cell is
measured with each server in turn, freshly started and alone on the machine.

TANDEM_PEER names the folder of llama-server (ops/build-peer.sh makes one); without it the peer is skipped.
TANDEM_BENCH_MODELS names the folder of the models (ops/bench-models.sh).
"""
import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TANDEM = ROOT / ".build/release/tandem"
RESULTS = ROOT / "ops/results"

spec = importlib.util.spec_from_file_location("bench_engine", ROOT / "ops/bench-engine.py")
bench_engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_engine)


class Cell:
    """One load. With a rate the loop is open (Poisson), otherwise `clients` send one after the other."""

    def __init__(self, requests, clients, prompt, output, load=None, is_long=False):
        self.requests, self.clients, self.prompt, self.output = requests, clients, prompt, output
        self.load, self.is_long = load, is_long

    @property
    def name(self):
        how = f"load {self.load}" if self.load else f"{self.clients} clients"
        return f"{self.requests} x {self.prompt}+{self.output}, {how}"

    def arguments(self, rate):
        arguments = ["--num-prompts", self.requests, "--input-len", self.prompt, "--output-len", self.output]
        if self.load:
            return arguments + ["--request-rate", f"{rate:.3f}"]
        return arguments + ["--max-concurrency", self.clients]


CELLS = [
    Cell(32, 8, 256, 64), Cell(32, 8, 256, 128), Cell(32, 8, 1024, 64), Cell(128, 32, 256, 64),
    Cell(32, 0, 256, 64, load=0.6),
    Cell(32, 8, 1024, 128, is_long=True), Cell(128, 32, 256, 128, is_long=True),
    Cell(128, 32, 1024, 64, is_long=True), Cell(128, 32, 1024, 128, is_long=True),
]
QUICK = [Cell(8, 4, 128, 16), Cell(8, 0, 128, 16, load=0.6)]


class TandemCluster:
    def __init__(self, name, *flags):
        self.name, self.flags = name, flags

    def serves(self, cell):
        return True

    def start(self, model, cell):
        self.state = tempfile.mkdtemp(prefix="tandem-bench-")
        run([TANDEM, "up", "--detach", "--state", self.state, "--port", 0, "--model", model, *self.flags])
        return ["--state", self.state]

    def stop(self):
        subprocess.run([str(TANDEM), "down", "--state", self.state], capture_output=True)
        shutil.rmtree(self.state, ignore_errors=True)


class LlamaServer:
    def __init__(self, folder, slots):
        self.folder, self.slots, self.name = folder, slots, f"llama.cpp, {slots} slots"

    def serves(self, cell):
        """More slots than clients are no other server."""
        return self.slots <= 8 or cell.clients > 8

    def start(self, model, cell):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = self.slots * (cell.prompt + cell.output + 64)
        self.process = subprocess.Popen(
            [str(self.folder / "llama-server"), "-m", str(model), "-np", str(self.slots), "-t", "2", "-tb", "2",
             "-c", str(context), "--port", str(port), "--cache-ram", "0", "--no-webui"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, LD_LIBRARY_PATH=str(self.folder)))
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit("bench-serving: llama-server ended before it was ready")
            try:
                if urllib.request.urlopen(f"{url}/health", timeout=1).status == 200:
                    return ["--url", url]
            except OSError:
                time.sleep(0.1)
        sys.exit("bench-serving: llama-server was not ready within 60 s")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        sys.exit(f"bench-serving: {command[0]} {command[1]} failed: {words[0]}")
    return done.stdout


# ---------------------------------------------------------------- the run


FIELDS = [
    ("request_throughput", "req/s", 2), ("output_throughput", "out tok/s", 1), ("median_ttft_ms", "TTFT P50", 0),
    ("p99_ttft_ms", "TTFT P99", 0), ("median_tpot_ms", "TPOT P50", 1), ("p99_tpot_ms", "TPOT P99", 1),
    ("median_e2el_ms", "E2EL P50", 0), ("failed", "failed", 0),
]


class Bench:
    def __init__(self, options):
        self.options = options
        self.machine = bench_engine.machine()
        self.peer = self.find_peer()
        cells = QUICK if options.quick else CELLS
        self.cells = [c for c in cells if re.search(options.cells, c.name) and (options.all or not c.is_long)]
        systems = [
            TandemCluster("Tandem 1 prefill + 1 decode", "--prefill", 1, "--decode", 1, "--threads", 1,
                          "--local-prefill-tokens", 0),
            TandemCluster("Tandem 1 + 1 with relief", "--prefill", 1, "--decode", 1, "--threads", 1,
                          "--local-prefill-tokens", 0, "--relief-wait-ms", 200),
            TandemCluster("Tandem mixed", "--prefill", 0, "--decode", 0, "--mixed", 1, "--threads", 2),
        ]
        if self.peer:
            systems += [LlamaServer(self.peer, 8), LlamaServer(self.peer, 16)]
        self.systems = [s for s in systems if re.search(options.systems, s.name)]
        # The peer first: the open loop's rate is a share of its throughput.
        self.systems.sort(key=lambda system: isinstance(system, TandemCluster))
        shown = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        self.commit = shown.stdout.strip() or "unknown"
        self.file = RESULTS / f"{options.name or ('serving-quick' if options.quick else 'serving')}.json"
        self.measured = json.loads(self.file.read_text())["measured"] if options.resume and self.file.exists() else []
        if not self.cells or not self.systems:
            sys.exit("bench-serving: nothing is selected")

    def find_peer(self):
        folder = os.environ.get("TANDEM_PEER")
        if self.options.no_peer or not folder or not (pathlib.Path(folder) / "llama-server").exists():
            print("peer: llama.cpp skipped: " + ("not asked for" if self.options.no_peer else
                  "TANDEM_PEER names no folder that holds llama-server (ops/build-peer.sh builds one)"))
            return None
        return pathlib.Path(folder)

    def run(self):
        made = subprocess.run([str(ROOT / "ops/bench-models.sh"), "0.5b"], capture_output=True, text=True,
                              env=dict(os.environ, FORMATS="q8_0"))
        if made.returncode != 0:
            sys.exit(f"bench-serving: the model cannot be made:\n{made.stderr}")
        model = pathlib.Path(made.stdout.strip().splitlines()[-1]) / "0.5b-q8_0.gguf"
        start = time.monotonic()
        for cell in self.cells:
            for number in range(self.options.repeats):
                for system in self.systems if number % 2 == 0 else self.systems[::-1]:
                    if not system.serves(cell) or self.has(cell, system, number):
                        continue
                    if time.monotonic() - start > self.options.minutes * 60:
                        print(f"stopped: --minutes {self.options.minutes} are over; --resume goes on from here")
                        return print(self.text())
                    self.measure(cell, system, number, model)
                    self.save()
        print(self.text())

    def has(self, cell, system, number):
        return any((m["cell"], m["system"], m["round"]) == (cell.name, system.name, number) for m in self.measured)

    def rate(self, cell):
        """A share of what the peer's 8 slots served in a closed loop of the same lengths in this run."""
        if self.options.rate:
            return self.options.rate
        same = f"{cell.prompt}+{cell.output}, "
        served = [m["result"]["request_throughput"] for m in self.measured
                  if same in m["cell"] and "clients" in m["cell"] and m["system"].endswith(" 8 slots")]
        return cell.load * statistics.median(served) if served else 0.4

    def measure(self, cell, system, number, model):
        began = time.monotonic()
        where = system.start(model, cell)
        try:
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                rate = self.rate(cell) if cell.load else 0
                run([TANDEM, "bench", *where, *cell.arguments(rate), "--seed", 1000 + number, "--quiet", "--timeout",
                     900, "--json", file.name])
                result = json.loads(pathlib.Path(file.name).read_text())
        finally:
            system.stop()
        taken = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        self.measured.append({"cell": cell.name, "system": system.name, "round": number, "result": result,
                              "taken": taken, "commit": self.commit})
        print(f"{cell.name}: {system.name}: {result['request_throughput']:.2f} req/s "
              f"({time.monotonic() - began:.0f} s)", file=sys.stderr)

    # ---------------------------------------------------------------- the table

    def values(self, cell, system, field):
        return [m["result"].get(field, 0) for m in self.measured
                if (m["cell"], m["system"]) == (cell.name, system.name)]

    def text(self):
        lines = [
            bench_engine.machine_line(self.machine),
            "method: 0.5B shape (Qwen2.5-0.5B) in Q8_0 with random weights, the same GGUF file; 2 threads in all; "
            "random prompts, greedy, end of text ignored; `tandem bench` on the same machine; milliseconds; "
            f"{self.options.repeats} run(s) of each: median (min-max)",
        ]
        for cell in self.cells:
            rows = [["", *(title for _, title, _ in FIELDS), "req/s against the peer's best"]]
            peers = [statistics.median(values) for system in self.systems if isinstance(system, LlamaServer)
                     if (values := self.values(cell, system, "request_throughput"))]
            for system in self.systems:
                values = self.values(cell, system, "request_throughput")
                if not values:
                    continue
                cells = [self.figure(self.values(cell, system, field), digits) for field, _, digits in FIELDS]
                ratio = f"{statistics.median(values) / max(peers):.2f}x" if peers else "-"
                rows.append([system.name, *cells, ratio])
            if len(rows) == 1:
                continue
            rates = {m["result"].get("request_rate") for m in self.measured if m["cell"] == cell.name}
            rate = f" of the peer's throughput ({rates.pop()} req/s, Poisson)" if cell.load and len(rates) == 1 else ""
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            lines += ["", cell.name + rate] + [
                "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
            lines += self.when(cell)
        return "\n".join(lines)

    def when(self, cell):
        """When a cell was taken, and with which commit, since `--resume` goes on in a later run."""
        mine = [m for m in self.measured if m["cell"] == cell.name and "taken" in m]
        if not mine:
            return []
        times = sorted(m["taken"] for m in mine)
        commits = sorted({m["commit"] for m in mine if "commit" in m})
        return [f"taken {times[0]} to {times[-1]} UTC" + (f", at commit {', '.join(commits)}" if commits else "")]

    @staticmethod
    def figure(values, digits):
        if len(values) == 1:
            return f"{values[0]:.{digits}f}"
        return bench_engine.spread(values, digits)

    def save(self):
        RESULTS.mkdir(exist_ok=True)
        self.file.with_suffix(".txt").write_text(self.text() + "\n")
        facts = {"machine": self.machine, "measured": self.measured,
                 "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        self.file.write_text(json.dumps(facts, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny loads: does it work?")
    parser.add_argument("--all", action="store_true", help="the long cells too: more than an hour with the peer")
    parser.add_argument("--cells", default="", help="only cells whose name matches, such as '32 x 256'")
    parser.add_argument("--systems", default="", help="only servers whose name matches, such as 'Tandem|8 slots'")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20, help="no measurement begins after that many")
    parser.add_argument("--rate", type=float, help="of the open loop (default: a share of the peer's throughput)")
    parser.add_argument("--resume", action="store_true", help="keep what is in the results and measure the rest")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--name", help="of the files in ops/results (default: serving)")
    options = parser.parse_args()
    if not TANDEM.exists():
        sys.exit("bench-serving: .build/release/tandem is missing; `make bench-serving` builds it")
    Bench(options).run()


if __name__ == "__main__":
    main()
