"use strict";
// Draws the charts of a report from the JSON in #data (exporters/html/charts.py describes it). Tables need no script.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const shown = new Set(data.series.map((_, i) => i));
  const charts = [];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (i) => css("--c" + (i % 8));
  const sync = uPlot.sync("time");

  function short(v) {
    if (v == null || !isFinite(v)) return "–";
    const a = Math.abs(v);
    if (a >= 1e6) return +(v / 1e6).toPrecision(3) + "M";
    if (a >= 1e4) return +(v / 1e3).toPrecision(3) + "k";
    return String(+v.toPrecision(a >= 1000 ? 4 : 3));
  }

  function clock(s) {
    if (s == null) return "–";
    s = Math.round(s);
    const two = (n) => String(n).padStart(2, "0");
    const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
    if (d) return d + "d " + two(h) + ":" + two(m);
    return h ? h + ":" + two(m) + ":" + two(s % 60) : m + ":" + two(s % 60);
  }

  function card(parent, title, note) {
    const box = document.createElement("div");
    box.className = "card";
    const head = document.createElement("h3");
    head.textContent = title;
    box.append(head);
    if (note) {
      const text = document.createElement("p");
      text.className = "small soft";
      text.textContent = note;
      box.append(text);
    }
    document.getElementById(parent).append(box);
    return box;
  }

  function axis(more) {
    return Object.assign({
      stroke: () => css("--soft"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { stroke: () => css("--grid"), width: 1 },
      font: "12px system-ui, sans-serif",
    }, more);
  }

  function shade(u) {
    u.ctx.save();
    u.ctx.fillStyle = css("--shade");
    for (const [from, to] of data.limited) {
      const left = Math.max(u.valToPos(from, "x", true), u.bbox.left);
      const right = Math.min(u.valToPos(to, "x", true), u.bbox.left + u.bbox.width);
      if (right > left) u.ctx.fillRect(left, u.bbox.top, Math.max(right - left, 2), u.bbox.height);
    }
    u.ctx.restore();
  }

  // Steps of a time axis: whole seconds, minutes, hours, days.
  const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

  // lines: [{target, label, x, y, dash}]
  function plot(box, lines, options) {
    if (!lines.some((l) => l.y.some((v) => v != null))) {
      const none = document.createElement("p");
      none.className = "soft";
      none.textContent = "Nothing was measured.";
      box.append(none);
      return;
    }
    const table = uPlot.join(lines.map((l) => [l.x, l.y]), lines.map(() => [2]));
    const spec = {
      width: box.clientWidth - 32, height: options.height || 230,
      legend: { live: true },
      cursor: options.time ? { sync: { key: sync.key }, drag: { x: true, y: false } } : { drag: { x: true, y: false } },
      scales: { x: Object.assign({ time: false }, options.x), y: Object.assign({ range: floor }, options.y), right: { range: [0, 100] } },
      axes: [axis(options.xAxis || { values: (_, all) => all.map(clock), incrs: SECONDS }), axis({ size: 56, values: (_, all) => all.map(short) })].concat(
        options.right ? [axis({ scale: "right", side: 1, size: 50, grid: { show: false }, values: (_, all) => all.map((v) => v + " %") })] : []),
      series: [{ label: options.xLabel || "time", value: options.xValue || ((_, v) => clock(v)) }].concat(lines.map((l) => ({
        label: l.label, scale: l.scale || "y", width: 1.6, dash: l.dash, spanGaps: !options.time, points: { show: false },
        stroke: () => (l.color == null ? color(l.target) : color(l.color)),
        show: l.target == null || shown.has(l.target), value: (_, v) => short(v) + (v == null ? "" : options.unit || ""),
      }))),
      hooks: options.time ? { drawAxes: [shade] } : {},
    };
    const u = new uPlot(spec, table, box);
    charts.push({ u, box, lines });
  }

  function floor(_, low, high) {
    return high == null || high <= 0 ? [0, 1] : [0, high * 1.08];
  }

  const many = data.series.length > 1;
  const named = (s, what) => (many ? (what ? s.name + " " + what : s.name) : what || s.name);

  function overTime(title, note, unit, fields, options) {
    const lines = [];
    data.series.forEach((s, i) => fields.forEach(([field, label, dash], k) => s.lines[field] && lines.push({
      target: i, color: many ? undefined : k, label: named(s, label), x: data.times[s.run], y: s.lines[field], dash,
    })));
    if (!lines.length) return;
    plot(card("time", title, note), lines, Object.assign({ time: true, unit: " " + unit }, options));
  }

  function drawTime() {
    overTime("Requests per second", "", "/s", [["ok", "ok"], ["failed", "failed", [4, 3]]]);
    overTime("Output tokens per second", "", "tok/s", [["tokens", ""]]);
    for (const m of data.latencies) {
      overTime(m.label, m.unit + ", p50 and p99 of each interval. " + m.help, m.unit, [[m.name + "_p50", "p50"], [m.name + "_p99", "p99", [4, 3]]]);
    }
    overTime("In flight", "", "", [["in_flight", ""]]);
    overTime("Load of the server", "requests, from its own metrics page", "", [["requests_running", "running"], ["requests_waiting", "waiting", [4, 3]]]);
    overTime("KV cache and GPU of the server", "from its own metrics page", "%", [["kv_cache_usage", "KV cache"], ["gpu_utilisation", "GPU", [4, 3]]]);
    const health = [];
    data.health.forEach((c, run) => {
      const where = data.health.length > 1 ? " " + data.runs[run] : "", x = data.times[run];
      health.push({ color: 0, label: "loop lag p99 (left, us)" + where, x, y: c.lag_us });
      health.push({ color: 1, scale: "right", label: "CPU of the busiest worker (right)" + where, x, y: c.cpu_percent });
      health.push({ color: 3, scale: "right", label: "steal (right)" + where, x, y: c.steal_percent, dash: [4, 3] });
    });
    plot(card("time", "Health of this client", ""), health, { time: true, right: true });
  }

  const NINES = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999];
  // Only labels that do not overlap the one before; the highest percentiles have precedence.
  function apart(u, all) {
    let last = Infinity;
    return all.slice().reverse().map((v) => {
      const at = u.valToPos(v, "x");
      if (last - at < 62 || at > u.bbox.width / devicePixelRatio - 10) return null;
      last = at;
      return v;
    }).reverse();
  }

  function drawDistributions() {
    for (const d of data.distributions) {
      const lines = d.curves.map((c) => ({
        target: c.target, color: many ? undefined : c.scheduled ? 1 : 0, label: named(data.series[c.target], c.scheduled ? "from schedule" : ""),
        x: c.curve.p.map((p) => 1 / (1 - p)), y: c.curve.v, dash: c.scheduled ? [4, 3] : undefined,
      }));
      plot(card("distributions", d.label + " by percentile", d.unit + ", the axis is logarithmic in 1/(1 - percentile)"), lines, {
        x: { distr: 3, log: 10 }, unit: " " + d.unit, xLabel: "percentile",
        xValue: (_, v) => (v == null ? "–" : +(100 * (1 - 1 / v)).toPrecision(6) + " %"),
        xAxis: {
          splits: (u) => NINES.map((p) => 1 / (1 - p)).filter((v) => v >= u.scales.x.min * 0.999 && v <= u.scales.x.max * 1.001),
          filter: (_, all) => all,
          values: (u, all) => apart(u, all).map((v) => (v == null ? "" : +(100 * (1 - 1 / v)).toPrecision(7) + " %")),
        },
      });
      const cdf = d.curves.filter((c) => !c.scheduled).map(({ target, curve }) => {
        const rising = (_, k) => k === 0 || curve.v[k] > curve.v[k - 1]; // an x axis may not repeat a value
        return { target, label: named(data.series[target], ""), x: curve.v.filter(rising), y: curve.p.filter(rising).map((p) => 100 * p) };
      });
      const low = Math.min(...cdf.map((c) => c.x[0])), high = Math.max(...cdf.map((c) => c.x[c.x.length - 1]));
      const wide = high > 10 * low, pad = Math.max((high - low) * 0.05, low * 0.001);
      plot(card("distributions", d.label + ", cumulative distribution", "%"), cdf, {
        x: wide ? { distr: 3, log: 10 } : { range: [low - pad, high + pad] },
        unit: " %", xLabel: d.unit, xValue: (_, v) => (v == null ? "–" : short(v) + " " + d.unit),
        xAxis: { values: (_, all) => all.map((v) => (v == null ? "" : short(v))), filter: (u, all) => all.map((v) => (!wide || /^[125]/.test(v.toExponential()) ? v : null)) },
        y: { range: [0, 100] },
      });
    }
  }

  function mix(a, b, t) {
    const p = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16));
    const [x, y] = [p(a), p(b)];
    return "rgb(" + x.map((v, i) => Math.round(v + (y[i] - v) * t)).join() + ")";
  }

  const HINT = "Point at a cell to see its numbers.";
  const maps = [];
  function drawHeat() {
    for (const h of data.heat) {
      const box = card("heat", h.title, "ms from bottom to top; the darker, the more values in the interval");
      const canvas = document.createElement("canvas");
      canvas.className = "heat";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", h.title);
      box.append(canvas);
      const tip = document.createElement("p");
      tip.className = "small soft";
      tip.textContent = HINT;
      box.append(tip);
      maps.push({ h, canvas });
      canvas.addEventListener("pointermove", (e) => {
        const at = cellAt(h, canvas, e.offsetX, e.offsetY);
        tip.textContent = at ? clock(at.from) + " to " + clock(at.to) + ": " + at.n.toLocaleString("en") + " of " + at.low + " to " + at.high + " ms" : HINT;
      });
      paint(h, canvas);
    }
  }

  const LEFT = 52, BOTTOM = 22;
  function cellAt(h, canvas, px, py) {
    const w = canvas.clientWidth - LEFT, t = canvas.clientHeight - BOTTOM;
    const i = Math.floor((px - LEFT) / w * h.cells.length), k = Math.floor((t - py) / t * h.rows.length);
    if (i < 0 || k < 0 || i >= h.cells.length || k >= h.rows.length) return null;
    return { from: h.times[i], to: h.times[i + 1], n: h.cells[i][k], low: h.rows[k][0], high: h.rows[k][1] == null ? "more" : h.rows[k][1] };
  }

  function paint(h, canvas) {
    const ratio = window.devicePixelRatio || 1, W = canvas.clientWidth, H = canvas.clientHeight;
    canvas.width = W * ratio;
    canvas.height = H * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    const w = W - LEFT, t = H - BOTTOM, from = css("--heat-0"), to = css("--heat-1");
    const top = Math.max(1, ...h.cells.map((c) => Math.max(...c)));
    g.fillStyle = from;
    g.fillRect(LEFT, 0, w, t);
    h.cells.forEach((column, i) => column.forEach((n, k) => {
      if (!n) return;
      g.fillStyle = mix(from, to, 0.15 + 0.85 * Math.log1p(n) / Math.log1p(top));
      const x = LEFT + Math.floor(i * w / h.cells.length), x2 = LEFT + Math.floor((i + 1) * w / h.cells.length);
      const y = t - Math.floor((k + 1) * t / h.rows.length), y2 = t - Math.floor(k * t / h.rows.length);
      g.fillRect(x, y, Math.max(1, x2 - x), Math.max(1, y2 - y));
    }));
    g.fillStyle = css("--soft");
    g.font = "12px system-ui, sans-serif";
    g.textAlign = "right";
    const step = Math.max(1, Math.ceil(h.rows.length * 15 / t));
    h.rows.forEach((row, k) => { if (k % step === 0) g.fillText(short(row[0]), LEFT - 6, t - k * t / h.rows.length + 3); });
    const last = h.rows[h.rows.length - 1][1];
    if (last != null && h.rows.length % step === 0) g.fillText(short(last), LEFT - 6, 10);
    const ends = Math.max(2, Math.min(6, Math.floor(w / 90)));
    for (let i = 0; i < ends; i++) {
      const at = Math.round(i * (h.times.length - 1) / (ends - 1));
      g.textAlign = i === 0 ? "left" : i === ends - 1 ? "right" : "center";
      g.fillText(clock(h.times[at]), LEFT + i * w / (ends - 1), H - 5);
    }
  }

  function drawChips() {
    const bar = document.getElementById("targets");
    if (!many) { bar.remove(); return; }
    data.series.forEach((s, i) => {
      const chip = document.createElement("button");
      chip.className = "chip";
      chip.type = "button";
      chip.setAttribute("aria-pressed", "true");
      chip.style.setProperty("--c", "var(--c" + (i % 8) + ")");
      chip.append(document.createElement("i"), s.name);
      chip.addEventListener("click", () => {
        const on = !shown.has(i);
        if (on) shown.add(i); else shown.delete(i);
        chip.setAttribute("aria-pressed", String(on));
        for (const c of charts) c.lines.forEach((l, k) => { if (l.target === i) c.u.setSeries(k + 1, { show: on }); });
      });
      bar.append(chip);
    });
  }

  function resize() {
    for (const c of charts) c.u.setSize({ width: c.box.clientWidth - 32, height: c.u.height });
    for (const m of maps) paint(m.h, m.canvas);
  }

  drawChips();
  drawTime();
  drawDistributions();
  drawHeat();
  let waiting = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(resize); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const c of charts) c.u.redraw(false, true); for (const m of maps) paint(m.h, m.canvas); });
  document.documentElement.dataset.charts = String(charts.length + maps.length);
})();
