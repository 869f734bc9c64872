// What the sliders drive: numbers from the sums that the page holds, and the parameters of its charts.
const data = JSON.parse(document.getElementById("data").textContent);
const sums = data.aggregates;
const views = {};
const $ = (id) => document.getElementById(id);
const last = sums.ks.length - 1;
const lowest = Math.log10(data.sigmas[0]), highest = Math.log10(data.sigmas[data.sigmas.length - 1]);
const asAnalysed = { sigma: data.sigma, dim: data.dim, k: last, tolerance: data.tolerance };
const state = { ...asAnalysed };

// ---- the formulas of docs/theory.md, from the sums of curvprobe.report.aggregates

function parts(k, dim, sigma) {
  const [aa, at, tt, cc, bb] = sums.moments[k][dim - 1], s2 = sigma ** 2, s4 = sigma ** 4;
  return { level: aa + s2 * at + (s4 * tt) / 4, slope: s2 * cc, curvature: (s4 * bb) / 2 };
}

function cells([a, t, varA, varT, cov, c2, varC, b2, varB], m, sigma) {
  const s2 = sigma ** 2, s4 = sigma ** 4;
  const spread = { level: varA + s2 * cov + (s4 * varT) / 4, slope: s2 * varC, curvature: (s4 * varB) / 2 };
  const square = { level: (a + (s2 * t) / 2) ** 2, slope: s2 * c2, curvature: (s4 * b2) / 2 };
  const shift = {};
  for (const part of Object.keys(spread)) shift[part] = square[part] - spread[part] / m;
  return { shift, spread };
}

const total = (of) => of.level + of.slope + of.curvature;

function standardError(dim, sigma, weights) {
  const table = sums.products[dim - 1];
  let sum = 0;
  for (let i = 0; i < 5; i++) for (let j = 0; j < 5; j++) sum += weights[i] * table[i][j] * weights[j];
  return Math.sqrt(Math.max(0, sum));
}

function requiredSize(dim, sigma, tolerance) {
  const found = cells(sums.moves[dim - 1], sums.num_candidates, sigma);
  const counted = data.of === "shape" ? (of) => of.slope + of.curvature : total;
  const shift = counted(found.shift), spread = counted(found.spread), k = data.k;
  const square = (n) =>
    (Math.min(1, k / n) ** 2 * shift + spread * (1 + Math.max(0, n - k) / n ** 2)) / (n + 1) ** 2;
  if (square(1) <= tolerance ** 2) return 1;
  let low = 0, high = Math.log(1e18);
  if (square(1e18) > tolerance ** 2) return Infinity;
  while (high - low > 1e-12) {
    const middle = (low + high) / 2;
    if (square(Math.exp(middle)) <= tolerance ** 2) high = middle; else low = middle;
    if (middle === low && middle === high) break;
  }
  return Math.ceil(Math.exp(high) - 1e-6);
}

function verdictAt(sigma) {
  const above = data.sigmas.findIndex((s) => s >= sigma * (1 - 1e-9));
  return above < 0 ? "invalid" : data.verdicts[above];
}

// ---- what is shown

const short = (x) => (x === 0 ? "0" : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5 ? String(Number(x.toPrecision(3))) : x.toExponential(2).replace("e+", "e"));

function put(name, value) {
  for (const cell of document.querySelectorAll(`[data-number="${name}"]`)) {
    cell.textContent = Number.isFinite(value) ? short(value) : "not known";
    cell.dataset.value = value;
  }
}

// An end of an interval of the root; infinity has come as null.
function putEnd(name, end) {
  put(name, end === null ? Infinity : Math.sqrt(end));
  if (end === null) for (const cell of document.querySelectorAll(`[data-number="${name}"]`)) cell.textContent = "no upper end";
}

