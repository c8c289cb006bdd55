// Live screens. One event stream per page reports changes; each element with
//   data-live="rollout event"       kinds of change it shows
//   data-live-subject="r-1"         only changes of this subject (optional)
//   data-live-every="2"             seconds between refreshes at most
// then fetches itself again (htmx, trigger "live") and is morphed in place, so focus,
// scroll, open dialogs and open <details> stay as they are. A burst causes one refresh. A hidden tab closes its stream, since each costs the server a connection.
(() => {
  const KINDS = ["device", "event", "rollout", "alert", "operation", "release", "dataset", "model", "window", "round", "task"];
  const REST_MS = 5000;   // after the server refused the stream
  const PATIENCE_MS = 6000; // a stream ends now and then and reconnects at once: no alarm
  const timers = new Map();   // element id -> timer of its next refresh
  const asked = new Map();    // element id -> when it was last refreshed
  let stream = null;
  let lost = false;
  let worry = 0;

  Idiomorph.defaults.callbacks.beforeNodeMorphed = (old) =>
    !(old instanceof Element && old.hasAttribute("data-keep"));
  Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) =>
    !(name === "open" && node instanceof HTMLDetailsElement);

  function showStatus(state) {
    for (const badge of document.querySelectorAll("[data-live-status]")) {
      if (badge.dataset.state === state) continue;
      badge.dataset.state = state;
      badge.textContent = { on: "Live", off: "Reconnecting" }[state];
    }
  }

  function refresh(element) {
    if (timers.has(element.id)) return;
    const every = 1000 * Number(element.dataset.liveEvery ?? 2);
    const wait = Math.max(120, (asked.get(element.id) ?? -Infinity) + every - performance.now());
    timers.set(element.id, setTimeout(() => {
      timers.delete(element.id);
      asked.set(element.id, performance.now());
      const still = document.getElementById(element.id);
      if (still) htmx.trigger(still, "live");
    }, wait));
  }

  // The address may have moved on since the page came: a feature chosen, a filter typed.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.triggeringEvent?.type === "live") event.detail.path = location.pathname + location.search;
  });

  function changed(kind, subject) {
    for (const element of document.querySelectorAll("[data-live]")) {
      const only = element.dataset.liveSubject;
      const mine = element.dataset.live.split(" ").includes(kind);
      if (mine && (!only || !subject || only === subject)) refresh(element);
    }
  }

  const all = () => document.querySelectorAll("[data-live]").forEach(refresh);

  function open() {
    const address = document.body?.dataset.stream;
    if (stream || !address || document.hidden) return;
    stream = new EventSource(address);
    stream.onopen = () => {
      clearTimeout(worry);
      worry = 0;
      showStatus("on");
      if (lost) all();
      lost = false;
    };
    stream.onerror = () => {
      worry ||= setTimeout(() => { showStatus("off"); lost = true; }, PATIENCE_MS);
      if (stream.readyState !== EventSource.CLOSED) return;
      stream = null;
      setTimeout(open, REST_MS);
    };
    for (const kind of KINDS) {
      stream.addEventListener(kind, (event) => {
        let subject = "";
        try { subject = JSON.parse(event.data).subject ?? ""; } catch { /* a bare event: all */ }
        changed(kind, subject);
      });
    }
  }

  function close() { stream?.close(); stream = null; }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); lost = true; } else { open(); }
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);

  // Relative times advance between changes.
  const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [Infinity, 86400, "d"]];
  setInterval(() => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const age = Math.max(0, Date.now() / 1000 - Number(time.dataset.ago));
      const [, unit, name] = STEPS.find(([until]) => age < until);
      time.textContent = age < 5 ? "just now" : `${Math.floor(age / unit)} ${name} ago`;
    }
  }, 15000);
})();
