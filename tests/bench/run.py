"""Measure minris against wlmscpfs (DCMTK) and, for MPPS and UPS, the obvious pynetdicom server.

    python tests/bench/run.py [--quick] [--sizes 100,1000,10000,100000] [--rounds 5]
                              [--minris PATH] [--only query,stream,...] [--out FILE.json]

Starts everything itself, on free loopback ports and in a temporary folder (TMPDIR says on which
disk), and prints a Markdown table. Each round visits product and peer in turn, so the machine's
drift hits both alike; figures are medians over the rounds, ratios medians of the rounds' ratios
and say how many times better minris is. Nothing else should run on the machine. Needs Linux,
pynetdicom and DCMTK's wlmscpfs. Exit status 0: every goal met, 1: not, 2: wrong usage.
"""

import argparse
import collections
import contextlib
import datetime
import functools
import itertools
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import boards as people
import commitment
import entries
import fsync_rate
import load
import ups
import web
import wire
from servers import (
    WLMSCPFS,
    Archive,
    Boards,
    Box,
    EmptyWeb,
    Server,
    Site,
    SocketWatchers,
    Watchers,
    free_port,
    stock_server,
)  # fmt: skip

SOURCE = Path(__file__).resolve().parents[2] / "minris.py"
QUERY_GOALS = {100: 40, 1000: 100, 10_000: 400}  # entries: times faster than wlmscpfs
MPPS_GOALS = {1: (300, 0.15), 8: (400, 0.25)}  # clients: operations/s, or share of disk commits/s
EXAMINATIONS = {1: 200, 8: 50}  # clients: pairs of N-CREATE and N-SET that each sends
CLAIM_GOAL = (300, 0.15)  # claims/s, or share of disk commits/s
RACERS, WATCHERS = 8, 100
LET_GO_S = 4  # an association kept for a burst of events is released before this
HTTP_GOAL = 500  # requests a second
SOCKETS, IDLE_SOCKETS = 200, 500
IMAGES, REQUESTS = 2000, 100
EXAMS, BOARDS = 300, 50  # of a day; open in browsers
WORKITEMS = (1000, 100_000)  # in the stores that are searched


