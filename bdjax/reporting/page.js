"use strict";
// Sorts and filters what the page holds; every number was computed before. The address keeps what is chosen:
// #attack=badnets&ratio=10&sort=board.asr
const AT_FIRST = 300;
const data = name => JSON.parse(document.getElementById(name)?.textContent ?? "null");
const facets = data("facets") ?? [], views = data("views"), chosen = {}, tables = [];

// ---- words: what one means stands in the glossary and its title; a title is not shown to who comes by keyboard or finger -------
const meanings = new Map([...document.querySelectorAll("#glossary dt")].map(word => [word.textContent, word.nextElementSibling.textContent]));
const tip = document.getElementById("tip");
let explained = null;

function entitled(target) {  // the element about which there is something to say, with its title
  const word = target.closest?.("abbr, [title]") ?? target.closest?.("button")?.querySelector("abbr");
  if (word && !word.title && meanings.has(word.textContent)) word.title = meanings.get(word.textContent);
  return word?.title ? word : null;
}

function tell(word) {
  explained?.removeAttribute("aria-describedby");
  explained = word;
  tip.hidden = !word;
  if (!word) return;
  tip.textContent = word.title;
  word.setAttribute("aria-describedby", "tip");
  const {left, top, bottom} = word.getBoundingClientRect(), low = bottom > innerHeight / 2;
  tip.style.left = `clamp(.5rem, ${left}px, calc(100vw - ${tip.offsetWidth}px - .5rem))`;
  tip.style.top = low ? "auto" : `${bottom + 6}px`;
  tip.style.bottom = low ? `${innerHeight - top + 6}px` : "auto";
}

addEventListener("mouseover", event => entitled(event.target));
addEventListener("focusin", event => tell(event.target.matches("abbr, :focus-visible") ? entitled(event.target) : null));
addEventListener("focusout", () => tell(null));
addEventListener("scroll", () => explained && tell(explained), true);
addEventListener("keydown", event => event.key === "Escape" && tell(null));

// ---- tables ----------------------------------------------------------------------------------------------------------------
for (const element of document.querySelectorAll("table.sortable")) {
  const rows = [...element.tBodies[0].rows];
  const table = {element, heads: [...element.tHead.rows[0].cells], limit: AT_FIRST, sort: null};
  table.rows = rows.map(row => ({row, at: row.dataset.f ? row.dataset.f.split(" ").map(Number) : [], empty: false}));
  table.note = document.createElement("p");
  table.note.className = "note";
  table.note.setAttribute("role", "status");
  element.parentNode.before(table.note);
  table.heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("n") ? "descending" : "ascending", other = first === "ascending" ? "descending" : "ascending";
    table.sort = {column, order: head.getAttribute("aria-sort") === first ? other : first};
    show(table);
    keep();
  }));
  tables.push(table);
}

function sorted(table) {
  table.heads.forEach(head => head.removeAttribute("aria-sort"));
  if (!table.sort) return table.rows;
  const {column, order} = table.sort, sign = order === "ascending" ? 1 : -1;
  table.heads[column].setAttribute("aria-sort", order);
  const value = one => one.row.cells[column].dataset.v;
  return [...table.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  });
}

const fits = one => !one.empty && facets.every((facet, i) => !(facet.key in chosen) || one.at[i] === -1 || one.at[i] === chosen[facet.key]);

function show(table) {
  let matching = 0;
  const rows = sorted(table);
  for (const one of rows) {
    const fit = fits(one);
    one.row.hidden = !fit || matching >= table.limit;
    matching += fit;
  }
  if (table.sort) table.element.tBodies[0].append(...rows.map(one => one.row));
  const more = matching > table.limit;
  table.note.replaceChildren();
  table.note.hidden = !more && matching === table.rows.length;
  if (table.note.hidden) return;
  if (table.absent) {
    table.note.append("One attack at one ratio was not pooled for so large a report: choose either, or see every scenario below");
    return;
  }
  const of = matching === table.rows.length ? "" : ` of ${table.rows.length.toLocaleString("en")}`;
  table.note.append(matching ? `${matching.toLocaleString("en")}${of} rows` : "No row fits what is chosen");
  if (!more) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "show all";
  button.addEventListener("click", () => { table.limit = Infinity; show(table); });
  table.note.append(`, the first ${table.limit} are shown: `, button);
}

// ---- the leaderboard of what is chosen: cells that were computed and printed when the page was made ---------------------------
const board = views && tables.find(table => table.element.id === "board");
if (board) {
  board.changing = views.columns.map(column => board.heads.findIndex(head => head.dataset.c === column));
  for (const one of board.rows) one.cells = board.changing.map(k => [one.row.cells[k].textContent, one.row.cells[k].dataset.v]);
}

