"""Load and tables of ops/measure-policies.sh. Standard library only.

Latencies are the coordinator's own stamps (GET /v1/jobs/ID): TTFT from arrival to the first token, JCT from arrival
to the last, normalised latency JCT per output token. The driver streams nothing, so that it takes little of the
machine that it measures.

Method of the latency table. The capacity is what fcfs serves in the middle of a backlog of jobs of the same mix: its
output tokens per second while between 85 and 15 % of them wait, over a job's mean output, so that neither the empty
pipeline at the beginning nor the last long outputs at the end count. Each round has its own seed, and in it every
policy serves the same jobs at the same instants on a cluster of its own, which has served some others before that do
not count; the order of the policies turns from round to round. A figure is the median of the rounds, its spread their
least and greatest; the factor against fcfs is taken round by round. rpm and rpm-queue have a limit per minute and
tenant of a quarter of the capacity, for four tenants; runs of seconds do not come to a minute's limit, so that these
two rows say what counting costs and not what a limit does to those beyond it.
"""

import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
import time


class Refused(Exception):
    pass


class Cluster:
    """One local cluster, its URL and plain HTTP/1.1 over asyncio."""

    def __init__(self, tandem, state, flags):
        self.tandem, self.state, self.flags = tandem, state, flags

    def __enter__(self):
        self.run("up", "--detach", "--port", "0", *self.flags)
        card = json.load(open(f"{self.state}/cluster.json"))
        host = card["url"].split("//")[1]
        self.host, self.port = host.split(":")[0], int(host.split(":")[1])
        return self

    def __exit__(self, *_):
        self.run("down")

    def run(self, verb, *arguments):
        subprocess.run([self.tandem, verb, "--state", self.state, *arguments], check=True, stdout=subprocess.DEVNULL)

    async def request(self, method, path, body=None, headers=(), address=None):
        local = (address, 0) if address else None
        reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=local)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            head = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(data)}"]
            if body is not None:
                head.append("content-type: application/json")
            head += [f"{name}: {value}" for name, value in headers]
            writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + data)
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                status = int(lines[0].split()[1])
                if status >= 200:
                    break
            fields = {l.split(":", 1)[0].lower(): l.split(":", 1)[1].strip() for l in lines[1:] if ":" in l}
            content = await reader.readexactly(int(fields["content-length"])) if "content-length" in fields else b""
            return status, fields, content
        finally:
            writer.close()

    async def get(self, path):
        status, _, content = await self.request("GET", path)
        if status != 200:
            raise Refused(f"{path}: {status}")
        return json.loads(content) if path != "/metrics" else content.decode()

    async def complete(self, prompt, output, seed, tenant, address=None, headers=()):
        """Runs one job to its end; returns its id and text."""
        body = {"prompt": prompt, "max_tokens": output, "ignore_eos": True, "seed": seed, "temperature": 0.9}
        status, fields, content = await self.request(
            "POST", "/v1/completions", body, [("x-tandem-tenant", tenant), *headers], address)
        if status != 200:
            raise Refused(content.decode()[:300])
        return fields["x-tandem-job-id"], json.loads(content)["choices"][0]["text"]

    async def timing(self, job):
        return await self.get(f"/v1/jobs/{job}")

    async def tenants(self, window):
        return {t["name"]: t for t in (await self.get(f"/admin/tenants?window={window}"))["data"]}

    async def settled(self):
        """Waits until no job lives."""
        for _ in range(2400):
            if (await self.get("/admin/cluster"))["live_jobs"] == 0:
                return
            await asyncio.sleep(0.05)
        raise Refused("jobs do not end")


def tokens(rng, count, vocabulary):
    return [rng.randrange(3, vocabulary) for _ in range(count)]


def percentile(values, fraction):
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(math.ceil(fraction * len(ordered)), 1) - 1]


def summary(values):
    return {
        "mean": sum(values) / len(values), "p50": percentile(values, 0.5), "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99), "count": len(values),
    }


