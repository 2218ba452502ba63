"""What is measured of one running server; run.py compares two.

A wrong number of matches or a status other than success is an error, never a figure.
"""

import collections
import contextlib
import os
import selectors
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import wire

WORKLIST = wire.associate(wire.MODALITY_WORKLIST, wire.VERIFICATION)
PERFORMED = wire.associate(wire.MPPS, wire.VERIFICATION)
WORKITEMS = wire.associate(wire.UPS_PUSH, wire.UPS_PULL)
WATCH = wire.associate(wire.UPS_WATCH)
ECHO = wire.associate(wire.VERIFICATION)
DRAIN_S = 30  # a client that has not ended this long after the end hangs
PAUSE_S = 0.02  # a rejected client asks again after this
TAKEN, HELD = 0xC301, 0xC302  # what a claim of a claimed workitem hears: another's, one's own


def ask(association, request, matches=0):
    """Send a request and insist on success with so many matches."""
    found, status = association.ask(request)
    if (found, status) != (matches, 0):
        raise wire.PeerError(f"{found} matches for {matches}, status {status:04X}")


def echo(port):
    """One C-ECHO on an association of its own."""
    with wire.Association(port, ECHO) as association:
        ask(association, wire.c_echo())


def answers(port, request):
    """The encoded data sets that answer a query."""
    datasets = []
    with wire.Association(port, WORKLIST, datasets=datasets) as association:
        association.ask(request)
    return datasets


def query_ms(port, request, matches, profile, runs, budget_s, proposal=WORKLIST, before=None):
    """Median ms of a query from connect to release; fewer runs than `runs` past the budget.

    before  is called before each query, and not timed
    """
    times, begin = [], time.perf_counter()
    while len(times) < runs and (not times or time.perf_counter() - begin < budget_s):
        if before:
            before()
        start = time.perf_counter()
        with wire.Association(port, proposal, profile) as association:
            ask(association, request, matches)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def answers_per_second(port, request, matches, runs=1):
    """Rate of answers within a query, from the request to the final status."""
    rates = []
    for _ in range(runs):
        with wire.Association(port, WORKLIST) as association:
            start = time.perf_counter()
            ask(association, request, matches)
            rates.append(matches / (time.perf_counter() - start))
    return statistics.median(rates)


def performed_per_second(port, examinations):
    """MPPS operations a second; one client for each list of (N-CREATE, N-SET)."""

    def report(association, messages):
        for start, end in messages:
            ask(association, start)
            ask(association, end)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(examinations)) as pool:
        clients = [stack.enter_context(wire.Association(port, PERFORMED)) for _ in examinations]
        begin = time.perf_counter()
        list(pool.map(report, clients, examinations))
        elapsed = time.perf_counter() - begin
    return 2 * sum(map(len, examinations)) / elapsed


