"use strict";
// Sorting, filtering and pooling of what the page holds. The address keeps the choice: #attack=badnets&ratio=10&sort=board.asr
const AT_FIRST = 300, DRAWS = 300, SHOWN = ["acc", "asr", "ra", "arr", "der", "mitigated"], STATUSES = ["ok", "infeasible", "failed", "non-finite"];
const held = name => JSON.parse(document.getElementById(name)?.textContent ?? "null");
const facets = held("facets") ?? [], runs = held("runs"), chosen = {}, tables = [];

// ---- tables ----------------------------------------------------------------------------------------------------------------
for (const element of document.querySelectorAll("table.sortable")) {
  const rows = [...element.tBodies[0].rows];
  const table = {element, heads: [...element.tHead.rows[0].cells], limit: AT_FIRST, sort: null};
  table.rows = rows.map(row => ({row, at: row.dataset.f ? row.dataset.f.split(" ").map(Number) : [], empty: false}));
  table.told = document.createElement("p");
  table.told.className = "told";
  table.told.setAttribute("role", "status");
  element.parentNode.before(table.told);
  table.heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("n") ? "descending" : "ascending", other = first === "ascending" ? "descending" : "ascending";
    table.sort = {column, order: head.getAttribute("aria-sort") === first ? other : first};
    show(table);
    remember();
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
  table.told.replaceChildren();
  table.told.hidden = !more && matching === table.rows.length;
  if (table.told.hidden) return;
  const of = matching === table.rows.length ? "" : ` of ${table.rows.length.toLocaleString("en")}`;
  table.told.append(matching ? `${matching.toLocaleString("en")}${of} rows` : "No row fits what is chosen");
  if (!more) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "show all";
  button.addEventListener("click", () => { table.limit = Infinity; show(table); });
  table.told.append(`, the first ${table.limit} are shown: `, button);
}

