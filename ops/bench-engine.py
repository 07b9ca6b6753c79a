#!/usr/bin/env python3
"""The engine against llama.cpp, side by side in one run: `make bench-engine`.

Every round measures each row once with our engine and once with the peer's, one right after the other and in
turn first, so that a noisy minute hits both; decoding one job, where the memory's speed is all, several times in
turn. The same GGUF files, the same number of threads. The machine's limits (dot products, streaming reads) are
measured in every round too, and before and after each decode run the engine reads its weights once without
computing: what the memory gave in that very second.

TANDEM_PEER names the folder of llama-bench and llama-batched-bench (ops/build-peer.sh makes one); without it
the peer's columns stay empty. TANDEM_BENCH_MODELS names the folder of the models (ops/bench-models.sh).
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURE = ROOT / ".build/release/tandem-measure"
RESULTS = ROOT / "ops/results"
SHAPES, FORMATS = ["0.5b", "1b"], ["q8_0", "q4_0", "bf16"]
STEPS = 32  # decode steps of one run, as in llama-bench -n 32
PAGE = 2**20


class Row:
    """One line of the table: `work` is prefill:TOKENS, decode:JOBS:CONTEXT, memory, load or first-load."""

    def __init__(self, shape, form, work, goal):
        self.shape, self.format, self.work, self.goal = shape, form, work, goal
        kind, *numbers = work.split(":")
        self.kind, self.numbers = kind, [int(n) for n in numbers]
        self.ours, self.peer = [], []  # tokens/s, MiB or seconds, one per round
        self.limits = []  # of the machine, measured just before, one per round
        self.reads = []  # GB/s of reading the weights around each of our decode runs

    @property
    def name(self):
        return f"{self.shape} {self.format} {self.work}"

    @property
    def smaller_is_better(self):
        return self.kind in ("memory", "load", "first-load")

    @property
    def is_single(self):
        return self.kind == "decode" and self.numbers[0] == 1

    @property
    def is_batched(self):
        return self.kind == "decode" and self.numbers[0] > 1


def table_rows():
    for shape in SHAPES:
        for form, goal in [("q8_0", 4.0), ("q4_0", 2.5), ("bf16", 1.4)]:
            yield Row(shape, form, "prefill:512", goal)
            if form == "q8_0":
                yield Row(shape, form, "prefill:2048", 4.0)
            yield Row(shape, form, "decode:1:128", 1.2)
            yield Row(shape, form, "decode:1:1024", 1.2)
            if form == "q8_0":
                for jobs, context, goal in [(4, 128, 2.5), (16, 128, 4.0), (32, 128, 4.0), (16, 1024, 3.0)]:
                    yield Row(shape, form, f"decode:{jobs}:{context}", goal)
                yield Row(shape, form, "memory", 1.0)
                yield Row(shape, form, "load", 1.0)
                yield Row(shape, form, "first-load", 1.0)


QUICK = r"0\.5b (\S+ prefill:512|\S+ decode:1:128|q8_0 decode:16:128)"


# ---------------------------------------------------------------- running programs


class Program:
    """A finished program: its output, seconds, and resident memory as seen every 10 ms."""

    def __init__(self, command, env=None):
        start = time.monotonic()
        process = subprocess.Popen(
            [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.samples = []
        watcher = threading.Thread(target=self.watch, args=(process.pid,), daemon=True)
        watcher.start()
        self.output, self.errors = process.communicate()
        self.seconds = time.monotonic() - start
        if process.returncode != 0:
            words = self.errors.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
            sys.exit(f"bench-engine: {command[0]} failed: {words[0]}")

    def watch(self, pid):
        while True:
            try:
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
            except OSError:
                return
            match = re.search(r"VmRSS:\s+(\d+) kB", status)
            if not match:
                return
            self.samples.append(int(match[1]) * 1024)
            time.sleep(0.01)

    @property
    def peak(self):
        return max(self.samples, default=0)

    @property
    def settled(self):
        """Median of the last quarter of the samples: the model is loaded and computes."""
        return statistics.median(self.samples[-max(1, len(self.samples) // 4):]) if self.samples else 0

    def lines(self):
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]


class Ours:
    def __init__(self, threads, kv, pins):
        self.threads, self.kv, self.facts = threads, kv, {}
        self.pins = ["--pin-cores", pins] if pins else []
        self.packed = None

    def engine(self, model, works, *more):
        rows = [argument for work in works for argument in ("--row", work)]
        return Program([MEASURE, "engine", "--model", model, "--threads", self.threads, "--kv-type", self.kv,
                        "--rounds", 1, "--steps", STEPS, "--json", *self.pins, *rows, *more])

    def speeds(self, model, rows):
        if not rows:
            return
        facts, *measured = self.engine(model, [row.work for row in rows]).lines()
        facts["model"] = model.name  # no path of this machine in the results
        self.facts[model.name] = facts
        for line in measured:
            for row in rows:
                if line.get("row") == row.work:
                    row.ours.append(line["tokens"] / line["seconds"][0])
                    row.reads.extend(line["read_GBps"])

    def memory(self, model, row):
        row.ours.append(self.engine(model, ["prefill:512"]).settled / PAGE)

    def start(self, model, *more):
        return self.engine(model, ["prefill:1"], "--warm-up", 0, "--with-tokenizer", *more).seconds

    def load(self, model, row):
        """Mapping the file of packed weights that an earlier start wrote, as every start but a model's first does.

        The start before it is not timed: it writes the file, or brings it back into the page cache, which hosts
        that reclaim idle pages (DAMON) empty between two rounds; the peer's file was read a moment ago."""
        if self.packed is None:
            self.packed = tempfile.TemporaryDirectory(prefix="tandem-packed-")
        self.start(model, "--packed-cache", self.packed.name)
        row.ours.append(self.start(model, "--packed-cache", self.packed.name))

    def first_load(self, model, row):
        """Without any file: as workers do it, with packing beside the first steps."""
        row.ours.append(self.start(model, "--packing", "besides"))