def idle_share(process_id, port, clients, seconds):
    """Share of a core that a process takes while so many associations say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(clients):
            stack.enter_context(wire.Association(port, WORKLIST))
        time.sleep(1)
        before, begin = cpu_seconds(process_id), time.perf_counter()
        time.sleep(seconds)
        return (cpu_seconds(process_id) - before) / (time.perf_counter() - begin)


def cpu_seconds(process_id):
    """Processor time of all threads of a process so far (Linux)."""
    with open(f"/proc/{process_id}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(process_id):
    """Resident memory of a process (Linux)."""
    with open(f"/proc/{process_id}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


# Workitems --------------------------------------------------------------------------------------


def ask_all(port, requests, proposal=WORKITEMS):
    """Send requests one after the other and insist on success; how many a second."""
    with wire.Association(port, proposal) as association:
        begin = time.perf_counter()
        for request in requests:
            ask(association, request)
        return len(requests) / (time.perf_counter() - begin)


def race(port, claims):
    """Let several clients claim each workitem at once, and insist that one of them wins it.

    claims   for each workitem the requests of the clients
    Returns  the workitems claimed a second, and the requests that won them
    """
    won, clients = [], len(claims[0])
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(wire.Association(port, WORKITEMS)) for _ in range(clients)]
        begin = time.perf_counter()
        for requests in claims:
            for racer, request in zip(racers, requests, strict=True):
                racer.send(request)
            statuses = [racer.answer()[1] for racer in racers]
            if sorted(statuses) != [0, *[TAKEN] * (clients - 1)]:
                raise wire.PeerError(f"not one winner: {statuses}")
            won.append(requests[statuses.index(0)])
            racers.append(racers.pop(0))  # each is the first to send in its turn
        return len(claims) / (time.perf_counter() - begin), won


def check_held(port, claims):
    """Insist that the locks of these claims are those that hold."""
    with wire.Association(port, WORKITEMS) as association:
        for claim in claims:
            if association.ask(claim) != (0, HELD):
                raise wire.PeerError("a claim that succeeded does not hold")


class Asker(threading.Thread):
    """A client that sends one query after the other, associate to release, within `with`."""

    def __init__(self, port, request, matches):
        super().__init__(daemon=True)
        self.port, self.request, self.matches = port, request, matches
        self.times, self.error, self.ended = [], None, threading.Event()

    def run(self):
        """Ask until told to end."""
        try:
            while not self.ended.is_set():
                begin = time.perf_counter()
                with wire.Association(self.port, WORKLIST) as association:
                    ask(association, self.request, self.matches)
                self.times.append((begin, 1000 * (time.perf_counter() - begin)))
        except Exception as error:
            self.error = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        if self.error:
            raise self.error

    def within(self, begin, end):
        """Ms of the queries that were under way between two times."""
        return [ms for start, ms in self.times if start < end and start + ms / 1000 > begin]


# Many clients at once ---------------------------------------------------------------------------


class Crowd:
    """So many clients in one thread, each asking again and again until the time is over."""

    def __init__(self, port, request, matches):
        self.port, self.request, self.matches = port, b"".join(request), matches
        self.selector = selectors.DefaultSelector()
        self.waiting = collections.deque()  # when a failed client may ask again
        self.errors = collections.Counter()
        self.times = []

    def run(self, clients, seconds):
        """Ask for `seconds`; p99 in ms, rate per second, and a count of each error."""
        begin = time.perf_counter()
        self.stop = begin + seconds
        for _ in range(clients):
            self.connect()
        while self.selector.get_map() or self.waiting:
            if time.perf_counter() > self.stop + DRAIN_S:
                break
            self.reconnect()
            for key, _ in self.selector.select(PAUSE_S):
                self.serve(key.fileobj, *key.data)
        if hanging := len(self.selector.get_map()):
            self.errors["hanging"] = hanging
        self.selector.close()
        rate = len(self.times) / (time.perf_counter() - begin)
        return {"p99": p99(self.times), "rate": rate, "errors": self.errors}

    def connect(self):
        """Start one query."""
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect_ex((wire.HOST, self.port))
        state = (time.perf_counter(), wire.Scanner(), self.conversation(client))
        self.selector.register(client, selectors.EVENT_WRITE, state)

    def reconnect(self):
        """Let those ask again that have paused."""
        while self.waiting and self.waiting[0] <= time.perf_counter():
            self.waiting.popleft()
            if time.perf_counter() < self.stop:
                self.connect()

    def conversation(self, client):
        """One query as a generator: is sent each event, ends when it is released."""
        client.send(WORKLIST)
        expect((yield), wire.ASSOCIATE_AC)
        client.send(self.request)
        found = 0
        while (status := expect((yield), wire.P_DATA)) in wire.PENDING:
            found += 1
        if (found, status) != (self.matches, 0):
            raise wire.PeerError(f"{found} matches, status {status:04X}")
        client.send(wire.RELEASE)
        expect((yield), wire.RELEASE_RP)

    def serve(self, client, begin, scanner, conversation):
        """Carry one client on; socket and selector say that it may."""
        try:
            if self.selector.get_key(client).events == selectors.EVENT_WRITE:
                next(conversation)
                self.selector.modify(client, selectors.EVENT_READ, (begin, scanner, conversation))
                return
            chunk = client.recv(262144)
            for event in scanner.feed(chunk) if chunk else [("nothing", "closed")]:
                conversation.send(event)
        except StopIteration:
            self.times.append(1000 * (time.perf_counter() - begin))
            self.end(client)
        except (OSError, wire.PeerError) as error:
            self.errors[str(error)] += 1
            self.end(client, failed=True)

    def end(self, client, failed=False):
        """Close a client's socket; its next query follows."""
        self.selector.unregister(client)
        client.close()
        if failed:
            self.waiting.append(time.perf_counter() + PAUSE_S)
        elif time.perf_counter() < self.stop:
            self.connect()


def expect(event, kind):
    """The second half of an event, which must be of this PDU type."""
    if event[0] != kind:
        raise wire.PeerError(f"PDU type {event[0]} instead of {kind}")
    return event[1]


def p99(times):
    """The 99th percentile; infinite if nothing was ever answered."""
    return sorted(times)[int(len(times) * 0.99)] if times else float("inf")