def mixed(seed, count, rate, vocabulary, scale):
    """Mixed lengths, heavy-tailed as chat is: most outputs short, a few long; four tenants, the first busiest."""
    rng = random.Random(seed)
    now, jobs = 0.0, []
    for number in range(count):
        now += rng.expovariate(rate)
        draw = rng.random()
        low, high = (4, 24) if draw < 0.7 else (48, 96) if draw < 0.93 else (200, 360)
        prompt = min(int(rng.lognormvariate(4.2, 0.7)) + 8, 384)
        tenant = f"tenant-{min(int(rng.expovariate(0.9)), 3)}"
        jobs.append((now, tenant, tokens(rng, max(int(prompt * scale), 4), vocabulary),
                     max(int(rng.randint(low, high) * scale), 2), number))
    return jobs


async def play(cluster, jobs):
    """Open loop: every job at its instant."""
    began = time.monotonic()

    async def one(at, tenant, prompt, output, seed):
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        try:
            job, _ = await cluster.complete(prompt, output, seed, tenant, address=f"127.0.0.{2 + seed % 8}")
            return job, output
        except Refused as refusal:
            return None, str(refusal)

    answers = await asyncio.gather(*[one(*job) for job in jobs])
    done = [answer for answer in answers if answer[0]]
    refusals = [reason for job, reason in answers if not job]
    elapsed = time.monotonic() - began
    if not done:
        raise Refused(refusals[0])
    rows = []
    for job, output in done:
        view = await cluster.timing(job)
        rows.append((view["timing"]["jct_ms"], view["timing"]["ttft_ms"], view["timing"]["jct_ms"] / output,
                     view["route"]["preemptions"]))
    return {
        "jct_ms": summary([r[0] for r in rows]), "ttft_ms": summary([r[1] for r in rows]),
        "normalised_ms_per_token": summary([r[2] for r in rows]), "preemptions": sum(r[3] for r in rows),
        "refused": len(refusals), "elapsed_s": elapsed, "output_tokens": sum(output for _, output in done),
        "output_tokens_per_second": sum(output for _, output in done) / elapsed,
    }


async def flood(cluster, tenant, outstanding, until, prompt, output, vocabulary, seed):
    """Closed loop: so many jobs under way at every instant."""
    async def client(number):
        rng = random.Random(seed * 1000 + number)
        while time.monotonic() < until:
            length = max(int(rng.uniform(*output)), 1)
            await cluster.complete(tokens(rng, int(rng.uniform(*prompt)), vocabulary), length,
                                   rng.randrange(1 << 30), tenant, address=f"127.0.0.{10 + number % 8}")

    await asyncio.gather(*[client(n) for n in range(outstanding)])


async def capacity(cluster, options, seed):
    """Jobs of the mixed workload per second: output tokens per second in the middle of a backlog, over a job's mean."""
    count = options["calibration"]
    jobs = [(0.0, *job[1:]) for job in mixed(seed, count, 1.0, options["vocabulary"], options["scale"])]
    await warm_up(cluster, options)
    everybody = await cluster.tenants(120)
    before = sum(tenant["tokens"]["decoded"] for tenant in everybody.values())
    playing, marks = asyncio.create_task(play(cluster, jobs)), []
    while not playing.done():
        await asyncio.sleep(0.1)
        rows = (await cluster.tenants(120)).values()
        waiting = sum(tenant["waiting_jobs"] for tenant in rows)
        decoded = sum(tenant["tokens"]["decoded"] for tenant in rows) - before
        if 0.15 * count < waiting < 0.85 * count:
            marks.append((time.monotonic(), decoded))
    await playing
    (began, first), (ended, last) = marks[0], marks[-1]
    return (last - first) / (ended - began) / (sum(job[3] for job in jobs) / count)


async def warm_up(cluster, options):
    """Jobs that count for nothing: caches, cost estimates and learned lengths are there before the clock starts."""
    await play(cluster, mixed(99, options["warm_up"], options.get("rate") or 4.0, options["vocabulary"], options["scale"]))
    await cluster.settled()


