"use strict";
// Keeps the page of a run that goes on up to date (exporters/web/live.py describes the messages).
(function () {
  const version = document.currentScript.dataset.version;
  const state = document.getElementById("live-state"), stop = document.getElementById("stop");
  let seen = version, source = null, ended = false;

  function say(text) {
    if (state.textContent !== text) state.textContent = text;
  }

  function sections(found) {
    for (const [id, markup] of Object.entries(found)) {
      const box = document.getElementById(id), open = [...box.querySelectorAll("details")].map((each) => each.open);
      box.innerHTML = markup;
      box.querySelectorAll("details").forEach((each, i) => { each.open = !!open[i]; });
    }
  }

  function connect() {
    source = new EventSource("events?seen=" + seen);
    source.onmessage = take;
    source.onopen = () => say("live");
    source.onerror = () => {
      if (ended) return;
      say("connection lost; trying again. If the run has ended, its report is in its directory.");
      source.close();
      setTimeout(connect, 1000);
    };
  }

  function take(message) {
    const change = JSON.parse(message.data), top = window.scrollY;
    seen = change.version;
    for (const [id, text] of change.now) document.getElementById("now-" + id).textContent = text;
    if (change.sections) sections(change.sections);
    if (change.charts) window.lens.show(change.charts, change.requests);
    if (change.point && !window.lens.extend(change.point)) {
      seen = "";
      source.close();
      connect();
    }
    if (window.scrollY !== top) window.scrollTo(0, top);
    if (change.ended) {
      ended = true;
      source.close();
      say("The run has ended; this is its report.");
      if (stop) stop.disabled = true;
    }
  }

  if (stop) stop.addEventListener("click", () => {
    stop.disabled = true;
    fetch("stop", { method: "POST", headers: { "X-Lens-Control": "stop" } }).then(
      (reply) => reply.text().then(say), () => { stop.disabled = false; say("the run could not be reached"); });
  });
  connect();
})();