function show() {
  const { sigma, dim, k, tolerance } = state, s2 = sigma ** 2, s4 = sigma ** 4;
  const found = parts(k, dim, sigma), shape = found.slope + found.curvature;
  const rows = { ...found, whole: total(found), shape };
  for (const [name, value] of Object.entries(rows)) { put(name, value); put(`${name}-root`, Math.sqrt(Math.max(0, value))); }
  put("constant", (k < last ? sums.risk[k + 1] : sums.joined)[0] - sums.risk[k][0]);
  const table = cells(sums.cells[dim - 1], sums.num_candidates, sigma);
  for (const source of ["shift", "spread"])
    for (const part of ["level", "slope", "curvature"])
      put(`${source}-${part}`, sums.num_candidates > 1 ? table[source][part] : NaN);
  put("whole-stderr", sums.num_candidates > 1 ? standardError(dim, sigma, [1, s2, s4, 0, 0]) : NaN);
  put("shape-stderr", sums.num_candidates > 1 ? standardError(dim, sigma, [0, 0, 0, s2, s4]) : NaN);
  const stops = sums.sigmas.indexOf(sigma), known = sums.num_candidates > 1;
  const ends = known ? sums.intervals[dim - 1][stops] : [NaN, NaN, NaN, NaN];
  ["whole-low", "whole-high", "shape-low", "shape-high"].forEach((name, i) => putEnd(name, ends[i]));
  ["least", "median", "most"].forEach((name, i) => put(name, known ? Math.sqrt(sums.quantiles[dim - 1][stops][i]) : NaN));
  put("size", sums.num_candidates > 1 ? requiredSize(dim, sigma, tolerance) : NaN);
  for (const cell of document.querySelectorAll('[data-number="size"]'))
    if (Number.isFinite(Number(cell.dataset.value))) cell.textContent = `k = ${Number(cell.dataset.value).toLocaleString("en")}`;
  const words = { k: sums.ks[k].toLocaleString("en"), sigma: short(sigma), dim, tolerance: short(tolerance) };
  for (const [name, word] of Object.entries(words)) {
    $(`${name}-shown`).textContent = word;
    $(name).setAttribute("aria-valuetext", word);
    for (const place of document.querySelectorAll(`[data-shows="${name}"]`)) place.textContent = word;
  }
  document.body.dataset.sigma = sigma;
  document.body.dataset.tolerance = tolerance;
  document.body.dataset.k = sums.ks[k];
  const verdict = verdictAt(sigma);
  $("beyond").hidden = verdict === "valid";
  $("beyond-verdict").textContent = verdict;
}

function signal(name, value, charts) {
  for (const chart of charts) if (views[chart]) views[chart].signal(name, value).runAsync();
}

const LANDSCAPES = ["risk", "change", "candidates"], MEASURED = ["measured", "departure"];

function changed(name) {
  show();
  if (name === "k") signal("k_index", state.k, ["risk", "change"]);
  if (name === "sigma") signal("sigma", state.sigma, [...LANDSCAPES, ...MEASURED, "decay", "shares"]);
  if (name === "dim") signal("dim", state.dim, ["decay", "shares"]);
}

function slider(id, toValue, toPosition) {
  const input = $(id);
  input.value = toPosition(state[id]);
  input.addEventListener("input", () => { state[id] = toValue(Number(input.value)); changed(id); });
  return () => { state[id] = asAnalysed[id]; input.value = toPosition(state[id]); changed(id); };
}

Object.assign($("sigma"), { min: lowest, max: highest });
const start = parts(last, data.dim, data.sigma);
const whole = data.of === "shape" ? start.slope + start.curvature : total(start);
asAnalysed.tolerance = state.tolerance = data.tolerance ?? Number(Math.sqrt(whole).toPrecision(2));
Object.assign($("tolerance"), { min: Math.log10(state.tolerance) - 3, max: Math.log10(state.tolerance) + 3 });
const power = (x) => 10 ** x;
const stop = (x) => sums.sigmas.reduce((a, b) => (Math.abs(Math.log10(b) - x) < Math.abs(Math.log10(a) - x) ? b : a));
const resets = [
  slider("sigma", stop, Math.log10), slider("dim", (x) => x, (x) => x),
  slider("k", (x) => x, (x) => x), slider("tolerance", power, Math.log10),
];
$("reset").addEventListener("click", () => resets.forEach((reset) => reset()));
const choices = ["first", "second"].filter((id) => $(id));
for (const id of choices)
  $(id).addEventListener("change", () => {
    const other = choices.find((one) => one !== id), count = $(id).options.length;
    if ($(other).value === $(id).value) $(other).value = String((Number($(id).value) + 1) % count);
    for (const one of choices) signal(one, Number($(one).value), LANDSCAPES);
  });