// ---- pooling: as bdjax.metrics does it ---------------------------------------------------------------------------------------
function random(seed) {  // mulberry32
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function middle(values, counts, total) {  // interquartile mean of ascending values, each so many times
  const cut = Math.floor(total / 4);
  let upto = 0, sum = 0;
  for (let i = 0; i < values.length; i++) {
    const before = upto;
    upto += counts ? counts[i] : 1;
    const inside = Math.min(upto, total - cut) - Math.max(before, cut);
    if (inside > 0) sum += inside * values[i];
  }
  return sum / (total - 2 * cut);
}

function pooled(strata, plain) {  // lists of runs in hundredths of a percent -> percent; plain: the mean, of a share
  const centre = (values, counts, total) => {
    if (!plain) return middle(values, counts, total);
    return values.reduce((sum, value, i) => sum + value * (counts ? counts[i] : 1), 0) / total;
  };
  const all = strata.flatMap((list, task) => list.map(value => ({value, task}))).sort((a, b) => a.value - b.value);
  const n = all.length;
  if (!n) return {n};
  const values = all.map(one => one.value / 100), estimate = centre(values, null, n);
  if (n < 2) return {n, estimate};
  const places = strata.map(() => []), counts = new Uint16Array(n), found = new Float64Array(DRAWS), next = random(1);
  all.forEach((one, i) => places[one.task].push(i));
  for (let draw = 0; draw < DRAWS; draw++) {
    counts.fill(0);
    for (const place of places) for (let i = 0; i < place.length; i++) counts[place[Math.floor(next() * place.length)]]++;
    found[draw] = centre(values, counts, n);
  }
  found.sort();
  const quantile = q => {
    const at = q * (DRAWS - 1), low = Math.floor(at);
    return found[low] + (at - low) * (found[Math.min(low + 1, DRAWS - 1)] - found[low]);
  };
  return {n, estimate, low: Math.min(quantile(0.025), estimate), high: Math.max(quantile(0.975), estimate)};
}

const board = tables.find(table => table.element.id === "board");
if (board) for (const one of board.rows) one.cells = [...one.row.cells].map(cell => [cell.innerHTML, cell.dataset.v]);

function put(cell, html, value) {
  cell.innerHTML = html;
  if (value === undefined) delete cell.dataset.v; else cell.dataset.v = value;
}

const percent = value => (value === undefined ? "–" : value.toFixed(1).replace("-0.0", "0.0"));

function remarked([, one, chance, unpoisoned, untrained, trained, sum], ok) {  // as bdjax.results.soundness.remark
  const hardly = untrained ? `hardly trained (ACC before ${percent(sum / untrained / 100)} %)` : "";
  const told = [[one, ok, "predicts one class"], [chance, ok, "at chance"], [unpoisoned, ok, "no row poisoned"], [untrained, trained, hardly]];
  return told.filter(([count]) => count).map(([count, of, text]) => (count >= of ? text : `${text} in ${count} of ${of} runs`)).join("; ");
}

function pool() {
  if (!board || !runs) return;
  const index = key => facets.findIndex(facet => facet.key === key);
  const wanted = ["attack", "ratio"].map(key => chosen[key]), whole = wanted.every(choice => choice === undefined);
  const zero = facets[index("ratio")]?.values.indexOf("0");
  board.rows.forEach((one, i) => {
    one.empty = false;
    if (whole) {
      one.cells.forEach(([html, value], k) => put(one.row.cells[k], html, value));
      return;
    }
    if (!fits(one)) return;
    const mine = runs[i].filter(task => (wanted[0] === undefined || task[0] === wanted[0]));
    const tasks = mine.filter(task => task[1] !== zero && (wanted[1] === undefined || task[1] === wanted[1]));
    one.empty = !tasks.length;
    if (one.empty) return;
    const ended = STATUSES.map((_, k) => tasks.reduce((sum, task) => sum + task[2][k], 0));
    const total = ended.reduce((a, b) => a + b), remarks = tasks[0][4].map((_, k) => tasks.reduce((sum, task) => sum + task[4][k], 0));
    board.heads.forEach((head, k) => {
      const cell = one.row.cells[k], metric = SHOWN.indexOf(head.dataset.c);
      if (metric >= 0) {
        const told = pooled(tasks.map(task => task[3][metric]), head.dataset.c === "mitigated");
        const between = told.low === undefined ? "" : ` <small>[${percent(told.low)}, ${percent(told.high)}]</small>`;
        const some = told.n && told.n !== ended[0] ? ` (n=${told.n})` : "";
        put(cell, percent(told.estimate) + between + some, told.estimate === undefined ? undefined : told.estimate / 100);
      } else if (head.dataset.c === "n") put(cell, ended[0] === total ? `${total}` : `${ended[0]} of ${total}`, ended[0]);
      else if (head.dataset.c === "tasks") { const met = tasks.filter(task => task[2][0]).length; put(cell, `${met}`, met); }
      else if (head.dataset.c === "cost") {
        const told = pooled(mine.filter(task => task[1] === zero).map(task => task[3][SHOWN.indexOf("arr")]));
        put(cell, percent(told.estimate), told.estimate === undefined ? undefined : told.estimate / 100);
      } else if (head.dataset.c === "left_out") put(cell, remarks[0] ? `${remarks[0]}` : "", remarks[0]);
      else if (head.dataset.c === "remark") { const text = remarked(remarks, ended[0]); put(cell, text, text || undefined); }
      else if (head.dataset.c === "lost")
        put(cell, STATUSES.slice(1).flatMap((name, k) => (ended[k + 1] ? [`${ended[k + 1]} ${name}`] : [])).join(", "), total - ended[0]);
    });
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
    remember();
  });
  label.append(facet.label, select);
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
    remember();
  });
  form.append(clear);
}

function refresh() {
  for (const select of form.querySelectorAll("select")) select.value = chosen[select.name] ?? "";
  pool();
  tables.forEach(show);
}

function remember() {
  const told = facets.filter(facet => facet.key in chosen).map(facet => [facet.key, facet.values[chosen[facet.key]]]);
  const sign = {ascending: "", descending: "-"};
  told.push(...tables.filter(table => table.sort).map(table =>
    ["sort", `${table.element.id}.${sign[table.sort.order]}${table.heads[table.sort.column].dataset.c}`]));
  history.replaceState(null, "", told.length ? `#${new URLSearchParams(told)}` : location.pathname + location.search);
}

function recall() {
  const told = new URLSearchParams(location.hash.slice(1));
  if (location.hash && !location.hash.includes("=")) return false;  // a section
  for (const key of Object.keys(chosen)) delete chosen[key];
  for (const facet of facets) {
    const index = facet.values.indexOf(told.get(facet.key));
    if (index >= 0) chosen[facet.key] = index;
  }
  for (const text of told.getAll("sort")) {
    const [, name, down, column] = text.match(/^([\w-]+)\.(-?)(.*)$/) ?? [];
    const table = tables.find(one => one.element.id === name);
    const at = table?.heads.findIndex(head => head.dataset.c === column) ?? -1;
    if (at >= 0) table.sort = {column: at, order: down ? "descending" : "ascending"};
  }
  return true;
}

addEventListener("hashchange", () => { if (recall()) refresh(); });
recall();
refresh();