class Peer:
    def __init__(self, folder, threads):
        self.folder, self.threads, self.build = folder, threads, None
        self.env = dict(os.environ, LD_LIBRARY_PATH=str(folder))

    def bench(self, model, *more):
        command = [self.folder / "llama-bench", "-m", model, "-t", self.threads, "-r", 1, "-o", "json", *more]
        program = Program(command, self.env)
        program.results = json.loads(program.output)
        self.build = program.results[0].get("build_commit")
        return program

    def speeds(self, model, rows):
        prompts = [row for row in rows if row.kind == "prefill"]
        if prompts:
            # 32 tokens first: they touch all weights, as the warm-up of our engine does.
            sizes = ",".join(["32"] + [str(row.numbers[0]) for row in prompts])
            for result in self.bench(model, "--no-warmup", "-p", sizes, "-n", 0).results:
                for row in prompts:
                    if result["n_prompt"] == row.numbers[0]:
                        row.peer.append(result["avg_ts"])
        single = [row for row in rows if row.kind == "decode" and not row.is_batched]
        if single:
            depths = ",".join(str(row.numbers[1]) for row in single)
            for result in self.bench(model, "-p", 0, "-n", STEPS, "-d", depths).results:
                for row in single:
                    if result["n_depth"] == row.numbers[1]:
                        row.peer.append(result["avg_ts"])
        batched = [row for row in rows if row.is_batched]
        for context in sorted({row.numbers[1] for row in batched}):
            self.batches(model, context, [row for row in batched if row.numbers[1] == context])

    def batches(self, model, context, rows):
        """The prompt is computed once and copied to every sequence's own cells, as in our measurement."""
        jobs = [row.numbers[0] for row in rows]
        size = max(jobs) * (context + STEPS + 64)
        program = Program(
            [self.folder / "llama-batched-bench", "-m", model, "-t", self.threads, "-tb", self.threads, "-c", size,
             "-npp", context, "-ntg", STEPS, "-npl", ",".join(map(str, jobs)), "-pps", "--output-format", "jsonl"],
            self.env)
        text = program.output + program.errors
        for line in text.splitlines():
            if not line.startswith("{"):
                continue
            result = json.loads(line)
            for row in rows:
                if result["pl"] == row.numbers[0]:
                    row.peer.append(result["speed_tg"])

    def memory(self, model, row):
        row.peer.append(self.bench(model, "-p", 512, "-n", 0).settled / PAGE)

    def load(self, model, row):
        row.peer.append(self.bench(model, "--no-warmup", "-p", 1, "-n", 0).seconds)

    first_load = load


