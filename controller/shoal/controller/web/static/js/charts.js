// Line charts drawn from the table that stands under them: the table is the data, the chart its
// picture. <figure data-chart="unit"> holds .plot (empty, data-keep) and a table whose first
// column carries Unix seconds, or with data-x="round" whole numbers, and whose other columns carry
// numbers, all in data-v.
(() => {
  const charts = new Map(); // figure id -> uPlot
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const FORMS = {
    us: (v) => v == null ? "" : (v >= 1e6 ? `${+(v / 1e6).toPrecision(3)} s` : v >= 1e3 ? `${+(v / 1e3).toPrecision(3)} ms` : `${+v.toPrecision(3)} µs`),
    pct: (v) => `${+v.toFixed(1)} %`,
    plain: (v) => `${+v.toPrecision(3)}`,
    rate: (v) => (v >= 1e3 ? `${+(v / 1e3).toPrecision(3)}k` : `${+v.toPrecision(3)}`),
  };

  function read(figure) {
    const columns = [...figure.querySelectorAll("thead th")].map(() => []);
    for (const row of figure.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, i) => {
        const v = cell.dataset.v;
        columns[i].push(v === undefined || v === "" ? null : Number(v));
      });
    }
    return columns;
  }

  // Latency is read in factors, so it gets a logarithmic scale; shares end at 100 %.
  function scale(kind) {
    if (kind === "us") {
      return { distr: 3, range: (u, min, max) => [10 ** Math.floor(Math.log10(min || 1)), 10 ** Math.ceil(Math.log10((max || 1) * 1.01))] };
    }
    if (kind === "pct") return { range: (u, min) => [Math.max(0, Math.min((min ?? 100) - 3, 97)), 100] };
    return { range: (u, min, max) => [0, max > 0 ? max * 1.12 : 1] };
  }

  function options(figure, plot, names) {
    const form = FORMS[figure.dataset.chart];
    const rounds = figure.dataset.x === "round";
    // Midnight is told by its date where more than one may be in sight.
    const ends = (span) => (at) => at.map((t) => {
      const text = new Date(t * 1e3).toISOString();
      return span > 86400 && t % 86400 === 0 ? text.slice(5, 10) : text.slice(11, span < 600 ? 19 : 16);
    });
    const below = (u, at) => (rounds ? at.map((n) => (Number.isInteger(n) ? `${n}` : "")) : ends(u.scales.x.max - u.scales.x.min)(at));
    const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: `11px ${css("--font")}` };
    return {
      width: plot.clientWidth, height: plot.clientHeight, tzDate: (ts) => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC"),
      padding: [10, 18, 0, 0], cursor: { y: false, points: { size: 7 } }, legend: { show: false },
      scales: { x: { time: !rounds }, y: scale(figure.dataset.chart) },
      axes: [
        { ...axis, size: 24, gap: 4, space: rounds ? 40 : 64, values: below },
        { ...axis, size: 54, gap: 6, space: 30, values: (u, at) => at.map(form) },
      ],
      series: [{}, ...names.map((name, i) => ({ label: name, stroke: css(`--series-${i + 1}`), width: 2, dash: i ? [6, 4] : undefined, spanGaps: rounds, points: { show: rounds, size: 5 } }))],
      hooks: { setCursor: [(u) => tell(u, figure, names, form)] },
    };
  }

  function tell(u, figure, names, form) {
    const out = figure.querySelector("[data-read]");
    if (!out) return;
    const i = u.cursor.idx;
    const where = (x) => (figure.dataset.x === "round" ? `round ${x}` : new Date(x * 1e3).toISOString().slice(11, 19));
    out.textContent = i == null ? "" : `${where(u.data[0][i])}  ` +
      names.map((n, k) => (u.data[k + 1][i] == null ? "" : `${n} ${form(u.data[k + 1][i])}`)).filter(Boolean).join(", ");
  }

  function draw(figure) {
    const plot = figure.querySelector(".plot");
    const data = read(figure);
    if (!data.length || !data[0].length) return;
    const old = charts.get(figure.id);
    if (old && old.root.isConnected) { old.setData(data); return; }
    const names = [...figure.querySelectorAll("thead th")].slice(1).map((th) => th.textContent);
    plot.replaceChildren();
    charts.set(figure.id, new uPlot(options(figure, plot, names), data, plot));
  }

  const drawAll = () => document.querySelectorAll("figure[data-chart]").forEach(draw);
  const redrawAll = () => { for (const [id, u] of charts) { u.destroy(); charts.delete(id); } drawAll(); };

  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("htmx:afterSettle", drawAll);
  addEventListener("shoal:theme", redrawAll);
  let later = 0;
  addEventListener("resize", () => { clearTimeout(later); later = setTimeout(redrawAll, 150); });
})();
