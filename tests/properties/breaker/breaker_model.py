"""What a circuit breaker must do, written for being read: the reference for the property tests.

No code is shared with the breaker, and it is built the other way round. Nothing is kept up to
date: every event is written down and every question is answered by going through the notes.
Slow and plain. Time is passed in; jitter and clocks that misbehave are tested elsewhere.
"""

SHUTTING = ("open", "half_open", "forced_open")


class Call:
    def __init__(self, era, at, probe):
        self.era, self.at, self.probe, self.outcome = era, at, probe, None


class Model:
    def __init__(self, *, threshold, age, recovery, multiplier, maximum, slots, needed, lease, rate):
        self.threshold, self.age = threshold, age
        self.recovery, self.multiplier, self.maximum = recovery, multiplier, maximum
        self.slots, self.needed, self.lease = slots, needed, lease
        self.rate = rate  # None or (kind, size, min_calls, rate, slow_duration, slow_rate)
        self.state, self.era = "closed", 0
        self.calls, self.arrows = [], []
        self.opened_at = self.until = None
        self.attempt = 0
        self.row = []  # times of counted failures since the last success or fresh start
        self.results = []  # (time, failed, duration) since the last fresh start
        self.tally = dict.fromkeys(
            ("success", "failure", "ignore", "cancel", "stale", "rejected", "empty"), 0
        )

    # -- questions -----------------------------------------------------------------------------

    def under_way(self):
        return [c for c in self.calls if c.outcome is None]

    def probes(self):
        return [c for c in self.under_way() if c.probe and c.era == self.era]

    def good_probes(self):
        return sum(c.probe and c.era == self.era and c.outcome == "success" for c in self.calls)

    def in_a_row(self, now):
        return len(
            self.row if self.age is None else [t for t in self.row if now - t <= self.age][-self.threshold :]
        )

    def wait(self):
        return min(self.maximum, self.recovery * self.multiplier**self.attempt)

    def too_bad(self, now):
        if self.rate is None:
            return self.in_a_row(now) >= self.threshold
        kind, size, least, rate, slow_duration, slow_rate = self.rate
        if kind == "calls":
            seen = self.results[-size:]
        else:
            sixtieth = size / 60
            seen = [r for r in self.results if now // sixtieth - r[0] // sixtieth < 60]
        if len(seen) < least:
            return False
        failed = sum(r[1] for r in seen) / len(seen) >= rate
        slow = slow_rate is not None and sum(r[2] > slow_duration for r in seen) / len(seen) >= slow_rate
        return failed or slow

    def retry_after(self, now):
        if self.state == "open":
            return max(0, self.until - now)
        if self.state == "half_open":
            ends = [c.at + self.lease - now for c in self.probes()]
            return max(0, min(ends)) if len(ends) >= self.slots else 0
        return None

    # -- arrows --------------------------------------------------------------------------------

    def go(self, state):
        if state == self.state:
            return
        self.arrows.append((self.state, state))
        self.state, self.era = state, self.era + 1
        if state not in SHUTTING or state == "closed":
            self.start_afresh()

    def start_afresh(self):
        self.row, self.results, self.attempt = [], [], 0

    def open(self, at):
        self.opened_at, self.until = at, at + self.wait()
        self.go("open")

    def lease_over(self, now):
        if self.state == "half_open":
            ends = [c.at + self.lease for c in self.probes()]
            if ends and min(ends) <= now:
                self.attempt += 1
                self.open(min(ends))

    # -- what can be done ----------------------------------------------------------------------

    def ask(self, now):
        if self.state in ("closed", "disabled", "metrics_only"):
            return self.let_in(now, probe=False)
        self.lease_over(now)
        if self.state == "open" and now >= self.until:
            self.go("half_open")
        if self.state == "half_open" and len(self.probes()) < self.slots:
            return self.let_in(now, probe=True)
        self.tally["rejected"] += 1
        return None

    def let_in(self, now, *, probe):
        self.calls.append(Call(self.era, now, probe))
        return self.calls[-1]

    def end(self, call, outcome, now):
        if call.outcome is not None:
            return
        self.lease_over(now)
        call.outcome = outcome
        if call.era != self.era:
            self.tally["stale"] += 1
            return
        if self.state == "disabled":
            return
        self.tally[outcome] += 1
        if outcome in ("ignore", "cancel"):
            self.tally["empty"] += call.probe
            return
        if outcome == "failure":
            self.row.append(now)
        else:
            self.row = []
        if call.probe:
            self.judge_probe(outcome, now)
        else:
            self.results.append((now, outcome == "failure", now - call.at))
            if self.state == "closed" and (outcome == "failure" or self.rate) and self.too_bad(now):
                self.open(now)

    def judge_probe(self, outcome, now):
        if outcome == "failure":
            self.attempt += 1
            self.open(now)
        elif self.good_probes() >= self.needed:
            self.go("closed")

    def by_hand(self, what, now, seconds=None):
        self.lease_over(now)
        manual = self.state in ("forced_open", "disabled", "metrics_only")
        if what == "open_for":
            if manual:
                return
            if self.state == "open":
                self.until = max(self.until, now + seconds)
            else:
                self.opened_at, self.until = now, now + seconds
                self.go("open")
        elif what == "force_open":
            if self.state != "forced_open":
                self.opened_at = now
            self.go("forced_open")
        elif what == "reset" or (what == "enable" and manual):
            self.start_afresh()
            self.go("closed")
        elif what in ("disable", "metrics_only"):
            self.go({"disable": "disabled"}.get(what, what))