async def overload(cluster, options):
    """Two tenants 1:1, unlike in prompts and outputs, both with more waiting than runs, for `seconds`."""
    seconds = options["overload_s"]
    settle = max(3.0, seconds / 10)
    until = time.monotonic() + seconds + settle + 2
    tasks = [
        asyncio.create_task(flood(cluster, "short", 40, until, (16, 64), (8, 40), options["vocabulary"], 1)),
        asyncio.create_task(flood(cluster, "long", 40, until, (64, 256), (60, 160), options["vocabulary"], 2)),
    ]
    # Until the first outputs of both have ended, the slots are not shared as they will be.
    await asyncio.sleep(settle)
    least, end = {"short": 1 << 30, "long": 1 << 30}, time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        now = await cluster.tenants(1)
        least = {name: min(least[name], now[name]["waiting_jobs"]) for name in least}
    shares = await cluster.tenants(seconds)
    await asyncio.gather(*tasks)
    units = {name: shares[name]["served_units"] for name in ("short", "long")}
    return {
        "seconds": seconds, "units": units, "least_waiting": least,
        "difference": abs(units["short"] - units["long"]) / (sum(units.values()) / 2),
        "served_share": {name: shares[name]["served_share"] for name in units},
    }


async def isolation(cluster, options):
    """First-token times of a light tenant alone and beside a flood."""
    async def light(tenant, seconds):
        rng, waits, edges = random.Random(7), [], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job, _ = await cluster.complete(tokens(rng, 96, options["vocabulary"]), 12, 5, tenant)
            view = await cluster.timing(job)
            waits.append(view["timing"]["ttft_ms"])
            edges.append(view["stamps_ms"])
            await asyncio.sleep(0.3)
        return waits, {name: percentile([edge[name] or 0 for edge in edges], 0.5)
                       for name in ("placed", "reserved", "prefilling", "first_token")}

    idle, idle_edges = await light("light", options["light_s"])
    until = time.monotonic() + options["light_s"] + 3
    task = asyncio.create_task(flood(cluster, "flood", 48, until, (32, 160), (40, 120), options["vocabulary"], 3))
    await asyncio.sleep(2)
    beside, beside_edges = await light("light", options["light_s"])
    await task
    return {
        "idle_edges_ms": idle_edges, "beside_edges_ms": beside_edges,
        "idle_ttft_ms": summary(idle), "beside_ttft_ms": summary(beside),
        "median_ratio": summary(beside)["p50"] / summary(idle)["p50"],
        "mean_ratio": summary(beside)["mean"] / summary(idle)["mean"],
    }


async def preempted(cluster, options):
    """The same jobs one by one and all at once: preempted ones must say the same, byte for byte."""
    rng = random.Random(11)
    jobs = [(tokens(rng, 40, options["vocabulary"]), 30 + 40 * (n % 4), n) for n in range(32)]
    alone = [(await cluster.complete(p, o, s, f"t{s % 3}"))[1] for p, o, s in jobs]
    done = await asyncio.gather(*[cluster.complete(p, o, s, f"t{s % 3}") for p, o, s in jobs])
    views = [await cluster.timing(job) for job, _ in done]
    counts = [view["route"]["preemptions"] for view in views]
    different = [s for (_, text), expected, (_, _, s) in zip(done, alone, jobs) if text != expected]
    return {"jobs": len(jobs), "preempted_jobs": sum(1 for c in counts if c), "preemptions": sum(counts),
            "different": len(different)}


def histogram(text, name):
    edges, total, seconds = [], 0, 0.0
    for line in text.splitlines():
        if line.startswith(name + "_bucket"):
            edges.append((line.split('le="')[1].split('"')[0], int(float(line.split()[-1]))))
        elif line.startswith(name + "_sum"):
            seconds = float(line.split()[-1])
        elif line.startswith(name + "_count"):
            total = int(float(line.split()[-1]))
    return edges, total, seconds


