"use strict";
// Draws what the report shows of single requests, from the JSON in #rows (exporters/html/requests.py describes it).
(function () {
  const { css, short, clock, add, card, tableOf, mix, many } = window.lens;
  let runs = JSON.parse(document.getElementById("rows").textContent); // null for a run that goes on
  const painted = [];
  const FONT = "12px system-ui, sans-serif";
  const ms = (v) => (v == null ? "–" : v >= 1000 ? short(v / 1000) + " s" : short(v) + " ms");

  function canvasOf(box, label, height) {
    const canvas = document.createElement("canvas");
    canvas.className = "picture";
    canvas.style.height = height + "px";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    canvas.tabIndex = 0;
    box.append(canvas);
    return canvas;
  }

  function context(canvas) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.font = FONT;
    return [g, canvas.clientWidth, canvas.clientHeight];
  }

  // Round values on a logarithmic axis, as many as have room.
  function rounds(low, high, most) {
    for (const steps of [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1]]) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
        for (const s of steps) { const v = s * 10 ** e; if (v >= low * 0.999 && v <= high * 1.001) found.push(+v.toPrecision(3)); }
      }
      if (found.length <= most) return found;
    }
    return [low, high];
  }

  function drawDensity(d, parent) {
    const title = d.title + (many() ? ", " + d.target : "");
    const box = card("load", title, d.count.toLocaleString("en") + " requests; the stronger the colour, the more. Lines: percentiles of each column with enough of them.");
    const last = d.lines[d.lines.length - 1], first = d.lines[0];
    const grows = first && last !== first ? " p50 is " + ms(first[1]) + " at " + short(first[0]) + " tokens and " + ms(last[1]) + " at " + short(last[0]) + "." : "";
    const canvas = canvasOf(box, title + "." + grows, 240);
    const legend = add(box, "p", null, "small soft keys");
    ["p50", "p90", "p99"].forEach((name, k) => { if (d.lines.some((l) => l[k + 1] != null)) add(legend, "span", name).style.setProperty("--k", "var(" + ["--c1", "--c2", "--c3"][k] + ")"); });
    tableOf(box, title, () => [[d.x_label, "p50", "p90", "p99"], ...d.lines.map((l) => [short(l[0]), ms(l[1]), ms(l[2]), ms(l[3])])]);
    painted.push(() => paintDensity(d, canvas));
  }

  function paintDensity(d, canvas) {
    const [g, W, H] = context(canvas), L = 56, B = 34, T = 8, w = W - L - 8, h = H - B - T;
    const at = (edges, v) => (Math.log(v) - Math.log(edges[0])) / (Math.log(edges[edges.length - 1]) - Math.log(edges[0]));
    const x = (v) => L + w * at(d.columns, v), y = (v) => T + h * (1 - at(d.rows, v));
    const top = Math.max(...d.cells.map((c) => c[2])), from = css("--heat-0"), to = css("--heat-1");
    g.fillStyle = from;
    g.fillRect(L, T, w, h);
    for (const [i, k, n] of d.cells) {
      g.fillStyle = mix(from, to, 0.12 + 0.68 * Math.log1p(n) / Math.log1p(top));
      const left = x(d.columns[i]), low = y(d.rows[k]);
      g.fillRect(left, y(d.rows[k + 1]), Math.max(1, x(d.columns[i + 1]) - left + 0.3), Math.max(1, low - y(d.rows[k + 1]) + 0.3));
    }
    [["--c1", []], ["--c2", [6, 3]], ["--c3", [2, 3]]].forEach(([name, dash], k) => {
      g.lineWidth = 2.2;
      g.strokeStyle = css(name);
      g.setLineDash(dash);
      g.beginPath();
      d.lines.forEach((l) => { if (l[k + 1] != null) g.lineTo(x(l[0]), y(l[k + 1])); });
      g.stroke();
    });
    g.setLineDash([]);
    g.fillStyle = css("--soft");
    g.textAlign = "center";
    for (const v of rounds(d.columns[0], d.columns[d.columns.length - 1], Math.floor(w / 55))) g.fillText(short(v), x(v), T + h + 14);
    g.fillText(d.x_label, L + w / 2, H - 4);
    g.textAlign = "right";
    for (const v of rounds(d.rows[0], d.rows[d.rows.length - 1], Math.floor(h / 24))) g.fillText(ms(v), L - 6, y(v) + 4);
  }

  // A row of bars per request: waiting for its turn, connecting, waiting for the first token, reading the rest.
  const PARTS = [["queue", "--wait"], ["connect", "--c1"], ["TTFT", "--c0"], ["decode", "--c2"]];
  function parts(r) {
    const [, , , , , connect, connected, send, first, end] = r;
    const stop = end == null ? first == null ? send : first : end, found = [];
    let at = 0;
    if (connect != null && connected != null && connected <= send) {
      found.push(["queue", 0, connect], ["connect", connect, connected]);
      at = connected;
    }
    found.push(["queue", at, send], ["TTFT", send, first == null ? stop : first]);
    if (first != null) found.push(["decode", first, stop]);
    return found.filter(([, from, to]) => to > from);
  }

  function showRequests(e) {
    const { run, column, bucket, where } = e.detail, hold = document.getElementById("requests");
    hold.textContent = "";
    if (!runs[run]) { add(add(hold, "div", null, "card"), "p", "The requests of a cell are shown once the run has ended.", "small soft"); return; }
    const of = runs[run].requests.filter((r) => r[0] === column), same = of.filter((r) => r[1] === bucket), failed = of.filter((r) => r[1] === -1);
    const chosen = same.concat(failed);
    const box = add(hold, "div", null, "card run");
    add(box, "h3", "Requests of one cell: " + where);
    if (!chosen.length) { add(box, "p", runs[run].rows ? "None of its requests was kept for the report." : "This run kept no requests (output.records).", "small soft"); return; }
    add(box, "p", "The first " + same.length + " of the cell" + (failed.length ? " and " + failed.length + " that failed in its interval" : "") + ". Time in ms after the moment that the schedule says.", "small soft");
    const keys = add(box, "p", null, "small soft keys");
    PARTS.forEach(([name, c]) => add(keys, "span", name).style.setProperty("--k", "var(" + c + ")"));
    const end = Math.max(...chosen.map((r) => Math.max(r[9] || 0, r[8] || 0, r[7] || 0))) || 1;
    for (const r of chosen) {
      const line = add(box, "div", null, "request"), ok = r[4] === "ok";
      const said = parts(r).map(([name, from, to]) => name + " " + ms(to - from)).join(", ");
      add(line, "span", clock(r[2]) + (many() ? " " + r[3] : "") + (ok ? "" : " " + r[4]), ok ? "" : "FAIL");
      const bar = add(line, "div", null, "bars");
      bar.setAttribute("role", "img");
      bar.setAttribute("aria-label", (ok ? "" : r[4] + ": ") + said);
      bar.title = said;
      for (const [name, from, to] of parts(r)) {
        const part = add(bar, "i");
        part.style.left = 100 * from / end + "%";
        part.style.width = Math.max(0.3, 100 * (to - from) / end) + "%";
        part.style.background = "var(" + (ok || name === "queue" || name === "connect" ? PARTS.find((p) => p[0] === name)[1] : "--bad") + ")";
      }
      add(line, "span", ms(r[9]));
    }
    tableOf(box, "Requests of one cell", () => [
      ["at", "target", "outcome", "queue", "connect", "TTFT", "decode", "input tokens", "output tokens"],
      ...chosen.map((r) => {
        const sums = { queue: 0, connect: 0, TTFT: 0, decode: 0 };
        for (const [name, from, to] of parts(r)) sums[name] += to - from;
        return [clock(r[2]), r[3], r[4], ms(sums.queue), ms(sums.connect), ms(sums.TTFT), ms(sums.decode), r[10] == null ? "–" : r[10], r[11] == null ? "–" : r[11]];
      }),
    ]);
    box.tabIndex = -1;
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
  }

  function drawTokens(t) {
    const title = "The request " + (t.title === "of median duration" ? t.title : "that was " + t.title);
    const last = t.times[t.times.length - 1];
    const where = [many() ? t.target : "", t.start_s == null ? "" : "sent at " + clock(t.start_s), t.tokens.toLocaleString("en") + " token events", "TTFT " + ms(t.times[0]), "last token at " + ms(last)];
    const box = card("tokens", title, where.filter(Boolean).join(", ") + (t.tokens > t.times.length ? "; the first " + t.times.length + " are drawn" : ""));
    const stalls = t.stalls.length ? t.stalls.length + (t.stalls.length === 1 ? " stall of " : " stalls, the longest ") + ms(Math.max(...t.stalls.map((i) => t.times[i] - t.times[i - 1]))) : "no stall";
    const canvas = canvasOf(box, title + ": " + stalls + ", " + t.coalesced.length + " coalesced", 92);
    add(box, "p", stalls + "; " + t.coalesced.length + " of " + t.times.length + " coalesced", "small soft");
    tableOf(box, title, () => [["token", "arrived after", "gap", "mark"], ...t.times.map((v, i) => [
      String(i + 1), ms(v), i ? ms(v - t.times[i - 1]) : "–", [t.stalls.includes(i) ? "stall" : "", t.coalesced.includes(i) ? "coalesced" : ""].filter(Boolean).join(", "),
    ])]);
    painted.push(() => paintTokens(t, canvas));
  }

  function paintTokens(t, canvas) {
    const [g, W, H] = context(canvas), L = 8, R = 12, base = 58, end = t.times[t.times.length - 1] * 1.01 || 1;
    const x = (v) => L + (W - L - R) * v / end;
    const stalls = new Set(t.stalls), shared = new Set(t.coalesced);
    g.fillStyle = css("--grid");
    g.fillRect(L, base - 2, W - L - R, 2);
    g.fillStyle = css("--wait");
    g.fillRect(L, base - 8, x(t.times[0]) - L, 8);
    g.fillStyle = css("--bad");
    for (const i of t.stalls) {
      g.globalAlpha = 0.25;
      g.fillRect(x(t.times[i - 1]), 18, Math.max(1, x(t.times[i]) - x(t.times[i - 1])), base - 18);
      g.globalAlpha = 1;
    }
    t.times.forEach((v, i) => {
      const at = x(v);
      if (shared.has(i)) {
        g.strokeStyle = css("--c1");
        g.lineWidth = 1;
        g.strokeRect(at - 1.5, 8, 3, 7);
        return;
      }
      g.fillStyle = css(stalls.has(i) ? "--bad" : "--c0");
      g.fillRect(at - 0.6, stalls.has(i) ? 18 : 26, stalls.has(i) ? 2 : 1.2, base - (stalls.has(i) ? 18 : 26));
    });
    g.fillStyle = css("--soft");
    const ends = Math.max(2, Math.min(6, Math.floor(W / 90)));
    for (let i = 0; i < ends; i++) {
      g.textAlign = i === 0 ? "left" : i === ends - 1 ? "right" : "center";
      g.fillText(ms(end * i / (ends - 1)), L + (W - L - R) * i / (ends - 1), H - 12);
    }
  }

  function draw() {
    const load = document.getElementById("load");
    painted.length = 0;
    load.closest("section").hidden = false; // what is hidden has no width
    for (const run of runs) {
      if (!run) continue;
      run.densities.forEach(drawDensity);
      run.tokens.forEach(drawTokens);
    }
    load.closest("section").hidden = !load.childElementCount;
    redraw();
    document.documentElement.dataset.pictures = String(painted.length);
  }

  const redraw = () => painted.forEach((paint) => paint());
  document.addEventListener("cell", showRequests);
  document.addEventListener("redraw", redraw);
  document.addEventListener("show", (e) => { // other columns, other cells
    if (e.detail) runs = e.detail;
    for (const id of ["requests", "tokens"]) document.getElementById(id).replaceChildren();
    draw();
  });
  draw();
})();
