"""Notifications over real SMTP and HTTP: what arrives, how often it is tried, what is refused."""

import http.server
import json
import queue
import socketserver
import stat
import threading
import time

import pytest

from fakes import memory_folder
from fleet import Fleet
from shoal.controller.alerts import alerts, upkeep
from shoal.controller.alerts.records import Draft
from shoal.controller.conditions import uptime
from shoal.controller.host.settings import Alerts
from shoal.controller.notifications import channels, outbox, webhook_signature
from shoal.controller.notifications.io import heartbeat, outbound, sender
from shoal.controller.notifications.records import body
from shoal.errors import InputError, LinkError


class Receiver(http.server.ThreadingHTTPServer):
    """An HTTP server on loopback. answers: statuses to give, then 204."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.received = [], []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.received.append((self.path, dict(self.headers), body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        pass


class Mailbox(socketserver.ThreadingTCPServer):
    """An SMTP server on loopback that keeps what it is given (RFC 5321, the least of it)."""

    allow_reuse_address = daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Smtp)
        self.mails = queue.Queue()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Smtp(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 here\r\n")
        lines = None
        for line in self.rfile:
            if lines is not None:
                if line == b".\r\n":
                    self.server.mails.put(b"".join(lines).decode())
                    lines = None
                    self.wfile.write(b"250 kept\r\n")
                else:
                    lines.append(line)
            elif line.upper().startswith(b"DATA"):
                lines = []
                self.wfile.write(b"354 go on\r\n")
            elif line.upper().startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 ok\r\n")


@pytest.fixture
def fleet():
    with memory_folder() as folder:
        made = Fleet(folder)
        settings = made.ctx.settings
        private = Alerts(notify_private=True)
        made.ctx = made.ctx._replace(settings=type(settings)(fleet=settings.fleet, alerts=private))
        outbox.collect(made.ctx)
        yield made


@pytest.fixture
def receiver():
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


def add(fleet, name="hook", kind="webhook", **more):
    return channels.create(fleet.ctx, actor="ana", name=name, kind=kind, **{"sites": []} | more)


def raised(fleet, key="disk/north", severity="critical", site="north"):
    draft = Draft(key, "disk", severity, f"Disk at {site}", "full", "shoal device list", site)
    with fleet.ctx.store.write() as db:
        alerts.raise_alert(db, fleet.ctx, draft)
    outbox.collect(fleet.ctx)


def closed(fleet, key="disk/north"):
    with fleet.ctx.store.write() as db:
        alerts.close(db, fleet.ctx, key, "mended")
    outbox.collect(fleet.ctx)


def send(fleet, seconds=0.0):
    """Deliver what becomes due within so many seconds."""
    made = sender.Sender(fleet.ctx)
    end = fleet.clock.now + seconds
    while made.step() or fleet.clock.now < end:
        fleet.clock.now = min(end, fleet.clock.now + 30) if end > fleet.clock.now else end


def test_a_webhook_is_signed_as_standard_webhooks_says(fleet, receiver):
    made = add(fleet, url=receiver.url + "/in?token=abcdef")
    raised(fleet)
    send(fleet)
    [(path, headers, body)] = receiver.received
    assert path == "/in?token=abcdef"
    given = {k.lower(): v for k, v in headers.items()}
    said = int(given["webhook-timestamp"])
    assert abs(said - fleet.clock()) < 2
    expected = webhook_signature.headers(made.secret, given["webhook-id"], said, body)
    assert given["webhook-signature"] == expected["webhook-signature"]
    message = json.loads(body)
    assert message["type"] == "alert.opened"
    assert message["data"]["alerts"][0]["title"] == "Disk at north"


def test_a_failure_is_tried_again_with_the_same_id_and_each_attempt_is_in_the_log(fleet, receiver):
    add(fleet, url=receiver.url)
    receiver.answers = [503, 500, 204]
    raised(fleet)
    send(fleet, seconds=600)
    ids = {{k.lower(): v for k, v in h.items()}["webhook-id"] for _, h, _ in receiver.received}
    assert len(receiver.received) == 3
    assert len(ids) == 1
    [one] = channels.deliveries(fleet.ctx)
    assert (one.state, one.attempts) == ("sent", 3)
    assert [a.outcome for a in one.tries] == ["failed", "failed", "sent"]
    waits = [b.began_at - a.began_at for a, b in zip(one.tries, one.tries[1:], strict=False)]
    assert waits == [30, 120]
    assert "503" in one.tries[0].error


@pytest.mark.parametrize("status", [302, 404, 410])
def test_a_refusal_is_not_tried_again_nor_followed_and_is_an_alert(fleet, receiver, status):
    add(fleet, url=receiver.url)
    receiver.answers = [status]
    raised(fleet)
    send(fleet, seconds=600)
    assert len(receiver.received) == 1
    [one] = [d for d in channels.deliveries(fleet.ctx) if d.state == "failed"]
    assert str(status) in one.error
    told = [a for a in alerts.list_alerts(fleet.ctx, "open") if a.kind == "notifications"]
    assert "shoal notify test hook" in told[0].next_step
    channels.retry(fleet.ctx, actor="ana", id=one.id)
    send(fleet)
    assert channels.get_delivery(fleet.ctx, one.id).state == "sent"
    assert not [a for a in alerts.list_alerts(fleet.ctx, "open") if a.kind == "notifications"]


def test_an_attempt_that_was_cut_is_known_and_made_again(fleet, receiver, monkeypatch):
    add(fleet, url=receiver.url)
    raised(fleet)
    monkeypatch.setattr(sender.Sender, "_ended", lambda *_: None)  # power fails before the end
    send(fleet)
    monkeypatch.undo()
    send(fleet, seconds=60)
    [one] = channels.deliveries(fleet.ctx)
    assert [a.outcome for a in one.tries] == ["", "sent"]
    assert len(receiver.received) == 2


def test_a_receiver_that_is_away_costs_eight_attempts(fleet):
    add(fleet, url="http://127.0.0.1:9/")
    raised(fleet)
    send(fleet, seconds=5 * 3600)
    [one] = [d for d in channels.deliveries(fleet.ctx) if d.state == "failed"]
    assert one.attempts == sender.MOST


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]/"])
def test_private_addresses_are_refused_unless_a_setting_allows_them(fleet, url):
    fleet.ctx = fleet.ctx._replace(settings=type(fleet.ctx.settings)())
    add(fleet, url=url)
    raised(fleet)
    send(fleet, seconds=100)
    [one] = [d for d in channels.deliveries(fleet.ctx) if d.channel == "hook" and d.attempts]
    assert one.state == "failed"
    assert "notify_private = true" in one.error


PRIVATE = ["10.1.2.3", "169.254.169.254", "127.0.0.1", "::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
           "2002:7f00:1::", "fc00::1", "100.64.0.1", "0.0.0.0", "224.0.0.1"]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_stands_for_a_private_address_is_one(address):
    import ipaddress

    assert not outbound.is_public(ipaddress.ip_address(address))


def test_mail_arrives_by_smtp_with_the_next_step(fleet):
    pytest.importorskip("apprise")
    box = Mailbox()
    port = box.server_address[1]
    url = f"mailto://127.0.0.1:{port}?from=shoal@example.org&to=ana@example.org&mode=insecure"
    add(fleet, "mail", "apprise", url=url)
    raised(fleet)
    send(fleet)
    mail = box.mails.get(timeout=10)
    box.shutdown()
    box.server_close()
    assert "ana@example.org" in mail
    assert "Disk at north" in mail
    assert channels.deliveries(fleet.ctx)[0].state == "sent"


def test_severity_site_and_escalation_choose_who_is_told(fleet, receiver):
    add(fleet, "all", url=receiver.url + "/all", severity="info")
    add(fleet, "critical", url=receiver.url + "/critical", severity="critical")
    add(fleet, "south", url=receiver.url + "/south", sites=["south"])
    add(fleet, "late", url=receiver.url + "/late", escalated_only=True)
    raised(fleet, "a", "warning", "north")
    raised(fleet, "b", "critical", "north")
    raised(fleet, "c", "warning", "south")
    send(fleet)
    paths = sorted(path for path, *_ in receiver.received)
    assert paths == ["/all", "/all", "/all", "/critical", "/south"]
    fleet.clock.now += 4000
    upkeep.upkeep(fleet.ctx)
    outbox.collect(fleet.ctx)
    send(fleet)
    assert "/late" in [path for path, *_ in receiver.received]


def test_quiet_hours_hold_back_all_but_critical_alerts_and_send_them_as_one(fleet, receiver):
    fleet.clock.now = fleet.clock.now // 86_400 * 86_400 + 23 * 3_600  # 23:00 UTC
    add(fleet, url=receiver.url, quiet="22:00-07:00", zone="UTC")
    for number in range(4):
        raised(fleet, f"k{number}", "warning")
    send(fleet)
    assert receiver.received == []
    raised(fleet, "worse", "critical")
    send(fleet)
    assert len(receiver.received) == 1, "the critical one takes the waiting ones along"
    raised(fleet, "later", "warning")
    raised(fleet, "later still", "warning")
    send(fleet, seconds=8.2 * 3600)
    assert json.loads(receiver.received[1][2])["type"] == "alert.digest"
    assert len(receiver.received) == 2


def test_many_at_once_are_a_digest_and_an_end_is_told_too(fleet, receiver):
    add(fleet, url=receiver.url)
    draft = Draft("x", "disk", "warning", "T", "D", "S", "north")
    with fleet.ctx.store.write() as db:
        for number in range(40):
            alerts.raise_alert(db, fleet.ctx, draft._replace(key=f"x{number}"))
    outbox.collect(fleet.ctx)
    send(fleet)
    [(_, _, body)] = receiver.received
    assert len(json.loads(body)["data"]["alerts"]) == 40
    closed(fleet, "x1")
    send(fleet)
    assert json.loads(receiver.received[1][2])["type"] == "alert.ended"


def test_secrets_are_in_a_file_of_their_own_and_in_no_answer_error_or_log(fleet, caplog):
    url = "mailto://ana:hunter22@127.0.0.1:9?to=ana@example.org&mode=insecure"
    add(fleet, "mail", "apprise", url=url)
    raised(fleet)
    path = fleet.ctx.folder / "keys" / "channels" / "mail.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    send(fleet)
    shown = repr(channels.list_channels(fleet.ctx)) + repr(channels.deliveries(fleet.ctx))
    assert "hunter22" not in shown + caplog.text
    assert channels.deliveries(fleet.ctx)[0].attempts == 1
    channels.remove(fleet.ctx, actor="ana", name="mail")
    assert not path.exists()


BAD = [
    {"url": "file:///etc/passwd"}, {"url": "http://a:b@example.org/"}, {"url": "http://[::1"},
    {"url": "https://x.org", "secret": "whsec_short"}, {"url": "https://x.org", "name": "../x"},
    {"url": "https://x.org", "quiet": "25:00-07:00"}, {"url": "https://x.org", "zone": "Mars/X"},
    {"url": "syslog://localhost", "kind": "apprise"}, {"url": "json://h/", "kind": "apprise"},
    {"url": "https://x.org", "severity": "loud"}, {"url": ""},
]  # fmt: skip


@pytest.mark.parametrize("given", BAD)
def test_a_channel_that_cannot_work_is_refused_without_repeating_its_secret(fleet, given):
    with pytest.raises(InputError) as refused:
        add(fleet, **given)
    assert "a:b" not in str(refused.value)
    assert "short" not in str(refused.value)
    assert channels.list_channels(fleet.ctx) == []


def test_a_test_message_ignores_the_hour(fleet, receiver):
    add(fleet, url=receiver.url, quiet="00:00-23:59")
    ident = channels.send_test(fleet.ctx, actor="ana", name="hook")
    send(fleet)
    sent = channels.get_delivery(fleet.ctx, ident)
    assert sent.state == "sent"
    assert "alert show" not in body(sent.events), "there is no alert to show"


def test_the_heartbeat_stops_when_ingest_link_or_database_does(fleet, receiver):
    settings = Alerts(notify_private=True, heartbeat_url=receiver.url + "/alive")
    fleet.ctx = fleet.ctx._replace(settings=type(fleet.ctx.settings)(alerts=settings))
    assert not heartbeat.send(fleet.ctx), "never noted"
    uptime.note(fleet.ctx, connected=True)
    assert heartbeat.send(fleet.ctx)
    fleet.clock.now += 300
    uptime.note(fleet.ctx, connected=False)
    assert not heartbeat.send(fleet.ctx)
    assert [path for path, *_ in receiver.received] == ["/alive"]
    uptime.note(fleet.ctx, connected=True)
    receiver.answers = [500]
    assert not heartbeat.send(fleet.ctx)


def test_a_receiver_that_never_answers_is_given_up(fleet, monkeypatch):
    monkeypatch.setattr(outbound, "TIMEOUT_S", 0.2)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        began = time.monotonic()
        url = f"http://127.0.0.1:{silent.server_address[1]}/"
        with pytest.raises(LinkError):
            outbound.request("POST", url, private=True, headers={})
        assert time.monotonic() - began < 5