function put(cell, text, order) {  // as the template lays a cell out: the interval smaller, after the value
  const at = text.indexOf(" [");
  cell.textContent = at < 0 ? text : text.slice(0, at + 1);
  if (at >= 0) {
    const interval = document.createElement("small");
    interval.textContent = text.slice(at + 1);
    cell.append(interval);
  }
  if (order === undefined) delete cell.dataset.v; else cell.dataset.v = order;
}

function order(text) {  // the number that a text begins with, else the text; nothing for a dash or an empty cell
  if (text === "" || text === "–") return undefined;
  return isNaN(parseFloat(text)) ? text : parseFloat(text);
}

function mark(row) {  // the badges behind the defense are what the row's remark says of its networks
  const [name, remark] = ["defense", "remark"].map(column => row.cells[board.heads.findIndex(head => head.dataset.c === column)]);
  if (!remark) return;
  name.querySelector(".badges")?.remove();
  const badges = document.createElement("span");
  badges.className = "badges";
  for (const part of remark.textContent.split("; ")) {
    const word = [...meanings.keys()].find(word => part.startsWith(word));
    if (!word) continue;
    const badge = document.createElement("abbr");
    badge.className = / in \d+ of \d+ runs$/.test(part) ? "badge part" : "badge";
    badge.tabIndex = 0;
    badge.textContent = word;
    badges.append(" ", badge);
  }
  name.append(badges);
}

function choose() {  // show the leaderboard of the chosen attack and ratio
  if (!board) return;
  const [attack, ratio] = ["attack", "ratio"].map(key => chosen[key] ?? ""), all = attack === "" && ratio === "";
  const view = all ? {} : views.cells[`${attack}.${ratio}`] ?? {};
  board.absent = attack !== "" && ratio !== "" && !views.pairs;
  board.rows.forEach((one, i) => {
    one.empty = !all && !(i in view);
    if (one.empty) return;
    const cells = all ? one.cells : view[i].map(cell => (Array.isArray(cell) ? cell : [cell, order(cell)]));
    board.changing.forEach((k, j) => put(one.row.cells[k], ...cells[j]));
    mark(one.row);
  });
}

// ---- choosing ----------------------------------------------------------------------------------------------------------------
const form = document.getElementById("filters");
for (const facet of facets.filter(facet => facet.values.length > 1)) {
  const label = document.createElement("label"), select = document.createElement("select");
  select.name = facet.key;
  select.append(new Option("all", ""), ...facet.values.map((value, i) => new Option(value, i)));
  select.addEventListener("change", () => {
    if (select.value === "") delete chosen[facet.key]; else chosen[facet.key] = Number(select.value);
    refresh();
    keep();
  });
  label.append(facet.label, select);
  if (facet.meaning) label.title = facet.meaning;
  form.append(label);
  form.hidden = false;
}
if (!form.hidden) {
  const clear = document.createElement("button");
  clear.type = "button";
  clear.textContent = "clear";
  clear.addEventListener("click", () => {
    for (const key of Object.keys(chosen)) delete chosen[key];
    refresh();
    keep();
  });
  form.append(clear);
}

function refresh() {
  for (const select of form.querySelectorAll("select")) select.value = chosen[select.name] ?? "";
  choose();
  tables.forEach(show);
}

function keep() {
  const parts = facets.filter(facet => facet.key in chosen).map(facet => [facet.key, facet.values[chosen[facet.key]]]);
  const sign = {ascending: "", descending: "-"};
  parts.push(...tables.filter(table => table.sort).map(table =>
    ["sort", `${table.element.id}.${sign[table.sort.order]}${table.heads[table.sort.column].dataset.c}`]));
  history.replaceState(null, "", parts.length ? `#${new URLSearchParams(parts)}` : location.pathname + location.search);
}

function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (location.hash && !location.hash.includes("=")) return false;  // a section
  for (const key of Object.keys(chosen)) delete chosen[key];
  for (const facet of facets) {
    const index = facet.values.indexOf(asked.get(facet.key));
    if (index >= 0) chosen[facet.key] = index;
  }
  for (const text of asked.getAll("sort")) {
    const [, name, down, column] = text.match(/^([\w-]+)\.(-?)(.*)$/) ?? [];
    const table = tables.find(one => one.element.id === name);
    const at = table?.heads.findIndex(head => head.dataset.c === column) ?? -1;
    if (at >= 0) table.sort = {column: at, order: down ? "descending" : "ascending"};
  }
  return true;
}

addEventListener("hashchange", () => { if (restore()) refresh(); });
restore();
refresh();
