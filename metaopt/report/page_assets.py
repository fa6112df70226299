"""The style of pages, light and dark, and the script that sorts their tables."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --page: #ffffff;
  --line: #d7dce1; --box: #f4f6f8; --link: #0057ae; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e8ed; --soft: #9aa5b1; --page: #14171b;
  --line: #363d45; --box: #1e2329; --link: #6cb2ff; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 82rem; margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 0.8rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.8rem; padding-bottom: 0.2rem;
  border-bottom: 1px solid var(--line); }
a { color: var(--link); }
p, ul, details { max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 1.1rem 0.3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; }
td { min-width: 3.5rem; max-width: 32rem; overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; }
th, th.number { white-space: normal; vertical-align: bottom; }
.long { min-width: 26rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:hover { text-decoration: underline; }
th button:focus-visible { outline: 2px solid var(--link); }
th button::after { content: "\\a0\\2195"; color: var(--soft); font-weight: 400; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
pre { background: var(--box); font-size: 0.83rem; padding: 0.7rem 0.9rem; white-space: pre-wrap;
  overflow-wrap: anywhere; border-radius: 4px; }
summary { cursor: pointer; color: var(--link); }
.gallery { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; align-items: flex-start; }
.gallery figure { max-width: 100%; }
figure { margin: 0.7rem 0; }
img { display: block; background: #ffffff; border-radius: 4px; height: auto;
  max-width: max(100%, 34rem); }
figcaption { color: var(--soft); font-size: 0.87rem; max-width: 60rem; }
"""

SORT = """
"use strict";
const number = text => {
  const match = text.replace(/,/g, "").match(/^[<>\\s]*([+-]?\\d+(\\.\\d*)?(e[+-]?\\d+)?)/i);
  return match ? parseFloat(match[1]) : NaN;
};
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) && isNaN(y)) return a.localeCompare(b, undefined, {numeric: true});
  return isNaN(x) ? 1 : isNaN(y) ? -1 : x - y;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = row => row.cells[column].textContent.trim();
      const blank = row => ["", "\\u2013"].includes(text(row));
      const rows = [...body.rows].sort((a, b) => blank(a) !== blank(b)
        ? blank(a) - blank(b) : (down ? -1 : 1) * compare(text(a), text(b)));
      body.append(...rows);
    });
  });
}
"""
