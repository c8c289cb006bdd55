// Feature x time on a canvas. The squares come as JSON beside it; the table of features under it
// says the same in words, and its links are what a click or Enter on the map follows.
(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const LABEL = 180, TOP = 4, FOOT = 22;
  const at = { row: 0, column: 0 };

  const part = () => {
    const heat = document.getElementById("heat");
    const data = document.getElementById("heat-data");
    return heat && data ? { heat, canvas: heat.querySelector("canvas"), data: JSON.parse(data.textContent) } : null;
  };

  function rgb(hex) { const n = parseInt(hex.slice(1), 16); return [n >> 16, (n >> 8) & 255, n & 255]; }
  function shade(stops, weight) {
    const x = Math.min(1, Math.max(0, weight)) * (stops.length - 1);
    const i = Math.min(stops.length - 2, Math.floor(x));
    return `rgb(${stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (x - i))).join(" ")})`;
  }

  // What chance alone brings every few squares (p above 1 in 100) stays as good as blank; from
  // there the eye gets the logarithm, full at p = 1e-300.
  const weight = (p) => (p > -2 ? 0.03 * -p : 0.1 + 0.9 * Math.min(1, Math.log(-p / 2) / Math.log(150)));

  const font = (row) => `${Math.min(11.5, row + 2)}px ${css("--font")}`;

  function layout(canvas, data) {
    const width = canvas.clientWidth;
    const row = Math.max(9, Math.min(22, Math.floor(520 / data.features.length)));
    const g = canvas.getContext("2d");
    g.font = font(row);
    const widest = Math.max(...data.features.map((name) => g.measureText(name).width)) + 12;
    const label = Math.ceil(Math.min(widest, LABEL, width * 0.3));
    return { width, row, label, column: (width - label) / Math.max(1, data.times.length), height: TOP + row * data.features.length + FOOT };
  }

  function draw() {
    const p = part();
    if (!p) return;
    const { canvas, data } = p;
    const box = layout(canvas, data);
    const scale = devicePixelRatio || 1;
    canvas.height = box.height * scale;
    canvas.width = box.width * scale;
    canvas.style.height = `${box.height}px`;
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    const stops = [0, 1, 2, 3].map((i) => rgb(css(`--heat-${i}`)));
    const every = Math.ceil(12 / box.row);
    g.font = font(box.row);
    g.textBaseline = "middle";
    data.features.forEach((name, r) => {
      const y = TOP + r * box.row;
      g.fillStyle = css("--muted");
      g.textAlign = "right";
      if (r % every === 0) g.fillText(clip(g, name, box.label - 10), box.label - 8, y + box.row / 2);
      data.times.forEach((_, c) => {
        const value = data.log10_p[r][c];
        if (value === null) return;
        g.fillStyle = shade(stops, weight(value));
        g.fillRect(box.label + c * box.column, y, Math.max(1, box.column - (box.column > 4 ? 1 : 0)), box.row - 1);
        if (data.alarmed[r][c]) mark(g, box.label + (c + 0.5) * box.column, y + (box.row - 1) / 2, Math.min(box.row, box.column), weight(value) > 0.7 ? css("--heat-mark-strong") : css("--heat-mark"));
      });
    });
    times(g, data, box);
    if (document.activeElement === p.heat || p.heat.dataset.over) cursor(g, box);
  }

  function clip(g, text, width) {
    while (text.length > 3 && g.measureText(text).width > width) text = `${text.slice(0, -2)}…`;
    return text;
  }
  function mark(g, x, y, room, colour) {
    g.fillStyle = colour;
    g.beginPath();
    g.arc(x, y, Math.max(0.9, Math.min(2.2, room / 5)), 0, 7);
    g.fill();
  }
  function times(g, data, box) {
    const span = data.times.at(-1) - data.times[0];
    g.fillStyle = css("--muted");
    g.font = `11px ${css("--font")}`;
    const count = Math.max(1, Math.floor((box.width - box.label) / 90));
    for (let i = 0; i <= count; i++) {
      const c = Math.round((i / count) * (data.times.length - 1));
      const x = box.label + (c + 0.5) * box.column;
      g.textAlign = i === 0 ? "left" : i === count ? "right" : "center";
      const edge = i === 0 ? box.label : i === count ? box.width : x;
      g.fillText(clock(data.times[c], span), edge, box.height - FOOT / 2 + 3);
    }
  }
  function clock(t, span) {
    const iso = new Date(t * 1e3).toISOString();
    return span > 172800 ? iso.slice(5, 10) : iso.slice(11, span < 3600 ? 19 : 16);
  }
  function cursor(g, box) {
    g.strokeStyle = css("--focus");
    g.lineWidth = 2;
    g.strokeRect(box.label + at.column * box.column - 1, TOP + at.row * box.row - 1, Math.max(5, box.column) + 1, box.row + 1);
  }

  function tell() {
    const p = part();
    const { features, times: t, log10_p, moved, alarmed } = p.data;
    const value = log10_p[at.row][at.column];
    p.heat.parentElement.querySelector("[data-read]").textContent =
      `${features[at.row]}, ${new Date(t[at.column] * 1e3).toISOString().slice(11, 19)} UTC: ` +
      (value === null ? "no data" : `${alarmed[at.row][at.column] ? "drift alarm" : "within tolerance"}, p = 10^${value.toFixed(1)}, moved by ${moved[at.row][at.column].toFixed(2)}`);
  }

  function move(rows, columns) {
    const { data } = part();
    at.row = Math.min(data.features.length - 1, Math.max(0, at.row + rows));
    at.column = Math.min(data.times.length - 1, Math.max(0, at.column + columns));
    draw(); tell();
  }
  function follow() {
    const name = part().data.features[at.row];
    [...document.querySelectorAll("a[data-feature]")].find((a) => a.dataset.feature === name)?.click();
  }
  function point(event) {
    const p = part();
    const box = layout(p.canvas, p.data);
    const spot = p.canvas.getBoundingClientRect();
    const r = Math.floor((event.clientY - spot.top - TOP) / box.row);
    const c = Math.floor((event.clientX - spot.left - box.label) / box.column);
    if (r < 0 || r >= p.data.features.length || c >= p.data.times.length) return false;
    at.row = r; at.column = Math.max(0, c);
    return true;
  }

  const KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e6], End: [0, 1e6], PageUp: [-10, 0], PageDown: [10, 0] };
  const inHeat = (event) => event.target.closest?.("#heat");
  document.addEventListener("keydown", (event) => {
    if (!inHeat(event)) return;
    if (KEYS[event.key]) { event.preventDefault(); move(...KEYS[event.key]); }
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); follow(); }
  });
  document.addEventListener("pointermove", (event) => {
    const heat = inHeat(event);
    const old = document.getElementById("heat");
    if (heat && point(event)) { heat.dataset.over = "1"; draw(); tell(); }
    else if (old?.dataset.over) { delete old.dataset.over; draw(); }
  });
  document.addEventListener("click", (event) => { if (inHeat(event) && point(event)) { draw(); tell(); follow(); } });
  document.addEventListener("focusin", (event) => { if (inHeat(event)) { move(0, 0); } });
  document.addEventListener("focusout", (event) => { if (inHeat(event)) draw(); });
  document.addEventListener("DOMContentLoaded", draw);
  document.addEventListener("htmx:afterSettle", draw);
  addEventListener("shoal:theme", draw);
  addEventListener("resize", draw);
})();
