"use strict";
// Draws the charts of a report from the JSON in #data (exporters/html/charts.py describes it). Tables need no script.
(function () {
  let data = JSON.parse(document.getElementById("data").textContent);
  let many = false; // series
  const shown = new Set(), off = new Set(); // positions of the series that are shown, names of those that are not
  const charts = [], maps = [];
  // Colours and widths are kept: to ask for one after each change of the page would lay all of it out again.
  const colors = new Map(), widths = new Map();
  function css(name) {
    if (!colors.has(name)) colors.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
    return colors.get(name);
  }
  function widthOf(box, panel) {
    const kind = panel ? "panel" : "card";
    if (!widths.has(kind)) widths.set(kind, box.clientWidth);
    return widths.get(kind);
  }
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

  function add(parent, name, text, classes) {
    const made = document.createElement(name);
    if (text != null) made.textContent = text;
    if (classes) made.className = classes;
    parent.append(made);
    return made;
  }

  function card(parent, title, note, wide) {
    const box = document.createElement("div");
    box.className = wide ? "card wide" : "card";
    add(box, "h3", title);
    if (note) add(box, "p", note, "small soft");
    document.getElementById(parent).append(box);
    return box;
  }

  // The numbers of a picture as a table that is made when it is opened. rows() returns arrays, the head first.
  const ROWS = 120;
  function tableOf(box, title, rows) {
    const more = add(box, "details", null, "numbers");
    add(more, "summary", "Table", "small").setAttribute("aria-label", "Table: " + title);
    more.addEventListener("toggle", () => {
      if (!more.open || more.childElementCount > 1) return;
      const [head, ...all] = rows(), step = Math.ceil(all.length / ROWS);
      const hold = add(more, "div", null, "scroll");
      hold.tabIndex = 0;
      hold.setAttribute("role", "group");
      hold.setAttribute("aria-label", title);
      const table = add(hold, "table"), top = add(add(table, "thead"), "tr"), body = add(table, "tbody");
      head.forEach((each) => { add(top, "th", each).scope = "col"; });
      all.forEach((row, k) => { if (k % step === 0) { const tr = add(body, "tr"); row.forEach((cell) => add(tr, "td", cell)); } });
      if (step > 1) add(more, "p", "Each " + step + ". of " + all.length.toLocaleString("en") + " rows; lens report --to csv has all.", "small soft");
    });
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

  // Phases, incidents and failures on a time axis, and the bounds of objectives on the metric's own.
  function mark(u, { runs, target, metric, factor = 1, panel }) {
    const g = u.ctx, box = u.bbox, ratio = devicePixelRatio || 1;
    g.save();
    g.beginPath();
    g.rect(box.left, box.top, box.width, box.height);
    g.clip();
    g.font = 11 * ratio + "px system-ui, sans-serif";
    g.lineWidth = ratio;
    g.textAlign = "left";
    const write = (text, x, y) => { // readable on top of lines
      g.save();
      g.setLineDash([]);
      g.lineWidth = 3 * ratio;
      g.strokeStyle = css("--card");
      g.strokeText(text, x, y);
      g.restore();
      g.fillText(text, x, y);
    };
    let free = -1;
    for (const run of runs) for (const m of data.marks[run]) {
      if (m.kind === "phase" && data.marks[run].filter((each) => each.kind === "phase").length < 2) continue;
      const bad = m.kind !== "phase", next = data.marks[run].find((each) => each.kind === "phase" && each.at_s > m.at_s);
      let x = u.valToPos(m.at_s, "x", true);
      if (!bad && (!next || u.valToPos(next.at_s, "x", true) > box.left)) x = Math.max(x, box.left); // it began before what is shown
      if (x < box.left - ratio || x > box.left + box.width) continue;
      g.strokeStyle = g.fillStyle = css(bad ? "--bad" : "--soft");
      g.setLineDash(bad ? [] : [2 * ratio, 3 * ratio]);
      g.beginPath();
      g.moveTo(x, box.top);
      g.lineTo(x, box.top + box.height);
      g.stroke();
      const text = (bad ? "\u25b2 " : "") + m.label;
      if (x >= free && (bad || !panel)) {
        write(text, x + 4 * ratio, box.top + 11 * ratio);
        free = x + g.measureText(text).width + 8 * ratio;
      }
    }
    g.setLineDash([]);
    g.fillStyle = css("--bad");
    data.series.forEach((s, i) => {
      if (!runs.includes(s.run) || !s.lines.failed || (target != null && target !== i)) return;
      s.lines.failed.forEach((n, k) => {
        if (n > 0) g.fillRect(u.valToPos(data.times[s.run][k], "x", true) - ratio, box.top + box.height - 5 * ratio, 2 * ratio, 5 * ratio);
      });
    });
    for (const run of runs) for (const b of data.bounds[run]) {
      if (b.metric !== metric) continue;
      const y = u.valToPos(b.value * factor, "y", true), above = y < box.top;
      g.strokeStyle = g.fillStyle = css(b.state === "FAIL" ? "--bad" : b.state === "PASS" ? "--good" : "--warn");
      g.setLineDash([6 * ratio, 4 * ratio]);
      if (!above) {
        g.beginPath();
        g.moveTo(box.left, y);
        g.lineTo(box.left + box.width, y);
        g.stroke();
      }
      g.textAlign = "right";
      write((above ? "\u2191 " : "") + (panel ? short(b.value * factor) : b.label), box.left + box.width - 4 * ratio, above ? box.top + 24 * ratio : y - 4 * ratio);
    }
    g.restore();
  }

  // Steps of a time axis: whole seconds, minutes, hours, days.
  const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

  const finite = (values) => values.filter((v) => v != null && isFinite(v));
  const highest = (values) => finite(values).reduce((a, b) => Math.max(a, b), -Infinity);

  // A line whose values can change: values() returns its x and y.
  function line(values, more) {
    const [x, y] = values();
    return Object.assign({ values, x, y }, more);
  }

  const joined = (lines) => uPlot.join(lines.map((l) => [l.x, l.y]), lines.map(() => [2]));

  // lines: [{target, label, x, y, dash, color}]; draws one chart into `box` and makes it usable by keyboard.
  function plot(box, title, lines, options) {
    if (!lines.some((l) => l.y.some((v) => v != null))) {
      add(box, "p", "Nothing was measured.", "soft");
      return;
    }
    const pad = options.panel ? 0 : 32;
    const drawn = [];
    if (options.time) drawn.push((u) => mark(u, options));
    if (options.also) drawn.push(options.also);
    const spec = {
      width: Math.max(160, widthOf(box, options.panel) - pad), height: options.height || 230,
      legend: { live: true },
      cursor: options.time ? { sync: { key: sync.key }, drag: { x: true, y: false } } : { drag: { x: true, y: false } },
      scales: { x: Object.assign({ time: false }, options.x), y: Object.assign({ range: floor }, options.y), right: { range: [0, 100] } },
      axes: [axis(options.xAxis || { values: (_, all) => all.map(clock), incrs: SECONDS }), axis({ size: options.panel ? 46 : 56, values: (_, all) => all.map(short) })].concat(
        options.right ? [axis({ scale: "right", side: 1, size: 50, grid: { show: false }, values: (_, all) => all.map((v) => v + " %") })] : []),
      series: [{ label: options.xLabel || "time", value: options.xValue || ((_, v) => clock(v)) }].concat(lines.map((l) => ({
        label: l.label, scale: l.scale || "y", width: 1.6, dash: l.dash, spanGaps: !options.time,
        points: { show: !!l.points, size: 4, fill: () => (l.color == null ? color(l.target) : color(l.color)) }, paths: l.points ? () => null : undefined,
        stroke: () => (l.color == null ? color(l.target) : color(l.color)),
        show: l.target == null || shown.has(l.target), value: (_, v) => short(v) + (v == null ? "" : options.unit || ""),
      }))),
      hooks: { drawAxes: options.time ? [shade] : [], draw: drawn },
    };
    const u = new uPlot(spec, joined(lines), box);
    charts.push({ u, box, lines, pad, options, name: describe(u, title, lines, options) });
    if (!options.panel) tableOf(box, title, () => rowsOf(lines, options));
  }

  function rowsOf(lines, options) {
    const table = joined(lines);
    const unit = (options.unit || "").trim();
    return [
      [options.xLabel || "time", ...lines.map((l) => l.label + (unit ? " " + unit : ""))],
      ...table[0].map((x, k) => [(options.xValue || ((_, v) => clock(v)))(null, x), ...lines.map((_, i) => short(table[i + 1][k]))]),
    ];
  }

  // What a reader without the picture hears, and arrow keys that move along the axis. Returns what brings it up to date.
  function describe(u, title, lines, options) {
    const wrap = u.root.querySelector(".u-wrap"), unit = options.unit || "";
    const name = () => {
      const ranges = lines.map((l) => [l.label, finite(l.y)]).filter(([, v]) => v.length)
        .map(([label, v]) => label + " from " + short(v.reduce((a, b) => Math.min(a, b))) + " to " + short(highest(v)) + unit);
      wrap.setAttribute("aria-label", title + ". " + ranges.join("; ") + ". Arrow keys move along the axis.");
    };
    wrap.setAttribute("role", "img");
    name();
    wrap.tabIndex = 0;
    const said = add(u.root, "p", "", "unseen");
    said.setAttribute("aria-live", "polite");
    let at = -1;
    wrap.addEventListener("keydown", (e) => {
      const last = u.data[0].length - 1, step = e.shiftKey ? 10 : 1;
      const to = { ArrowRight: at + step, ArrowLeft: at - step, Home: 0, End: last }[e.key];
      if (to == null) return;
      e.preventDefault();
      at = Math.min(last, Math.max(0, to));
      u.setCursor({ left: u.valToPos(u.data[0][at], "x"), top: 0 });
      said.textContent = [u.series[0].value(u, u.data[0][at]), ...lines.map((l, i) => l.label + " " + short(u.data[i + 1][at]) + unit)].join(", ");
    });
    return name;
  }

  function floor(_, low, high) {
    return high == null || high <= 0 ? [0, 1] : [0, high * 1.08];
  }

  const LINES = 4; // in one chart at most; beyond, each target has a small chart with the same axes

  // The end of the y axis that small charts of one figure share.
  function levelled(shared) {
    shared.high = Math.max(0, ...shared.all.map((l) => highest(l.y)));
  }

  // panels: [{target, run, name, lines}], one per target
  function figure(parent, title, note, panels, options) {
    const all = panels.flatMap((p) => p.lines);
    if (!all.length) return;
    if (all.length <= LINES || panels.length === 1) {
      if (panels.length > 1) for (const p of panels) for (const l of p.lines) { l.label = l.label === p.name ? p.name : (p.name + " " + l.label).trim(); l.color = undefined; }
      plot(card(parent, title, note), title, all, Object.assign({ runs: [...new Set(panels.map((p) => p.run))] }, options));
      return;
    }
    const box = card(parent, title, note, true), hold = add(box, "div", null, "multiples");
    const shared = Object.assign({ all }, options, { height: 150, panel: true });
    if (!shared.y) { levelled(shared); shared.y = { range: () => [0, shared.high * 1.08 || 1] }; }
    for (const p of panels) {
      const panel = add(hold, "div", null, "panel");
      panel.dataset.target = p.target;
      add(panel, "h4", p.name);
      plot(panel, title + ", " + p.name, p.lines, Object.assign({ runs: [p.run], target: p.target, shared }, shared));
      panel.hidden = !shown.has(p.target); // only now: a hidden one has no width
    }
    const most = panels.reduce((a, p) => (p.lines.length > a.length ? p.lines : a), []);
    if (most.length > 1) {
      const keys = add(box, "p", null, "small soft keys");
      for (const l of most) add(keys, "span", l.label + (l.dash ? " (dashed)" : "")).style.setProperty("--k", "var(--c" + l.color + ")");
    }
    tableOf(box, title, () => rowsOf(panels.flatMap((p) => p.lines.map((l) => Object.assign({}, l, { label: l.label === p.name ? p.name : p.name + " " + l.label }))), options));
  }

  // Times are shown in s where most of them are seconds.
  function scaled(unit, values) {
    const known = finite(values).sort((a, b) => a - b);
    return unit === "ms" && known.length && known[Math.floor(known.length / 2)] >= 1000 ? ["s", 1e-3] : [unit, 1];
  }

  const times = (values, factor) => (factor === 1 ? values : values.map((v) => (v == null ? null : v * factor)));

  function overTime(title, note, unit, fields, options) {
    const known = data.series.flatMap((s) => fields.flatMap(([field]) => s.lines[field] || []));
    const [shownUnit, factor] = scaled(unit, known);
    const panels = data.series.map((s, i) => ({
      target: i, run: s.run, name: s.name,
      lines: fields.filter(([field]) => s.lines[field] && finite(s.lines[field]).length).map(([field, label, dash], k) => line(
        () => [data.times[s.run], times(s.lines[field], factor)], { target: i, color: k, label: label || s.name, dash })),
    })).filter((p) => p.lines.length);
    figure("time", title, note.replace("{unit}", shownUnit), panels, Object.assign({ time: true, unit: shownUnit && " " + shownUnit, factor }, options));
  }

  // What the plan asks for against what happened, of all targets of a run together.
  function asked(title, note, unit, wanted, label, fields) {
    wanted.forEach((values, run) => {
      if (!values.length) return;
      const of = data.series.filter((s) => s.run === run), x = data.times[run];
      const sum = (field) => x.map((_, k) => of.reduce((a, s) => a + ((s.lines[field] || [])[k] || 0), 0));
      const lines = [line(() => [x, values], { label, color: 3, dash: [6, 4] })].concat(fields.map(([field, name], k) => line(() => [x, sum(field)], { label: name, color: k })));
      const full = data.runs.length > 1 ? title + " of " + data.runs[run] : title;
      plot(card("time", full, note), full, lines, { time: true, unit, runs: [run] });
    });
  }

  function drawTime() {
    asked("Offered and achieved rate", "The rate of the plan, requests sent, and replies that were ok.", " /s", data.asked_rate, "offered", [["sent", "sent"], ["ok", "ok"]]);
    asked("Asked and reached concurrency", "", "", data.asked_in_flight, "asked", [["in_flight", "in flight"]]);
    overTime("Requests per second", "", "/s", [["ok", "ok"], ["failed", "failed", [4, 3]]]);
    overTime("Output tokens per second", "", "tok/s", [["tokens", ""]]);
    for (const m of data.latencies) {
      overTime(m.label, "{unit}, p50 and p99 of each interval. " + m.help, m.unit, [[m.name + "_p50", "p50"], [m.name + "_p99", "p99", [4, 3]]], { metric: m.name });
    }
    if (many || !data.asked_in_flight.some((values) => values.length)) overTime("In flight", "", "", [["in_flight", ""]]);
    overTime("Load of the server", "requests, from its own metrics page", "", [["requests_running", "running"], ["requests_waiting", "waiting", [4, 3]]]);
    overTime("KV cache and GPU of the server", "from its own metrics page", "%", [["kv_cache_usage", "KV cache"], ["gpu_utilisation", "GPU", [4, 3]]]);
    data.health.forEach((c, run) => {
      const x = data.times[run], title = "Lag and CPU of this client" + (data.health.length > 1 ? " of " + data.runs[run] : "");
      plot(card("time", title, "p99 of the loop lag on the left, CPU and steal on the right"), title, [
        line(() => [x, c.lag_us], { color: 0, label: "loop lag, us" }),
        line(() => [x, c.cpu_percent], { color: 1, scale: "right", label: "CPU of the busiest worker, %" }),
        line(() => [x, c.steal_percent], { color: 3, scale: "right", label: "steal, %", dash: [4, 3] }),
      ], { time: true, right: true, runs: [run] });
    });
    const held = data.series.map((s, i) => ({
      target: i, run: s.run, name: s.name,
      lines: ["p50", "p99"].filter((level) => s.lines["itl_ms_" + level]).map((level, k) => line(() => byLoad(s, level), { target: i, color: k, label: level, points: true })),
    })).filter((p) => p.lines.some((l) => l.x.length > 1));
    figure("load", "ITL by requests in flight", "ms; a point is the mean of the intervals with so many in flight", held, {
      xLabel: "in flight", xValue: (_, v) => short(v), unit: " ms", xAxis: { values: (_, all) => all.map(short) },
      x: { range: (_, low, high) => [Math.max(0, low - 1), high + 1] },
    });
  }

  // An x axis may not repeat a value: at each number in flight the mean of the intervals' levels.
  function byLoad(s, level) {
    const sums = new Map();
    s.lines.in_flight.forEach((n, k) => {
      const v = s.lines["itl_ms_" + level][k];
      if (n == null || v == null) return;
      const [a, b] = sums.get(n) || [0, 0];
      sums.set(n, [a + v, b + 1]);
    });
    const x = [...sums.keys()].sort((a, b) => a - b);
    return [x, x.map((n) => sums.get(n)[0] / sums.get(n)[1])];
  }

  const NINES = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999];
  // Only labels that do not overlap the one before; the highest percentiles have precedence.
  function apart(u, all, room = 62) {
    let last = Infinity;
    return all.slice().reverse().map((v) => {
      const at = u.valToPos(v, "x");
      if (last - at < room || at > u.bbox.width / devicePixelRatio - 10) return null;
      last = at;
      return v;
    }).reverse();
  }

  function steps125(low, high) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) for (const s of [1, 2, 5]) found.push(+(s * 10 ** e).toPrecision(1));
    return found.filter((v) => v >= low && v <= high);
  }

  function drawDistributions() {
    for (const d of data.distributions) {
      const [unit, factor] = scaled(d.unit, d.curves.map((c) => c.curve.v[Math.floor(c.curve.v.length / 3)]));
      const by = data.series.map((s, i) => ({ target: i, run: s.run, name: s.name, curves: d.curves.filter((c) => c.target === i) })).filter((p) => p.curves.length);
      const several = by.length > 1 && d.curves.some((c) => c.scheduled);
      const panels = by.map((p) => ({ target: p.target, run: p.run, name: p.name, lines: p.curves.map((c) => ({
        target: p.target, color: c.scheduled ? 1 : 0, label: c.scheduled ? "from schedule" : several ? "from sending" : p.name,
        x: c.curve.p.map((q) => 1 / (1 - q)), y: times(c.curve.v, factor), dash: c.scheduled ? [4, 3] : undefined,
      })) }));
      figure("distributions", d.label + " by percentile", unit + ", the axis is logarithmic in 1/(1 - percentile)", panels, {
        x: { distr: 3, log: 10 }, unit: " " + unit, xLabel: "percentile",
        xValue: (_, v) => (v == null ? "–" : +(100 * (1 - 1 / v)).toPrecision(6) + " %"),
        xAxis: {
          splits: (u) => NINES.map((p) => 1 / (1 - p)).filter((v) => v >= u.scales.x.min * 0.999 && v <= u.scales.x.max * 1.001),
          filter: (_, all) => all,
          values: (u, all) => apart(u, all).map((v) => (v == null ? "" : +(100 * (1 - 1 / v)).toPrecision(7) + " %")),
        },
      });
      const cdf = by.map((p) => ({ target: p.target, run: p.run, name: p.name, lines: p.curves.filter((c) => !c.scheduled).map(({ curve }) => {
        const rising = (_, k) => k === 0 || curve.v[k] > curve.v[k - 1]; // an x axis may not repeat a value
        return { target: p.target, color: 0, label: p.name, x: times(curve.v.filter(rising), factor), y: curve.p.filter(rising).map((q) => 100 * q) };
      }) }));
      const lows = cdf.flatMap((p) => p.lines.map((l) => l.x[0])), highs = cdf.flatMap((p) => p.lines.map((l) => l.x[l.x.length - 1]));
      const low = Math.min(...lows), high = Math.max(...highs);
      const wide = high > 10 * low, pad = Math.max((high - low) * 0.05, low * 0.001);
      figure("distributions", d.label + ", cumulative distribution", "% of the values that are at most so long", cdf, {
        x: wide ? { distr: 3, log: 10, range: [low, high] } : { range: [low - pad, high + pad] },
        unit: " %", xLabel: unit, xValue: (_, v) => (v == null ? "–" : short(v) + " " + unit),
        xAxis: Object.assign({ values: (_, all) => all.map((v) => (v == null ? "" : short(v))) }, wide ? {
          splits: (u) => steps125(u.scales.x.min, u.scales.x.max), filter: (u, all) => apart(u, all, 34),
        } : {}),
        y: { range: [0, 100] },
      });
    }
  }

  function mix(a, b, t) {
    const p = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16));
    const [x, y] = [p(a), p(b)];
    return "rgb(" + x.map((v, i) => Math.round(v + (y[i] - v) * t)).join() + ")";
  }

  const HINT = "Point at a cell, or move with the arrow keys, to see its numbers.";
  function drawHeat() {
    for (const h of data.heat) {
      const opens = h.metric === "ttft_ms", range = (row) => row[0] + " to " + (row[1] == null ? "more" : row[1]) + " ms";
      const box = card("heat", h.title, "ms from bottom to top; the stronger the colour, the more values in the interval" + (opens ? ". Click a cell, or press Enter, to see requests of it." : ""));
      const canvas = document.createElement("canvas");
      canvas.className = "heat";
      canvas.setAttribute("role", opens ? "button" : "img");
      canvas.tabIndex = 0;
      canvas.setAttribute("aria-label", h.title + ". Arrow keys move between cells" + (opens ? ", Enter opens the requests of one." : "."));
      box.append(canvas);
      const tip = add(box, "p", HINT, "small soft");
      tip.setAttribute("aria-live", "polite");
      const map = { h, canvas, at: null };
      maps.push(map);
      const say = () => {
        const at = map.at;
        tip.textContent = at ? clock(h.times[at.i]) + " to " + clock(h.times[at.i + 1]) + ": " + h.cells[at.i][at.k].toLocaleString("en") + " of " + range(h.rows[at.k]) : HINT;
      };
      const open = () => { if (opens && map.at) document.dispatchEvent(new CustomEvent("cell", { detail: { run: h.run, column: map.at.i, bucket: h.first + map.at.k, where: tip.textContent } })); };
      canvas.addEventListener("pointermove", (e) => { map.at = cellAt(h, canvas, e.offsetX, e.offsetY); say(); });
      canvas.addEventListener("click", (e) => { map.at = cellAt(h, canvas, e.offsetX, e.offsetY); open(); });
      canvas.addEventListener("keydown", (e) => {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[e.key];
        if (e.key === "Enter" || e.key === " ") { e.preventDefault(); open(); }
        if (!step) return;
        e.preventDefault();
        const at = map.at || { i: 0, k: 0 };
        map.at = { i: Math.min(h.cells.length - 1, Math.max(0, at.i + step[0])), k: Math.min(h.rows.length - 1, Math.max(0, at.k + step[1])) };
        say();
        paint(h, canvas, map.at);
      });
      canvas.addEventListener("blur", () => paint(h, canvas));
      tableOf(box, h.title, () => [["time", ...h.rows.map(range)], ...h.cells.map((column, i) => [clock(h.times[i]), ...column.map(String)])]);
      paint(h, canvas);
    }
  }

  const LEFT = 52, BOTTOM = 22;
  function cellAt(h, canvas, px, py) {
    const w = canvas.clientWidth - LEFT, t = canvas.clientHeight - BOTTOM;
    const i = Math.floor((px - LEFT) / w * h.cells.length), k = Math.floor((t - py) / t * h.rows.length);
    return i < 0 || k < 0 || i >= h.cells.length || k >= h.rows.length ? null : { i, k };
  }

  function paint(h, canvas, at) {
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
    if (at) {
      g.strokeStyle = css("--c1");
      g.lineWidth = 2;
      g.strokeRect(LEFT + at.i * w / h.cells.length, t - (at.k + 1) * t / h.rows.length, Math.max(4, w / h.cells.length), t / h.rows.length);
    }
    g.fillStyle = css("--soft");
    g.font = "12px system-ui, sans-serif";
    g.textAlign = "right";
    const step = Math.max(1, Math.ceil(h.rows.length * 15 / t));
    h.rows.forEach((row, k) => { if (k % step === 0) g.fillText(short(row[0]), LEFT - 6, t - k * t / h.rows.length + 3); });
    const last = h.rows[h.rows.length - 1][1];
    const below = (h.rows.length - 1) - (h.rows.length - 1) % step;
    if (last != null && t - below * t / h.rows.length + 3 - 10 >= 13) g.fillText(short(last), LEFT - 6, 10);
    const ends = Math.max(2, Math.min(6, Math.floor(w / 90)));
    for (let i = 0; i < ends; i++) {
      const at = Math.round(i * (h.times.length - 1) / (ends - 1));
      g.textAlign = i === 0 ? "left" : i === ends - 1 ? "right" : "center";
      g.fillText(clock(h.times[at]), LEFT + i * w / (ends - 1), H - 5);
    }
  }

  function drawChips() {
    const bar = document.getElementById("targets");
    bar.hidden = !many;
    if (!many) return;
    data.series.forEach((s, i) => {
      const chip = document.createElement("button");
      chip.className = "chip";
      chip.type = "button";
      chip.setAttribute("aria-pressed", String(shown.has(i)));
      chip.style.setProperty("--c", "var(--c" + (i % 8) + ")");
      chip.append(document.createElement("i"), s.name);
      chip.addEventListener("click", () => {
        const on = !shown.has(i);
        if (on) { shown.add(i); off.delete(s.name); } else { shown.delete(i); off.add(s.name); }
        chip.setAttribute("aria-pressed", String(on));
        for (const panel of document.querySelectorAll('.panel[data-target="' + i + '"]')) panel.hidden = !on;
        for (const c of charts) c.lines.forEach((l, k) => { if (l.target === i) c.u.setSeries(k + 1, { show: on }); });
      });
      bar.append(chip);
    });
  }

  function resize() {
    for (const c of charts) if (c.box.clientWidth) c.u.setSize({ width: Math.max(160, c.box.clientWidth - c.pad), height: c.u.height });
    for (const m of maps) paint(m.h, m.canvas);
    document.dispatchEvent(new Event("redraw"));
  }

  function redraw() {
    colors.clear();
    for (const c of charts) c.u.redraw(false, true);
    for (const m of maps) paint(m.h, m.canvas);
    document.dispatchEvent(new Event("redraw"));
  }

  // On paper: light colours, one column of A4 between its margins.
  function forPaper(on) {
    document.documentElement.classList.toggle("paper", on);
    colors.clear();
    resize();
    redraw();
  }

  const GRIDS = ["time", "load", "distributions", "heat"];

  function draw() {
    many = data.series.length > 1;
    shown.clear();
    data.series.forEach((s, i) => { if (!off.has(s.name)) shown.add(i); });
    for (const id of GRIDS) document.getElementById(id).parentElement.hidden = false; // what is hidden has no width
    drawChips();
    drawTime();
    drawDistributions();
    drawHeat();
    for (const id of GRIDS) {
      const part = document.getElementById(id);
      part.parentElement.hidden = !part.childElementCount;
    }
    document.documentElement.dataset.charts = String(charts.length + maps.length);
  }

  // For a run that goes on (live.js). `show` draws everything anew, with the tables that were open and the focus where it
  // was; `extend` takes in a Point (charts.py), and is false where that needs a chart or a line that is not drawn yet.
  function show(next, requests) {
    const tables = () => [...document.querySelectorAll(".grid .numbers > summary")];
    const stops = () => [...document.querySelectorAll(".grid .u-wrap, .grid canvas, .grid summary, #targets button")];
    const said = (each) => (each.getAttribute("aria-label") || each.textContent).split(". ")[0];
    const open = new Set(tables().filter((each) => each.parentElement.open).map(said));
    const focus = stops().find((each) => each === document.activeElement);
    for (const c of charts) c.u.destroy();
    charts.length = maps.length = 0;
    widths.clear();
    for (const id of [...GRIDS, "targets"]) document.getElementById(id).replaceChildren();
    data = next;
    draw();
    document.dispatchEvent(new CustomEvent("show", { detail: requests }));
    for (const each of tables()) if (open.has(said(each))) each.parentElement.open = true;
    const again = focus && stops().find((each) => said(each) === said(focus));
    if (again) again.focus({ preventScroll: true });
  }

  // Puts the value at the position of its span; false where a line has no value so far, for which it is not drawn.
  function put(values, at, value) {
    if (value != null && !finite(values).length) return false;
    if (values.length || value != null) values[at] = value == null ? null : value;
    return true;
  }

  function extend(point) {
    const at = point.index, health = data.health[0], lines = data.series.map((s) => s.lines);
    if (at > data.times[0].length || point.series.length !== lines.length) return false;
    if (point.series.some((values, i) => Object.keys(values).some((name) => !lines[i][name]))) return false;
    data.times[0][at] = point.time;
    const known = [
      ...lines.flatMap((each, i) => Object.keys(each).map((name) => put(each[name], at, point.series[i][name]))),
      ...["lag_us", "cpu_percent", "steal_percent"].map((name) => put(health[name], at, point[name])),
      ...["asked_rate", "asked_in_flight"].map((name) => put(data[name][0], at, point[name])),
    ];
    if (known.includes(false)) return false;
    data.marks[0] = point.marks;
    data.bounds[0] = point.bounds;
    if (point.limited) data.limited.push(point.limited);
    const changed = charts.filter((c) => c.lines.some((l) => l.values));
    for (const c of changed) for (const l of c.lines) [l.x, l.y] = l.values();
    for (const c of changed) {
      if (c.options.shared && c.options.shared.high != null) levelled(c.options.shared);
      const x = c.u.data[0], zoomed = c.u.scales.x.min > x[0] || c.u.scales.x.max < x[x.length - 1];
      c.u.setData(joined(c.lines), !zoomed);
      if (zoomed) c.u.redraw();
      c.name();
    }
    return true;
  }

  window.lens = { css, short, clock, add, card, tableOf, mix, show, extend, many: () => many };
  draw();
  let waiting = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(resize); });
  window.addEventListener("beforeprint", () => forPaper(true));
  window.addEventListener("afterprint", () => forPaper(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