class Bench:
    """The options, the sites made when first needed, and the rows gathered so far."""

    COLUMNS = ("what", "minris", "peer", "ratio", "goal", "met")

    def __init__(self, options, stack):
        self.options, self.quick, self.stack = options, options.quick, stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.today = datetime.date.today()
        self.day = wire.c_find(entries.days_query(self.today))
        self.everything = wire.c_find(entries.worklist_query())
        self.rows, self.raw, self.sites, self.boxes = [], {}, {}, {}
        self.unclaimed = ups.unclaimed(self.today)

    def site(self, size, purpose="query"):
        """The site with so many entries; one whose steps are performed needs its own."""
        if (size, purpose) not in self.sites:
            progress(f"{size} entries: writing, importing, starting")
            site = Site(self.folder, self.options.minris, size, self.today)
            for server in (site.minris, site.wlmscpfs):
                self.run(server)
            site.check(self.day, entries.planted_ids(site.entries, self.today))
            self.raw[f"import of {size} entries for {purpose}, s"] = site.import_s
            self.sites[size, purpose] = site
        return self.sites[size, purpose]

    def box(self, name, number=0):
        """A minris alone, with so many workitems."""
        if name not in self.boxes:
            progress(f"{number} workitems: writing, starting")
            box = self.boxes[name] = Box(self.folder, self.options.minris, name)
            if number:
                self.raw[f"writing {number} workitems, s"] = box.fill(number, ups.MATCHES)
            self.run(box.minris)
        return self.boxes[name]

    @functools.cached_property
    def stock(self):
        """The pynetdicom server."""
        return self.run(stock_server(self.folder))

    def commit_rate(self):
        """One-row commits a second of the disk, now."""
        return fsync_rate.commits_per_second(self.folder, 0.5 if self.quick else 2)

    def create_workitems(self, port, number):
        """Create so many more; their UIDs."""
        made = [ups.creation(each) for each in itertools.islice(self.unclaimed, number)]
        load.ask_all(port, [request for _, request in made])
        return [uid for uid, _ in made]

    def run(self, server):
        """Start a server that is stopped at the end at the latest."""
        self.stack.callback(server.stop)
        server.start()
        return server

    def turns(self, figure):
        """Count the rounds, aloud."""
        for turn in range(self.options.rounds):
            progress(f"{figure}: round {turn + 1} of {self.options.rounds}")
            yield turn

    def row(self, what, unit, mine, peer=(), better=None, goal="", met=None):
        """Add a row; `mine` and `peer` are the rounds' figures."""
        texts = [number(statistics.median(each), unit) if each else "" for each in (mine, peer)]
        verdict = {None: "", True: "yes", False: "**no**"}[met]
        self.rows.append((what, *texts, "" if better is None else number(better), goal, verdict))
        self.raw[what] = {"unit": unit, "minris": mine, "peer": peer}

    def markdown(self):
        """The table."""
        rows = [self.COLUMNS, ("---",) * len(self.COLUMNS), *self.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def progress(text):
    """Say what is being done, beside the table."""
    print(text, file=sys.stderr, flush=True)


def number(value, unit=""):
    """A figure with about three digits."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def ratio(tops, bottoms):
    """Median of the rounds' ratios."""
    return statistics.median(top / bottom for top, bottom in zip(tops, bottoms, strict=True))


# Figures ----------------------------------------------------------------------------------------


def query(bench):
    """One query of ten matches, associate to release, by size and client profile."""
    sizes, times = bench.options.sizes, collections.defaultdict(list)
    sites = [bench.site(size) for size in sizes]
    limits = (15, 0.5) if bench.quick else (50, 1.5)
    for turn in bench.turns("query"):
        for site, profile in itertools.product(sites, wire.PROFILES):
            for name, port in site.in_turn(turn):
                took = load.query_ms(port, bench.day, entries.MATCHES, profile, *limits)
                times[site.number, profile, name].append(took)
    for size, profile in itertools.product(sizes, wire.PROFILES):
        query_row(bench, times, size, profile)
    mine, peer = (
        [large / small for large, small in zip(times[large], times[small], strict=True)]
        for large, small in (
            ((max(sizes), "lean", name), (min(sizes), "lean", name))
            for name in ("minris", "wlmscpfs")
        )
    )
    what = f"the same, growth from {min(sizes):,} to {max(sizes):,} entries, lean client"
    bench.row(what, "times", mine, peer, None, "≤ 2.5 times", statistics.median(mine) <= 2.5)


def query_row(bench, times, size, profile):
    """The row of one size and profile: lean is held to a ratio, split to lean."""
    mine, peer = times[size, profile, "minris"], times[size, profile, "wlmscpfs"]
    better, goal, met = ratio(peer, mine), "", None
    if profile == "lean" and size in QUERY_GOALS:
        goal, met = f"ratio ≥ {QUERY_GOALS[size]}", better >= QUERY_GOALS[size]
    elif profile == "split":
        to_lean = ratio(mine, times[size, "lean", "minris"])
        goal, met = f"≤ 1.3 of lean ({number(to_lean)})", to_lean <= 1.3
    what = f"one query, 10 matches of {size:,}, {profile} client"
    bench.row(what, "ms", mine, peer, better, goal, met)


def stream(bench):
    """Answers a second of a universal query, right after a start and again."""
    site, rates = bench.site(1000), collections.defaultdict(list)
    for turn in bench.turns("stream"):
        site.minris.restart()
        for when, runs in (("first time", 1), ("repeated", 3)):
            for name, port in site.in_turn(turn):
                rate = load.answers_per_second(port, bench.everything, site.number, runs)
                rates[when, name].append(rate)
    for when, least in (("first time", 3), ("repeated", 20)):
        mine, peer = rates[when, "minris"], rates[when, "wlmscpfs"]
        what, better = f"answers a second, {site.number:,} matches, {when}", ratio(mine, peer)
        bench.row(what, "/s", mine, peer, better, f"ratio ≥ {least}", better >= least)


def crowd(bench):
    """A hundred clients at once."""
    site, figures = bench.site(1000), collections.defaultdict(list)
    for turn in bench.turns("crowd"):
        for name, port in site.in_turn(turn):
            clients = load.Crowd(port, bench.day, entries.MATCHES)
            for key, value in clients.run(100, 1 if bench.quick else 5).items():
                figures[key, name].append(value)
    late, rates, errors = (
        (figures[key, "minris"], figures[key, "wlmscpfs"]) for key in ("p99", "rate", "errors")
    )
    what, met = "100 clients at once", statistics.median(late[0]) <= 100
    bench.row(f"{what}, 99 % answered in", "ms", *late, ratio(*late[::-1]), "≤ 100 ms", met)
    bench.row(f"{what}, queries", "/s", *rates, ratio(*rates))
    counts = [[sum(error.total() for error in each)] for each in errors]
    met = counts[0] == [0]
    bench.row(f"{what}, errors, rejects, hangs", "", *counts, goal="0", met=met)
    bench.raw[f"{what}, kinds of errors"] = errors


def idle(bench):
    """What open associations cost that say nothing."""
    site, seconds = bench.site(1000), 5 if bench.quick else 20
    progress("idle")
    share = 100 * load.idle_share(site.minris.process.pid, site.minris.port, 50, seconds)
    bench.row("50 idle associations", "% of a core", [share], goal="≤ 0.3 %", met=share <= 0.3)


def start(bench):
    """Start to first C-ECHO and memory: as installed, and as a lone copied file."""
    small, site = bench.site(100), bench.site(1000 if bench.quick else 10_000)
    start_rows(bench, "minris", small, small.minris, 0.4, 60)
    start_rows(bench, "minris", site, site.minris, 0.4, 60)
    site.minris.stop()
    start_rows(bench, "lone minris.py", site, lone_server(bench, site), 0.8, 62)
    site.minris.start()


def lone_server(bench, site):
    """A lone copy of the file on the store of a site."""
    file, given = bench.folder / "lone" / "minris.py", bench.options.minris[-1]
    file.parent.mkdir()
    shutil.copy(given if given.suffix == ".py" else SOURCE, file)
    command = [sys.executable, file, "serve", *site.config]
    return Server(command, site.minris.port, file.with_suffix(".log"))


def start_rows(bench, who, site, server, limit_s, limit_mib):
    """The two rows of one way to start."""
    seconds, memory, what = [], [], f"{who}, {site.number:,} entries"
    bench.stack.callback(server.stop)
    for _ in bench.turns(f"start of {what}"):
        seconds.append(server.restart())
        memory.append(site.resident_mib(server))
    if server is not site.minris:
        server.stop()
    met = statistics.median(seconds) <= limit_s, statistics.median(memory) <= limit_mib
    what_s, what_mib = f"{what}: start to first C-ECHO", f"{what}: memory, both doors"
    bench.row(what_s, "s", seconds, goal=f"≤ {limit_s} s", met=met[0])
    bench.row(what_mib, "MiB", memory, goal=f"≤ {limit_mib} MiB", met=met[1])


def mpps(bench):
    """N-CREATE and N-SET with one and eight clients, for unscheduled and for scheduled steps."""
    site = bench.site(1000 if bench.quick else 10_000, "mpps")
    ports = {"minris": site.minris.port, "stock": bench.stock.port}
    steps = {
        "unscheduled": map(entries.unscheduled, entries.entries(10**7, bench.today, 10**7)),
        "scheduled": itertools.cycle(site.entries),
    }
    rates, commits = collections.defaultdict(list), []
    for turn in bench.turns("mpps"):
        commits.append(bench.commit_rate())
        for clients, kind in itertools.product(MPPS_GOALS, steps):
            count = EXAMINATIONS[clients] // (5 if bench.quick else 1)
            messages = [examinations(steps[kind], count) for _ in range(clients)]
            for name in sorted(ports, reverse=turn % 2):
                rate = load.performed_per_second(ports[name], messages)
                rates[clients, kind, name].append(rate)
    for clients, kind in itertools.product(MPPS_GOALS, steps):
        mine, peer = rates[clients, kind, "minris"], rates[clients, kind, "stock"]
        what = f"MPPS operations, {kind} steps, clients: {clients}"
        mpps_row(bench, what, mine, peer, MPPS_GOALS[clients], statistics.median(commits))
    bench.row("for comparison: one-row commits of this disk", "/s", (), commits)


def examinations(steps, count):
    """The messages of the next so many steps."""
    return [entries.performed(step) for step in itertools.islice(steps, count)]


def mpps_row(bench, what, mine, peer, goal, commits):
    """One row: held to a rate of its own, lower on a slow disk, and to twice the peer's."""
    least, better = min(goal[0], goal[1] * commits), ratio(mine, peer)
    met = statistics.median(mine) >= least and better >= 2
    bench.row(what, "/s", mine, peer, better, f"≥ {number(least)} /s, ratio ≥ 2", met)


def claims(bench):
    """Claims of workitems by one client."""
    ports = {"minris": bench.box("claims").minris.port, "stock": bench.stock.port}
    rates, commits = collections.defaultdict(list), []
    for turn in bench.turns("claims"):
        commits.append(bench.commit_rate())
        for name in sorted(ports, reverse=turn % 2):
            uids = bench.create_workitems(ports[name], 50 if bench.quick else 500)
            rates[name].append(load.ask_all(ports[name], [ups.claim(uid) for uid in uids]))
    mine, peer, what = rates["minris"], rates["stock"], "workitems claimed, clients: 1"
    least = min(CLAIM_GOAL[0], CLAIM_GOAL[1] * statistics.median(commits))
    met = statistics.median(mine) >= least
    bench.row(what, "/s", mine, peer, ratio(mine, peer), f"≥ {number(least)} /s", met)
    shares = [
        [rate / commit for rate, commit in zip(r, commits, strict=True)] for r in (mine, peer)
    ]
    bench.row("the same, for each one-row commit of this disk", "", *shares)
    bench.row("for comparison: one-row commits of this disk", "/s", (), commits)


def racers(bench):
    """Claims of workitems that several clients want at once; who wins one does so alone."""
    ports = {"minris": bench.box("claims").minris.port, "stock": bench.stock.port}
    rates = collections.defaultdict(list)
    for turn in bench.turns("racers"):
        for name in sorted(ports, reverse=turn % 2):
            uids = bench.create_workitems(ports[name], 20 if bench.quick else 200)
            rate, won = load.race(
                ports[name], [[ups.claim(u) for _ in range(RACERS)] for u in uids]
            )
            rates[name].append(rate)
            if name == "minris":
                load.check_held(ports[name], won)
    mine, peer = rates["minris"], rates["stock"]
    what = f"workitems claimed, {RACERS} clients after each, one winner each"
    bench.row(what, "/s", mine, peer, ratio(mine, peer))


def watchers(bench):
    """What it takes to tell many watchers of one change, for them and for who asks meanwhile."""
    told = bench.run(Watchers(bench.folder, WATCHERS))
    site = Site(bench.folder, bench.options.minris, 1000, bench.today, told.devices())
    port = bench.run(site.minris).port
    load.ask_all(port, [ups.subscription(title) for title in told.titles], load.WATCH)
    figures = collections.defaultdict(list)
    for _ in bench.turns("watchers"):
        uids = bench.create_workitems(port, 4 if bench.quick else 25)
        for uid in uids:
            told.last_told(uid, 1)
        with load.Asker(port, bench.day, entries.MATCHES) as asker:
            begin = time.perf_counter()
            time.sleep(LET_GO_S)
            spans = [(begin, time.perf_counter())]
            spans += [claim_told(port, told, uid) for uid in uids]
        first, *others = [end - begin for begin, end in spans[1:]]
        figures["first"].append(first)
        figures["next"].append(statistics.median(others))
        figures["quiet"].append(load.p99(asker.within(*spans[0])))
        busy = [ms for span in spans[1:] for ms in asker.within(*span)]
        figures["busy"].append(load.p99(busy))
        figures["queries"].append(len(busy))
    watchers_rows(bench, figures)
    progress("watchers: idle")
    time.sleep(LET_GO_S)
    share = 100 * load.idle_share(site.minris.process.pid, port, 0, 5 if bench.quick else 20)
    what = f"{WATCHERS} watchers, nothing to tell"
    bench.row(what, "% of a core", [share], goal="≤ 0.3 %", met=share <= 0.3)


def claim_told(port, told, uid):
    """Claim a workitem: when that was, and when the last watcher had been told."""
    begin = time.perf_counter()
    load.ask_all(port, [ups.claim(uid)])
    return begin, told.last_told(uid, 2)


def watchers_rows(bench, figures):
    """The rows of what was told, and of what was asked meanwhile."""
    what = f"a change told to {WATCHERS} watchers, the last after"
    for key, how in (("first", "associations opened"), ("next", "associations kept")):
        met = statistics.median(figures[key]) <= 2
        bench.row(f"{what}, {how}", "s", figures[key], goal="≤ 2 s", met=met)
    met = statistics.median(figures["busy"]) <= 100
    what = "queries of one client, 99 % answered in"
    bench.row(f"{what}, meanwhile", "ms", figures["busy"], goal="≤ 100 ms", met=met)
    bench.row(f"{what}, with nothing to tell", "ms", figures["quiet"])
    bench.raw["queries meanwhile"] = figures["queries"]


def dicomweb(bench):
    """Retrieves and claims of workitems over HTTP."""
    box, empty = bench.box("dicomweb"), bench.run(EmptyWeb(bench.folder))
    token, rates = box.token(), collections.defaultdict(list)
    number = 50 if bench.quick else 500
    for turn in bench.turns("dicomweb"):
        uids = bench.create_workitems(box.minris.port, number)

        def ask_minris(uids=uids):
            rates["minris"].append(web.mix(box.web_port, token, uids))

        def ask_empty():
            rates["empty"].append(web.repeat(empty.port, "/", 4 * number))

        for ask in (ask_minris, ask_empty)[:: -1 if turn % 2 else 1]:
            ask()
    mine, peer = rates["minris"], rates["empty"]
    what = "HTTP: three retrieves and one claim of each workitem, clients: 8"
    met = statistics.median(mine) >= HTTP_GOAL
    bench.row(what, "/s", mine, peer, ratio(mine, peer), f"≥ {HTTP_GOAL} /s", met)


def sockets(bench):
    """What it takes to tell many WebSockets of one change, and to have them open."""
    box = bench.box("sockets")
    process = box.minris.process.pid
    before = load.resident_mib(process)
    told = bench.run(SocketWatchers(bench.folder, box, SOCKETS))
    figures = []
    for _ in bench.turns("sockets"):
        uids = bench.create_workitems(box.minris.port, 4 if bench.quick else 25)
        for uid in uids:
            told.last_told(uid, 1)
        spans = [claim_told(box.minris.port, told, uid) for uid in uids]
        figures.append(statistics.median(end - begin for begin, end in spans))
    what, met = f"a change told on {SOCKETS} WebSockets", statistics.median(figures) <= 0.2
    bench.row(f"{what}, the last after", "s", figures, goal="≤ 0.2 s", met=met)
    told.stop()
    bench.run(SocketWatchers(bench.folder, box, IDLE_SOCKETS))
    progress("sockets: idle")
    share = 100 * load.idle_share(process, box.minris.port, 0, 5 if bench.quick else 60)
    more = load.resident_mib(process) - before
    what = f"{IDLE_SOCKETS} open WebSockets, nothing to tell"
    bench.row(what, "% of a core", [share], goal="≤ 1 %", met=share <= 1)
    bench.row(
        "the same, memory beyond that of the start",
        "MiB",
        [more],
        goal="≤ 40 MiB",
        met=more <= 40,
    )


def commitments(bench):
    """How soon a scanner knows that its images are safe, and what that costs who asks meanwhile."""
    archive, listen = bench.run(Archive(bench.folder)), free_port()
    site = Site(bench.folder, bench.options.minris, 1000, bench.today, archive.devices(listen))
    port = bench.run(site.minris).port
    scanner = bench.run(commitment.Scanner(port, listen))
    number, requests = (200, 20) if bench.quick else (IMAGES, REQUESTS)
    figures = collections.defaultdict(list)
    for _ in bench.turns("commitments"):
        study, series = commitment.new_uid(), commitment.new_uid()
        uids = [commitment.new_uid() for _ in range(number)]
        commitment.store(archive.http_port, study, series, uids)
        scanner.report(study, series, uids)
        begin = scanner.ask(uids)
        figures["one"].append(scanner.results(1) - begin)
        lists = [uids[start : start + 10] for start in range(0, 10 * requests, 10)]
        with load.Asker(port, bench.day, entries.MATCHES) as asker:
            time.sleep(1)
            begin = scanner.ask_at_once(lists)
            end = scanner.results(requests)
        figures["all"].append(end - begin)
        figures["busy"].append(load.p99(asker.within(begin, end)))
    what, met = f"{number:,} images of one study", statistics.median(figures["one"]) <= 5
    bench.row(f"{what}, judged and told after", "s", figures["one"], goal="≤ 5 s", met=met)
    bench.row(f"{requests} requests at once, none lost, the last told after", "s", figures["all"])
    what, met = "queries of one client, 99 % answered in", statistics.median(figures["busy"]) <= 100
    bench.row(f"{what}, meanwhile", "ms", figures["busy"], goal="≤ 100 ms", met=met)


def boards(bench):
    """What the board of a full day takes, and many of them that are open."""
    box, exams = (
        Box(bench.folder, bench.options.minris, "boards"),
        people.of_today(EXAMS, bench.today),
    )
    file = box.folder / "entries.json"
    entries.write_json(file, exams)
    box.call([*box.command, "import", file, *box.config])
    port = bench.run(box.minris).port
    cookie, ask = (
        people.log_in(box.web_port, box.password()),
        functools.partial(people.get, box.web_port),
    )
    figures, steps = collections.defaultdict(list), itertools.cycle(exams)
    for _ in bench.turns("boards: one"):
        load.performed_per_second(port, [examinations(steps, 1)])  # it is rendered anew
        first, content = ask(cookie, "/")
        if people.rows(content) != EXAMS:
            raise RuntimeError(f"{people.rows(content)} exams on the board")
        figures["first"].append(1000 * first)
        more = [ask(cookie, path)[1] for path in people.STATIC]
        figures["size"].append(sum(map(len, (content, *more))) / 1024)
    opened = bench.run(Boards(bench.folder, box.web_port, BOARDS, cookie))
    process, seconds = box.minris.process.pid, 10 if bench.quick else 30
    for _ in bench.turns("boards: open"):
        ((message, last),) = examinations(steps, 1)
        load.ask_all(port, [message], load.PERFORMED)
        opened.last_sent()
        begin = time.perf_counter()
        load.ask_all(port, [last], load.PERFORMED)
        figures["told"].append(opened.last_sent() - begin)
        before, begin = load.cpu_seconds(process), time.perf_counter()
        for message in itertools.chain(*examinations(steps, seconds // 10)):
            load.ask_all(port, [message], load.PERFORMED)
            opened.last_sent()
            time.sleep(5)
        spent = load.cpu_seconds(process) - before
        figures["share"].append(100 * spent / (time.perf_counter() - begin))
    what, met = f"board of {EXAMS} exams that has changed", statistics.median(figures["first"]) < 50
    bench.row(f"{what}, first byte after", "ms", figures["first"], goal="< 50 ms", met=met)
    met = statistics.median(figures["size"]) < 150
    bench.row("the whole page, style and script, transferred", "KiB", figures["size"],
              goal="< 150 KB", met=met)  # fmt: skip
    what, met = (
        f"an N-SET shown on {BOARDS} open boards",
        statistics.median(figures["told"]) <= 1,
    )
    bench.row(f"{what}, the last after", "s", figures["told"], goal="≤ 1 s", met=met)
    what, met = f"{BOARDS} open boards, a change each 5 s", statistics.median(figures["share"]) < 5
    bench.row(what, "% of a core", figures["share"], goal="< 5 %", met=met)


def workitems(bench):
    """One query for what is to be done, of ten matches, by number of workitems."""
    sizes = [each // 10 for each in WORKITEMS] if bench.quick else WORKITEMS
    ports = {size: bench.box(f"{size}-workitems", size).minris.port for size in sizes}
    request, times = ups.query(bench.today), collections.defaultdict(list)
    limits = (15, 0.5) if bench.quick else (100, 3)
    for turn in bench.turns("workitems"):
        for size in sizes[:: -1 if turn % 2 else 1]:

            def change(port=ports[size]):
                bench.create_workitems(port, 1)

            for when, before in (("repeated", None), ("after a change", change)):
                settings = ("lean", *limits, load.WORKITEMS, before)
                took = load.query_ms(ports[size], request, ups.MATCHES, *settings)
                times[when, size].append(took)
    for when in ("repeated", "after a change"):
        workitems_rows(bench, when, [(size, times[when, size]) for size in sizes])


def workitems_rows(bench, when, figures):
    """The rows of one way to ask, and how it grows."""
    for size, times in figures:
        bench.row(f"workitems, 10 matches of {size:,}, {when}", "ms", times)
    (small, before), (large, after) = figures
    growth = [high / low for high, low in zip(after, before, strict=True)]
    what, met = f"growth from {small:,} to {large:,}", statistics.median(growth) <= 2.5
    bench.row(f"the same, {what} workitems", "times", growth, goal="≤ 2.5 times", met=met)


FIGURES = {
    figure.__name__: figure
    for figure in (
        query, stream, crowd, idle, start, mpps, claims, racers, watchers, workitems,
        dicomweb, sockets, commitments, boards,
    )
}  # fmt: skip


# Command line -----------------------------------------------------------------------------------


def arguments():
    """The command line; `minris` becomes the command that starts it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two short rounds, small stores")
    parser.add_argument("--sizes", help="numbers of entries, with commas")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--minris", type=Path, help="the console script or minris.py")
    parser.add_argument("--only", default=",".join(FIGURES), help="some of %(default)s")
    parser.add_argument("--out", type=Path, help="raw figures as JSON")
    options = parser.parse_args()
    sizes = options.sizes or ("100,1000" if options.quick else "100,1000,10000,100000")
    options.sizes = sorted(map(int, sizes.split(",")))
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.only = options.only.split(",")
    options.minris = minris_command(options.minris)
    if unknown := set(options.only) - set(FIGURES):
        parser.error(f"no figure {', '.join(unknown)}")
    if not Path(WLMSCPFS).exists():
        parser.error(f"{WLMSCPFS} is missing: apt install dcmtk")
    return options


def minris_command(path):
    """How minris is started: the given path, the installed script, or the file in this tree."""
    installed = Path(sys.executable).with_name("minris")
    path = (path or (installed if installed.exists() else SOURCE)).absolute()
    return [sys.executable, path] if path.suffix == ".py" else [path]


def main():
    """Measure, print the table; 0 if every goal was met."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    with contextlib.ExitStack() as stack:
        bench = Bench(options, stack)
        for name in options.only:
            try:
                FIGURES[name](bench)
            except Exception:
                traceback.print_exc()
                bench.row(f"{name}: could not be measured", "", (), met=False)
    print(bench.markdown())
    if options.out:
        rows = [dict(zip(bench.COLUMNS, row, strict=True)) for row in bench.rows]
        options.out.write_text(json.dumps({"rows": rows, "raw": bench.raw}, indent=1))
    return int(any("no" in row[-1] for row in bench.rows))


if __name__ == "__main__":
    sys.exit(main())