# ---------------------------------------------------------------- figures


def spread(values, digits=1):
    if not values:
        return "-"
    form = f"%.{digits}f"
    return f"{form % statistics.median(values)} ({form % min(values)}-{form % max(values)})"


def ratios(row):
    """Ours to the peer's, round by round; turned round where less is better."""
    pairs = zip(row.ours, row.peer)
    return [p / o if row.smaller_is_better else o / p for o, p in pairs if o and p]


class Roofline:
    """The most tokens/s that the machine's limits allow: the best of a few measurements of each taken just before,
    for reads the one taken around the run, since the limits of a shared machine move."""

    def __init__(self, limits):
        self.limits = {name: max(values) for name, values in limits.items() if values}

    def peak(self, form):
        return self.limits.get("bf16_Gops" if form == "bf16" else "int8_Gops", 0) * 1e9

    def bound(self, row, facts):
        """(tokens/s, what bounds). Products with weights count, attention's arithmetic does not; bytes are those
        of the file, and of the keys and values that the steps read."""
        if row.smaller_is_better or not facts or not self.limits:
            return None
        if row.kind == "prefill":
            operations = 2 * (facts["layer_weights"] * row.numbers[0] + facts["head_weights"])
            peak = self.peak(row.format)
            return (row.numbers[0] / (operations / peak), "arithmetic") if peak else None
        jobs, context = row.numbers
        held = jobs * (context + STEPS / 2) * facts["kv_bytes_per_token"]
        by_bytes = (facts["file_bytes"] + held) / (self.limits["read_GBps"] * 1e9)
        peak = self.peak(row.format)
        by_work = 2 * jobs * (facts["layer_weights"] + facts["head_weights"]) / peak if peak else 0
        return jobs / max(by_bytes, by_work), "reads" if by_bytes >= by_work else "arithmetic"


