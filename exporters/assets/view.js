"use strict";
// The list of `lens view`: hides the rows that do not match, and allows a comparison of exactly two.
(function () {
  const filter = document.getElementById("filter"), button = document.getElementById("compare"), shown = document.getElementById("shown");
  const rows = [...document.querySelectorAll("table tr")].slice(1), boxes = [...document.querySelectorAll("input[name=run]")];
  const texts = rows.map((row) => row.textContent.toLowerCase());

  function narrow() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      count += !row.hidden;
    });
    shown.textContent = count === rows.length ? "" : count + " of " + rows.length + " shown";
    history.replaceState(null, "", filter.value ? "#" + encodeURIComponent(filter.value) : location.pathname);
  }

  function ticked() {
    button.disabled = boxes.filter((box) => box.checked).length !== 2;
  }

  filter.addEventListener("input", narrow);
  filter.addEventListener("keydown", (e) => { if (e.key === "Enter") e.preventDefault(); });
  for (const box of boxes) box.addEventListener("change", ticked);
  if (location.hash.length > 1) filter.value = decodeURIComponent(location.hash.slice(1));
  narrow();
  ticked();
})();