async def decisions(cluster, options):
    """Time of the core over one event while `live` jobs of 100 tenants live."""
    name, live = "tandem_coordinator_decision_seconds", options["live"]
    rng = random.Random(13)

    async def submit(number):
        body = {"prompt": tokens(rng, 24, options["vocabulary"]), "max_tokens": 48, "ignore_eos": True, "seed": number}
        headers = [("x-tandem-tenant", f"tenant-{number % 100}"), ("x-tandem-on-disconnect", "continue")]
        await cluster.request("POST", "/v1/completions", dict(body, stream=True), headers,
                              address=f"127.0.0.{20 + number % 8}")

    for first in range(0, live + 40, 40):
        await asyncio.gather(*[submit(n) for n in range(first, first + 40)])
    most = (await cluster.get("/admin/cluster"))["live_jobs"]
    before = histogram(await cluster.get("/metrics"), name)
    least, end = most, time.monotonic() + options["decision_s"]
    number = live + 40
    while time.monotonic() < end:
        now = (await cluster.get("/admin/cluster"))["live_jobs"]
        least = min(least, now)
        for _ in range(min(max(live + 20 - now, 0), 60)):
            await submit(number)
            number += 1
        await asyncio.sleep(0.05)
    after = histogram(await cluster.get("/metrics"), name)
    count, seconds = after[1] - before[1], after[2] - before[2]
    below = [(edge, b - a) for (edge, a), (_, b) in zip(before[0], after[0])]
    p99 = next((edge for edge, total in below if total >= 0.99 * count), "+Inf")
    p999 = next((edge for edge, total in below if total >= 0.999 * count), "+Inf")
    most_time = next((edge for edge, total in below if total >= count), "+Inf")
    return {"live_jobs_least": least, "live_jobs_most": most, "events": count,
            "mean_us": 1e6 * seconds / max(count, 1), "p99_below_s": p99, "p999_below_s": p999, "all_below_s": most_time}


async def measure(what, cluster, options):
    if what == "capacity":
        return await capacity(cluster, options, 5)
    if what == "latency":
        await warm_up(cluster, options)
        jobs = mixed(options["round_seed"], options["jobs"], options["rate"], options["vocabulary"], options["scale"])
        return await play(cluster, jobs)
    result = await {"overload": overload, "isolation": isolation, "preempted": preempted,
                    "decisions": decisions}[what](cluster, options)
    return result


METRICS = ("jct_ms", "ttft_ms", "normalised_ms_per_token")


def latency_table(result):
    rounds = result["rounds"]
    limit = result.get("requests_per_minute")
    lines = [
        f"{result['jobs']} jobs of one seeded workload of mixed lengths at {result['rate']:.2f} jobs/s "
        f"({100 * result['load']:.0f} % of {result['capacity']:.2f} jobs/s, fcfs in the middle of a backlog); "
        f"{rounds} round(s), each its own seed, {result['warm_up']} jobs before that do not count; milliseconds, "
        "median of the rounds (least-greatest)"
        + (f"; rpm, rpm-queue: {limit} requests a minute and tenant"
           if any(name.startswith("rpm") for name in result["latency"]) else ""),
    ]
    rows_of_text = [["policy", "JCT mean", "JCT P95", "JCT P99", "TTFT mean", "TTFT P95", "TTFT P99", "norm mean",
                     "norm P95", "norm P99", "JCT mean / fcfs", "tok/s", "preempted", "refused"]]

    def cell(values, digits=1):
        middle = f"{statistics.median(values):.{digits}f}"
        return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    base = result["latency"].get("fcfs")
    for name, rows in result["latency"].items():
        if not rows:
            continue
        cells = [cell([row[metric][k] for row in rows]) for metric in METRICS for k in ("mean", "p95", "p99")]
        cells.append(cell([row["jct_ms"]["mean"] / other["jct_ms"]["mean"] for row, other in zip(rows, base)], 2)
                     if base else "-")
        cells.append(cell([row["output_tokens_per_second"] for row in rows], 0))
        rows_of_text.append([name, *cells, str(sum(row["preemptions"] for row in rows)),
                             str(sum(row["refused"] for row in rows))])
    widths = [max(len(row[i]) for row in rows_of_text) for i in range(len(rows_of_text[0]))]
    return lines + ["  ".join(text.ljust(width) if i == 0 else text.rjust(width)
                              for i, (text, width) in enumerate(zip(row, widths))) for row in rows_of_text]


