"use strict";
(() => {
  const root = document.documentElement, data = root.dataset;
  const $ = (id) => document.getElementById(id);
  let touched = false;

  // How old the page is, by the reader's clock.
  const words = (seconds) => {
    const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
    const at = parts.findIndex(([, size]) => seconds >= size);
    if (at < 0) return "0 s";
    const [[name, size], next] = [parts[at], parts[at + 1]];
    const rest = next ? Math.floor((seconds % size) / next[1]) : 0;
    return `${Math.floor(seconds / size)} ${name}` + (rest ? ` ${rest} ${next[0]}` : "");
  };
  const tell = () => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - data.written));
    $("age").textContent = `, ${words(seconds)} ago`;
    if (seconds <= data.oldAfter) return;
    if (!root.classList.contains("old")) document.title = `OLD: ${document.title}`;
    root.classList.add("old");
    $("old").hidden = false;
    $("old").querySelector("b").textContent = words(seconds);
  };
  tell();
  setInterval(tell, 1000);
  // A page on a wall is read anew, one that somebody works with is not.
  if (data.every) setInterval(() => touched || location.reload(), data.every * 1000);

  const table = document.querySelector(".assets");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows];

  // Show only the rows with these words.
  document.querySelector(".tools").hidden = false;
  $("filter").addEventListener("input", ({ target }) => {
    touched = true;
    const wanted = target.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const there = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => there.includes(word));
      shown += !row.hidden;
    }
    $("found").textContent = target.value ? `${shown} of ${rows.length}` : "";
  });

  // Sort by a column: lengths of time by their seconds, levels by their rank, the rest as text.
  const sizes = { d: 86400, h: 3600, min: 60, s: 1, "%": 1 };
  const ranks = ["critical", "high", "medium", "low"];
  const key = (cell) => {
    const text = cell.textContent, found = [...text.matchAll(/([\d.]+) (d|h|min|s|%)/g)];
    if (cell.cellIndex === 1) return ranks.indexOf(text);
    if (found.length && cell.cellIndex < 5)
      return found.reduce((sum, [, number, unit]) => sum + number * sizes[unit], 0);
    if (cell.cellIndex > 1 && cell.cellIndex < 5) return text === "running" ? 0 : Infinity;
    return text;
  };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (column === 5) return; // a picture has no order
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      touched = true;
      const down = head.ariaSort === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = down ? "descending" : "ascending";
      const keyed = rows.map((row) => [key(row.cells[column]), row]);
      keyed.sort(([one], [other]) =>
        typeof one === "string" ? one.localeCompare(other) : one - other || 0);
      if (down) keyed.reverse();
      body.append(...keyed.map(([, row]) => row));
    });
  });
})();