def limits_of_runs(row):
    """For each run of a row the machine's limits: those of its round, reads as they were around the very run."""
    if not row.reads:
        return row.limits
    each = max(1, len(row.reads) // max(1, len(row.limits)))
    return [{**row.limits[min(run // each, len(row.limits) - 1)], "read_GBps": [read]}
            for run, read in enumerate(row.reads)]


def fractions(row, values, facts):
    """Of the roofline, run by run."""
    bounds = [Roofline(limits).bound(row, facts) for limits in limits_of_runs(row)]
    return [value / bound[0] for value, bound in zip(values, bounds) if bound]


def bound_by(row, facts):
    bounds = [Roofline(limits).bound(row, facts) for limits in limits_of_runs(row)]
    return statistics.mode([bound[1] for bound in bounds if bound])


def verdict(row, values, fraction):
    if not values:
        return "-"
    if row.goal is None:
        return ""
    if statistics.median(values) >= row.goal:
        return "reached"
    if row.kind == "decode" and not row.is_batched and fraction and fraction >= 0.85:
        return "reached (85 % of reads)"
    return "missed"


def table(rows, ours):
    head = ["shape", "format", "work", "unit", "Tandem", "llama.cpp", "ratio", "goal", "", "roofline", "peer's", "reads"]
    lines = []
    for row in rows:
        facts = ours.facts.get(f"{row.shape}-{row.format}.gguf")
        shares, peers = fractions(row, row.ours, facts), fractions(row, row.peer, facts)
        fraction = statistics.median(shares) if shares else None
        unit = {"memory": "MiB", "load": "s", "first-load": "s"}.get(row.kind, "tok/s")
        digits = 2 if row.kind.endswith("load") else 1
        values = ratios(row)
        lines.append([
            row.shape, row.format, row.work, unit, spread(row.ours, digits), spread(row.peer, digits),
            spread(values, 2), f"{row.goal}x" if row.goal else "none", verdict(row, values, fraction),
            f"{fraction:.0%} ({min(shares):.0%}-{max(shares):.0%}) of {bound_by(row, facts)}" if shares else "-",
            f"{statistics.median(peers):.0%}" if peers else "-", spread(row.reads)])
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in [head, *lines])


# ---------------------------------------------------------------- the machine


def read(path, default=""):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return default


def machine():
    info = read("/proc/cpuinfo")
    field = lambda name: (re.search(rf"^{name}\s*:\s*(.*)$", info, re.M) or [None, "?"])[1]
    memory = int(re.search(r"MemTotal:\s+(\d+)", read("/proc/meminfo", "MemTotal: 0"))[1]) / 2**20
    features = [f for f in ("avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8") if f in info]
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "not readable"
    return {
        "cpu": field("model name"), "family": f"{field('cpu family')}/{field('model')}", "MHz": field("cpu MHz"),
        "cores": os.cpu_count(), "features": features, "governor": governor, "memory_GiB": round(memory, 1),
        "kernel": platform.release(), "load_at_start": os.getloadavg()[0],
    }


def machine_line(facts):
    return (f"machine: {facts['cpu']} (family {facts['family']}, {facts['MHz']} MHz, {' '.join(facts['features'])}), "
            f"{facts['cores']} cores, {facts['memory_GiB']} GiB, governor {facts['governor']}, kernel "
            f"{facts['kernel']}, load {facts['load_at_start']:.2f} at the start, {os.getloadavg()[0]:.2f} now")


# ---------------------------------------------------------------- the run


class Bench:
    def __init__(self, options):
        self.options = options
        self.machine = machine()
        self.rows = [row for row in table_rows() if self.wants(row)]
        self.ours = Ours(options.threads, options.kv_type, options.pin_cores)
        self.peer = self.find_peer()
        self.limits, self.rounds = {}, 0
        if not self.rows:
            sys.exit("bench-engine: no row is selected")

    def wants(self, row):
        pattern = self.options.rows or (QUICK if self.options.quick else "")
        return row.shape in self.options.shapes and row.format in self.options.formats and re.search(pattern, row.name)

    def find_peer(self):
        if self.options.no_peer:
            print("peer: not asked for")
            return None
        folder = os.environ.get("TANDEM_PEER")
        if not folder or not (pathlib.Path(folder) / "llama-bench").exists():
            print("peer: llama.cpp skipped: TANDEM_PEER names no folder that holds llama-bench "
                  "(ops/build-peer.sh builds one)")
            return None
        return Peer(pathlib.Path(folder), self.options.threads)

    def models(self):
        shapes = [shape for shape in SHAPES if any(row.shape == shape for row in self.rows)]
        formats = [form for form in FORMATS if any(row.format == form for row in self.rows)]
        made = subprocess.run([ROOT / "ops/bench-models.sh", *shapes], capture_output=True, text=True,
                              env=dict(os.environ, FORMATS=" ".join(formats)))
        if made.returncode != 0:
            sys.exit(f"bench-engine: the models cannot be made:\n{made.stderr}")
        folder = pathlib.Path(made.stdout.strip().splitlines()[-1])
        return [(shape, form, folder / f"{shape}-{form}.gguf") for shape in shapes for form in formats]

    def run(self):
        models = self.models()
        start = time.monotonic()
        for number in range(self.options.repeats):
            if number and time.monotonic() - start > self.options.minutes * 60:
                print(f"stopped after {number} rounds: --minutes {self.options.minutes} are over")
                break
            self.measure_limits()
            for shape, form, model in models:
                rows = [row for row in self.rows if (row.shape, row.format) == (shape, form)]
                if rows:
                    limits = self.measure_limits()
                    for row in rows:
                        row.limits.append(limits)
                    self.measure(model, rows, peer_first=number % 2 == 1)
            self.rounds += 1
            print(f"round {self.rounds} of {self.options.repeats}: {time.monotonic() - start:.0f} s", file=sys.stderr)
            self.save()
        print(self.text())

    def measure_limits(self):
        command = [MEASURE, "limits", "--threads", self.options.threads, "--rounds", 3, "--json"]
        limits = Program(command).lines()[0]
        for name, values in limits.items():
            self.limits.setdefault(name, []).extend(values)
        return limits

    def measure(self, model, rows, peer_first):
        sides = [side for side in (self.ours, self.peer) if side]
        if peer_first:
            sides.reverse()
        for side in sides:
            side.speeds(model, [row for row in rows if not row.smaller_is_better and not row.is_single])
        single = [row for row in rows if row.is_single]
        for turn in range(self.options.pairs):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                side.speeds(model, single)
        for row in rows:
            for side in sides:
                if row.kind == "memory":
                    side.memory(model, row)
                elif row.kind == "first-load":
                    side.first_load(model, row)
                elif row.kind == "load":
                    side.load(model, row)

    def text(self):
        peer = f"llama.cpp {self.peer.build}" if self.peer else "no peer"
        variants = sorted({facts["variant"] for facts in self.ours.facts.values()})
        limits = ", ".join(f"{name.replace('_', ' ')} {spread(values)}" for name, values in self.limits.items())
        return "\n".join([
            machine_line(self.machine),
            f"method: {self.options.threads} threads, {self.rounds} rounds, ours and {peer} in turn on the same GGUF "
            f"files (random weights), KV {self.options.kv_type} and f16; {STEPS} decode steps; median (min-max); "
            f"ratios round by round, of decoding one job {self.options.pairs} times a round in turn"
            + (f"; our threads pinned to cores {self.options.pin_cores}" if self.options.pin_cores else ""),
            f"kernels: {' '.join(variants)}",
            f"limits of this run: {limits}",
            "roofline: products with weights against the dot-product peak (bf16's for bf16, bytes' for the others), "
            "or bytes of the file and of keys and values against streaming reads; the arithmetic limits are the best "
            "of three taken just before each model's rows, reads are those of the packed weights just before and after "
            "each of our runs, which stand beside the rows (GB/s); median (min-max)",
            "memory: resident, of a process that prefills 512 tokens; load: from the start of the process with a "
            "warm page cache, tokenizer included, to the end of the first token's step, mapping the file of packed "
            "weights that an earlier start wrote; first-load: the same without that file, computing with the model's "
            "own rows while a thread packs them",
            "", table(self.rows, self.ours)])

    def save(self):
        RESULTS.mkdir(exist_ok=True)
        name = self.options.name or ("engine-quick" if self.options.quick else "engine")
        (RESULTS / f"{name}.txt").write_text(self.text() + "\n")
        facts = {
            "machine": self.machine, "rounds": self.rounds, "threads": self.options.threads,
            "kv_type": self.options.kv_type, "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "peer": self.peer and self.peer.build, "limits": self.limits, "models": self.ours.facts,
            "rows": [{"shape": row.shape, "format": row.format, "work": row.work, "goal": row.goal, "ours": row.ours,
                      "peer": row.peer, "ratios": ratios(row), "limits": row.limits, "reads": row.reads} for row in self.rows],
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows, 2 rounds: about a minute")
    parser.add_argument("--repeats", type=int, help="rounds (default 5; 2 with --quick)")
    parser.add_argument("--minutes", type=float, default=25, help="no round begins after that many")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--rows", help="only rows whose 'shape format work' matches, such as 'q8_0 decode'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-type", default="bf16", help="of our keys and values; the peer's are f16")
    parser.add_argument("--pin-cores", help="cores to pin our compute threads to, such as 0,1")
    parser.add_argument("--pairs", type=int, default=2, help="times a round that decoding one job is measured in turn")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--name", help="of the files in ops/results (default: engine)")
    options = parser.parse_args()
    options.repeats = options.repeats or (2 if options.quick else 5)
    if not MEASURE.exists():
        sys.exit("bench-engine: .build/release/tandem-measure is missing; `make bench-engine` builds it")
    Bench(options).run()


if __name__ == "__main__":
    main()