def table(result):
    lines = latency_table(result) + [""] if result["latency"] else []
    for name, row in result.get("overload", {}).items():
        lines.append(f"two tenants 1:1 overloaded for {row['seconds']} s, {name}: units {row['units']}, "
                     f"difference {100 * row['difference']:.1f} % of the mean; never fewer waiting than "
                     f"{row['least_waiting']}")
    for name, row in result.get("isolation", {}).items():
        lines.append(f"light tenant beside a flood, {name}: TTFT median {row['idle_ttft_ms']['p50']:.1f} -> "
                     f"{row['beside_ttft_ms']['p50']:.1f} ms ({row['median_ratio']:.2f}x), P99 "
                     f"{row['idle_ttft_ms']['p99']:.1f} -> {row['beside_ttft_ms']['p99']:.1f} ms; medians beside "
                     f"the flood: " + ", ".join(f"{k} {v:.1f}" for k, v in row["beside_edges_ms"].items()))
    for name, row in result.get("preempted", {}).items():
        lines.append(f"preempt and resume, {name}: {row['preempted_jobs']} of {row['jobs']} jobs preempted "
                     f"{row['preemptions']} times, {row['different']} texts differ from the unpreempted run")
    for name, row in result.get("decisions", {}).items():
        lines.append(f"coordinator's core, {name}, {row['live_jobs_least']} to {row['live_jobs_most']} live jobs of 100 "
                     f"tenants: {row['mean_us']:.1f} us per event (mean of {row['events']}), 99 % below "
                     f"{row['p99_below_s']} s, 99.9 % below {row['p999_below_s']} s, all below {row['all_below_s']} s")
    return "\n".join(lines)


def main():
    options = json.loads(sys.argv[1])
    flags = options["flags"]
    # Folders of this machine say nothing to a reader.
    shown = [flag.rsplit("/", 1)[-1] for flag in flags]

    def run(policy, what, more=()):
        state = options["state"]
        if policy.startswith("rpm") and "requests_per_minute" in result:
            more = [*more, "--policy-requests-per-minute", str(result["requests_per_minute"])]
        subprocess.run(["rm", "-rf", state], check=True)
        print(f"{what}, {policy}", file=sys.stderr)
        with Cluster(options["tandem"], state, [*flags, "--policy", policy, *more]) as cluster:
            return asyncio.run(measure(what, cluster, options))

    result = {"machine": options["machine"], "model": options["model"], "flags": shown, "jobs": options["jobs"],
              "load": options["load"], "seed": options["seed"], "rounds": options["rounds"],
              "warm_up": options["warm_up"], "latency": {}}

    def report():
        text = table(result)
        if options["results"]:
            with open(options["results"] + ".json", "w") as file:
                json.dump(result, file, indent=1)
            with open(options["results"] + ".txt", "w") as file:
                file.write(f"machine: {options['machine']}\nmodel: {options['model']}, {' '.join(shown)}\n\n{text}\n")
        return text

    if options["policies"]:
        result["capacity"] = options.get("capacity") or run("fcfs", "capacity")
        result["rate"] = options["rate"] = result["capacity"] * options["load"]
        result["requests_per_minute"] = max(int(result["capacity"] * 60 / 4), 1)
        result["latency"] = {policy: [] for policy in options["policies"]}
    for number in range(options["rounds"] if options["policies"] else 0):
        options["round_seed"] = options["seed"] + number
        turn = number * len(options["policies"]) // options["rounds"]
        for policy in options["policies"][turn:] + options["policies"][:turn]:
            result["latency"][policy].append(run(policy, "latency"))
        result["rounds"] = number + 1
        report()
    for what in options["tests"]:
        result[what] = {}
        for policy in options["fair_policies"] if what != "decisions" else options["fair_policies"][-1:]:
            result[what][policy] = run(policy, what)
            report()
    print(f"machine: {options['machine']}\nmodel: {options['model']}, {' '.join(shown)}\n\n{report()}")


main()