$("copy").addEventListener("click", async () => {
  const text = `cp.decay_curve(analysis.sample, [${sums.ks[state.k]}], ${state.sigma}, [${state.dim}], fresh=analysis.fresh).value`;
  try { await navigator.clipboard.writeText(text); $("copy").textContent = "copied"; }
  catch { $("copy").textContent = text; }
});

// ---- the ranking

const COLUMNS = ["name", "total", "shape", "loss", "gradient_norm", "projected_gradient_norm"];
const rank = { order: data.ranking.position.map((_, i) => i), by: "total", down: true, count: 25 };

function picture({ width, height, channels, pixels }, name) {
  const drawn = document.createElement("canvas"), bytes = atob(pixels), image = new ImageData(width, height);
  Object.assign(drawn, { width, height, className: "picture" });
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", name);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes.charCodeAt(channels * i + (channels === 3 ? c : 0));
    image.data[4 * i + 3] = 255;
  }
  drawn.getContext("2d").putImageData(image, 0, 0);
  return drawn;
}

function fill() {
  const wanted = $("filter").value.toLowerCase();
  const chosen = rank.order.filter((i) => data.ranking.name[i].toLowerCase().includes(wanted));
  const body = document.querySelector("#ranking tbody");
  body.replaceChildren(...chosen.slice(0, rank.count).map((i) => {
    const row = document.createElement("tr");
    for (const column of COLUMNS) {
      const cell = document.createElement("td"), value = data.ranking[column][i];
      cell.textContent = column === "name" ? value : value === null ? "–" : short(value);
      if (column === "name" && data.pictures[i]) cell.prepend(picture(data.pictures[i], value));
      row.append(cell);
    }
    return row;
  }));
  const beyond = data.candidates > rank.order.length ? `, the first of ${data.candidates} by total` : "";
  $("shown-count").textContent = `${Math.min(rank.count, chosen.length)} of ${chosen.length}${beyond}`;
  $("more").hidden = chosen.length <= rank.count;
}

function sortBy(column) {
  rank.down = rank.by === column ? !rank.down : column !== "name";
  rank.by = column;
  const values = data.ranking[column], sign = rank.down ? -1 : 1;
  const compare = column === "name" ? (a, b) => values[a].localeCompare(values[b], "en", { numeric: true }) : (a, b) => values[a] - values[b];
  rank.order.sort((a, b) => sign * compare(a, b));
  for (const head of document.querySelectorAll("#ranking th"))
    head.setAttribute("aria-sort", head.dataset.column === column ? (rank.down ? "descending" : "ascending") : "none");
  fill();
}

document.querySelector("#ranking thead tr").append(...COLUMNS.map((column) => {
  const head = document.createElement("th"), button = document.createElement("button");
  head.dataset.column = column;
  head.setAttribute("aria-sort", column === "total" ? "descending" : "none");
  button.type = "button";
  button.textContent = column === "name" ? "candidate" : column.replaceAll("_", " ");
  button.addEventListener("click", () => sortBy(column));
  head.append(button);
  return head;
}));
$("filter").addEventListener("input", () => { rank.count = 25; fill(); });
$("more").addEventListener("click", () => { rank.count += 100; fill(); });

// ---- the charts

async function draw() {
  for (const [name, spec] of Object.entries(data.charts)) {
    const place = $(`chart-${name}`);
    if (!place) continue;
    views[name]?.finalize();
    views[name] = await drawn(place, spec);
  }
  for (const name of ["sigma", "dim", "k"]) changed(name);
  for (const id of choices) signal(id, Number($(id).value), LANDSCAPES);
  document.body.dataset.drawn = "yes";
}

dark.addEventListener("change", draw);
show();
fill();
draw();
