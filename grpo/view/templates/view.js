"use strict";
// The page of `grpo view`. The data of a run are only set as text, so that they never become markup.

const ROW = 56, PAGE = 100, POLL_MS = 2000;
const MARKS = { correct: "✓", scored: "◐", wrong: "✗", unparseable: "?", timeout: "⧖", error: "!" };
const SVG = "http://www.w3.org/2000/svg";
const GEOMETRY = { width: 480, height: 220, right: 462, top: 10, bottom: 194 };
const $ = (id) => document.getElementById(id);
const embedded = $("exported") ? JSON.parse($("exported").textContent) : null;
let overview = null, version = null, run = 0;

// --- making elements -------------------------------------------------------------------------------------------

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const option = (value, text, chosen) => el("option", { value, selected: chosen }, text ?? String(value));
const fixed = (value, digits = 2) => (value === null || value === undefined ? "none" : Number(value).toFixed(digits).replace("-", "\u2212"));
const signed = (value) => (value > 0 ? "+" : "") + fixed(value);
const short = (value, digits = 4) => {
  if (value === null) return "none";
  const size = Math.abs(value), number = Number(value);
  return (size && size < 1e-3 ? number.toExponential(digits - 2).replace(/\.?0+e/, "e") : String(Number(number.toPrecision(digits))))
    .replaceAll("-", "\u2212");
};
const count = (number, singular, plural = singular + "s") => `${number.toLocaleString("en")} ${number === 1 ? singular : plural}`;

// --- requests --------------------------------------------------------------------------------------------------

async function ask(what, query = {}, signal) {
  if (embedded) return fromFile(what, query);
  const pairs = Object.entries(query).flatMap(([key, value]) =>
    (Array.isArray(value) ? value : [value]).filter((item) => item !== "" && item !== undefined).map((item) => [key, item]));
  const answer = await fetch(`/api/${what}?${new URLSearchParams(pairs)}`, { signal });
  const data = await answer.json();
  if (!answer.ok) throw new Error(typeof data.detail === "string" ? data.detail : `the server did not accept: ${JSON.stringify(data.detail)}`);
  return data;
}

// Give the same answers as the server, from the data in an exported page.
function fromFile(what, query) {
  const data = embedded.runs[query.run ?? 0];
  if (what === "overview") return embedded.overview;
  if (what === "charts") return embedded.charts.filter((chart) => query.metric.includes(chart.metric));
  if (what === "flags" || what === "mismatch") return data[what];
  if (what === "learned") return data.learned;
  if (what === "timeline") return { ...data.timeline[query.step], chart: data.step_time };
  const stored = data.groups[query.source];
  const place = (group) => stored.details.find((other) => other.step === group.step && other.group === group.group);
  if (what === "group") return place({ step: Number(query.step), group: Number(query.group) });
  const within = (value, low, high) => (low === "" || (value !== null && value >= Number(low))) && (high === "" || (value !== null && value <= Number(high)));
  const text = query.text.toLowerCase();
  const passes = (group, each) => within(group.step, query.step_low, query.step_high)
    && within(each.completion_tokens, query.tokens_low, query.tokens_high)
    && within(each.reward, query.reward_low, query.reward_high)
    && (!query.status.length || each.verdicts.some((verdict) => query.status.includes(verdict.status)))
    && (!text || each.completion.toLowerCase().includes(text) || group.prompt.toLowerCase().includes(text));
  const rows = stored.rows.map((row) => ({ ...row, matches: place(row).completions.filter((each) => passes(place(row), each)).length }))
    .filter((row) => row.matches);
  if (query.order === "oldest") rows.sort((a, b) => a.step - b.step || a.group - b.group);
  if (query.order === "spread") rows.sort((a, b) => b.spread - a.spread);
  return { groups: rows.length, completions: rows.reduce((sum, row) => sum + row.matches, 0), of_groups: stored.rows.length,
    of_completions: stored.details.reduce((sum, group) => sum + group.completions.length, 0), unread: 0, problems: stored.problems,
    rows: rows.slice(query.offset, query.offset + query.limit) };
}

// The page shows the failure of a request, unless a newer request replaced that request.
function guarded(action) {
  return async (...given) => {
    try {
      await action(...given);
    } catch (failure) {
      if (failure.name === "AbortError") return;
      $("problem").textContent = failure instanceof TypeError && !embedded
        ? `The server does not answer: is \`grpo view\` still running? (${failure.message})` : failure.message;
      $("problem").hidden = false;
      return;
    }
    $("problem").hidden = true;
  };
}

// --- charts ----------------------------------------------------------------------------------------------------

function drawChart(chart) {
  const { width, height, right, top, bottom } = GEOMETRY, left = chart.left;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${chart.title}: ${chart.summary}` });
  for (const tick of chart.y_ticks) {
    const label = svg("text", { x: left - 6, y: tick.at + 4, "text-anchor": "end" });
    label.textContent = tick.label;
    drawing.append(svg("line", { class: "grid", x1: left, x2: right, y1: tick.at, y2: tick.at }), label);
  }
  for (const tick of chart.x_ticks) {
    // A long label of the last step would leave the chart, so it moves to the left.
    const x = Math.min(tick.at, width - 4.5 * tick.label.length);
    const label = svg("text", { x, y: bottom + 18, "text-anchor": "middle" });
    label.textContent = tick.label;
    drawing.append(label);
  }
  for (const shape of [...chart.shapes].reverse()) {
    if (shape.is_area) drawing.append(svg("polygon", { class: `area ${shape.style}`, points: shape.points }));
    else drawing.append(svg("polyline", { class: `line ${shape.style}${shape.is_faint ? " faint" : ""}`, points: shape.points }));
    for (const [x, y] of shape.dots) drawing.append(svg("circle", { class: `dot ${shape.style}`, cx: x, cy: y, r: 3.2 }));
  }
  const cursor = svg("line", { class: "cursor", x1: 0, x2: 0, y1: top, y2: bottom });
  drawing.append(cursor);
  const named = chart.shapes.filter((shape) => !shape.is_faint);
  const legend = el("div", { class: "legend" }, ...(named.length > 1
    ? named.map((shape) => el("span", { class: shape.style }, el("i"), el("span", {}, shape.label))) : []));
  const output = el("div", { class: "readout", "aria-live": "polite" });
  const figure = el("figure", { class: "card" },
    el("figcaption", {}, el("span", {}, chart.title), el("span", { class: "soft" }, chart.unit)), drawing, el("div", { class: "foot" }, legend, output));
  readOut(figure, drawing, cursor, output, chart.readout);
  return figure;
}

// Show the values under the pointer, or at the step that the arrow keys choose.
function readOut(figure, drawing, cursor, output, { origin, scale, series }) {
  const steps = [...new Set(series.flatMap(([, points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  const values = series.map(([label, points]) => [label, new Map(points)]);
  let chosen = -1;
  const show = (at) => {
    chosen = Math.max(0, Math.min(steps.length - 1, at));
    const step = steps[chosen];
    cursor.setAttribute("x1", origin + scale * step);
    cursor.setAttribute("x2", origin + scale * step);
    figure.classList.add("reading");
    output.textContent = `step ${step}: ` + values.filter(([, known]) => known.has(step)).map(([label, known]) =>
      (values.length > 1 ? `${label} ` : "") + short(known.get(step), 6)).join(", ");
  };
  const hide = () => { chosen = -1; figure.classList.remove("reading"); output.textContent = ""; };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const step = ((event.clientX - box.left) * GEOMETRY.width / box.width - origin) / scale;
    let nearest = 0;
    steps.forEach((other, at) => { if (Math.abs(other - step) < Math.abs(steps[nearest] - step)) nearest = at; });
    show(nearest);
  });
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: steps.length - 1 };
    if (event.key in moves) { show(moves[event.key]); event.preventDefault(); }
  });
}

// --- curves ----------------------------------------------------------------------------------------------------

function showRuns() {
  $("runs").replaceChildren(...overview.runs.map((data, at) =>
    el("li", { class: `r${at % 6 + 1}`, title: data.folder }, el("i"), el("span", {}, data.name), " ",
      el("span", { class: "soft" }, data.last_step === null ? (data.ending ? "no step" : "no step yet") : `step ${data.last_step}`))));
  $("run").replaceChildren(...overview.runs.map((data, at) => option(at, data.name, at === run)));
  $("run-label").hidden = overview.runs.length < 2;
  document.title = `${overview.runs.map((data) => data.name).join(", ")} · VeriGRPO`;
  $("live").textContent = embedded ? `exported ${embedded.made}` : "";
  const ended = overview.runs.filter((data) => data.ending);
  $("endings").hidden = !ended.length;
  $("endings").textContent = ended.map((data) => (overview.runs.length > 1 ? `${data.name}: ` : "") + data.ending).join("\n");
}

// One column for each run. The table also has rows for settings that only some runs have.
function runTable(title, rowsOfRun) {
  const tables = overview.runs.map((data) => new Map(rowsOfRun(data)));
  const labels = [...new Set(tables.flatMap((table) => [...table.keys()]))];
  const several = overview.runs.length > 1;
  return el("section", { class: "card outcome", hidden: !labels.length }, several ? null : el("h2", {}, title), el("table", {},
    el("thead", { hidden: !several }, el("tr", {}, el("th", { scope: "col" }, title), ...overview.runs.map((data) => el("th", { scope: "col" }, data.name)))),
    el("tbody", {}, ...labels.map((label) => el("tr", {}, el("th", { scope: "row" }, label),
      ...tables.map((table) => el("td", {}, (table.get(label) ?? "").replace("->", "→"))))))));
}

function showOutcomes() {
  $("outcomes").parentElement.classList.toggle("several", overview.runs.length > 1);
  $("outcomes").replaceChildren(runTable("Outcome", (data) => data.table));
  $("recipe").replaceChildren(runTable("Recipe", (data) => data.recipe));
  $("main-charts").replaceChildren(...overview.main.map(drawChart));
  if (!overview.main.length) $("main-charts").append(el("p", { class: "soft" }, overview.runs.every((data) => data.ending) ? "No step was reported." : "No step was reported yet."));
  performance.mark("curves");
}

const showAllCharts = guarded(async () => {
  const text = $("metric-text").value.trim().toLowerCase();
  const open = new Set([...$("all-charts").querySelectorAll("details[open]")].map((box) => box.dataset.name));
  const made = [];
  for (const section of overview.sections) {
    const metrics = section.metrics.filter((name) => name.toLowerCase().includes(text));
    if (!metrics.length) continue;
    const place = el("div", { class: "charts" });
    const fill = guarded(async () => place.replaceChildren(...(await ask("charts", { metric: metrics })).map(drawChart)));
    const box = el("details", { class: "card", "data-name": section.name }, el("summary", {}, `${section.name} `,
      el("span", { class: "soft" }, count(metrics.length, "curve"))), place);
    box.addEventListener("toggle", () => { if (box.open && !place.children.length) fill(); });
    box.open = text !== "" || open.has(section.name);
    made.push(box);
  }
  $("all-charts").replaceChildren(...(made.length ? made : [el("p", { class: "soft" }, overview.sections.length ? "No metric has this in its name." : "No metric was reported.")]));
});

// --- groups ----------------------------------------------------------------------------------------------------

const groups = { total: 0, stored: 0, pages: new Map(), query: null, chosen: -1, shown: null, asking: null };

function wanted() {
  const form = new FormData($("filters"));
  return { run, ...Object.fromEntries([...form].filter(([key]) => key !== "status")), status: form.getAll("status") };
}

const filterGroups = guarded(async (keep = false) => {
  groups.asking?.abort();
  groups.asking = new AbortController();
  const query = wanted(), begun = performance.now();
  const data = await ask("groups", { ...query, offset: 0, limit: PAGE }, groups.asking.signal);
  const more = data.groups - groups.total;
  groups.query = query;
  groups.total = data.groups;
  groups.stored = data.of_groups;
  groups.pages = new Map([[0, data.rows]]);
  $("rows").style.height = `${data.groups * ROW}px`;
  if (!keep) $("list").scrollTop = 0;
  const unread = data.unread ? `; ${count(data.unread, "step")} still being read` : "";
  const torn = data.problems.length ? `; ${data.problems.join("; ")}` : "";
  $("found").textContent = `${data.groups.toLocaleString("en")} of ${count(data.of_groups, "group")}, `
    + `${data.completions.toLocaleString("en")} of ${count(data.of_completions, "completion")}${unread}${torn}`;
  showHeld(query.source);
  if (keep && groups.shown) await findShown(more);
  else groups.chosen = data.groups ? 0 : -1;
  await showRows();
  performance.measure("filter", { start: begun, end: performance.now() });
  performance.mark("groups");
  if (!keep || !groups.shown) await showDetail();
});

// Show how many of the stored completions an exported page holds, and the command that shows all of them.
function showHeld(source) {
  const held = embedded?.runs[run].groups[source];
  $("held").hidden = !held?.of_steps;
  if (!held?.of_steps) return;
  const isWhole = held.rows.length === held.of_groups && held.steps === held.of_steps && held.details.every((group) => !group.left_out);
  $("held").replaceChildren(isWhole ? "This file holds all stored completions."
    : `This file holds ${count(held.rows.length, "group")} of ${held.steps} of the ${count(held.of_steps, "stored step")}. All of them: `,
  isWhole ? "" : el("code", {}, overview.runs[run].command));
}

// A run in progress adds groups before or after the chosen group. The chosen group stays chosen, and keeps its place.
async function findShown(more) {
  const before = groups.chosen;
  groups.chosen = -1;
  for (const at of [before, before + more]) {
    const row = at >= 0 && at < groups.total ? (await rowsOf(Math.floor(at / PAGE)))[at % PAGE] : null;
    if (row && row.step === groups.shown.step && row.group === groups.shown.group) {
      groups.chosen = at;
      $("list").scrollTop += (at - before) * ROW;
      return;
    }
  }
}

async function rowsOf(page) {
  if (!groups.pages.has(page)) {
    const request = ask("groups", { ...groups.query, offset: page * PAGE, limit: PAGE });
    groups.pages.set(page, request.then((data) => data.rows, (failure) => { groups.pages.delete(page); throw failure; }));
  }
  return groups.pages.get(page);
}

async function showRows() {
  const query = groups.query;
  const first = Math.max(0, Math.floor($("list").scrollTop / ROW) - 4);
  const last = Math.min(groups.total - 1, Math.ceil(($("list").scrollTop + $("list").clientHeight) / ROW) + 4);
  const made = [];
  for (let at = first; at <= last; at += 1) {
    const row = (await rowsOf(Math.floor(at / PAGE)))[at % PAGE];
    if (row) made.push(drawRow(row, at));
  }
  // The filter may have changed during the request.
  if (query !== groups.query) return;
  $("rows").replaceChildren(...made);
  if (!groups.total) $("rows").replaceChildren(el("p", { class: "row soft" }, groups.stored ? "Nothing passes the filter." : "No completions are stored yet."));
  if (groups.chosen >= first && groups.chosen <= last) $("list").setAttribute("aria-activedescendant", `row-${groups.chosen}`);
  else $("list").removeAttribute("aria-activedescendant");
}

function drawRow(row, at) {
  const tally = el("span", { class: "tally", "aria-hidden": "true" });
  for (const [status, number] of Object.entries(row.statuses)) {
    const part = el("i", { class: `status-${status}` });
    part.style.flex = number;
    tally.append(part);
  }
  const counts = Object.entries(row.statuses).map(([status, number]) => `${number} ${status}`).join(", ");
  const made = el("div", { class: "row", role: "option", id: `row-${at}`, "aria-selected": at === groups.chosen ? "true" : "false",
    "aria-setsize": groups.total, "aria-posinset": at + 1, onclick: () => choose(at) },
    el("div", {}, row.prompt.replace(/\s+/g, " ")),
    el("div", { class: "facts" }, tally, ...[`step ${row.step}`, `reward ${fixed(row.reward)}`, `${Math.round(row.tokens)} tokens`,
      row.matches < row.completions ? `${row.matches} of ${row.completions} match` : ""].map((fact) => el("span", { title: counts }, fact))));
  made.style.top = `${at * ROW}px`;
  return made;
}

const choose = guarded(async (at) => {
  if (!groups.total) return;
  groups.chosen = Math.max(0, Math.min(groups.total - 1, at));
  const list = $("list"), top = groups.chosen * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  await showRows();
  await showDetail();
});

async function showDetail() {
  if (groups.chosen < 0) {
    groups.shown = null;
    $("detail").replaceChildren();
    return;
  }
  const at = groups.chosen;
  const row = (await rowsOf(Math.floor(at / PAGE)))[at % PAGE];
  if (row) await openGroup(groups.query.source, row.step, row.group, () => at === groups.chosen);
}

let shading = false;
async function openGroup(source, step, group, isWanted = () => true) {
  const data = await ask("group", { run, source, step, group, tokens: shading });
  if (!isWanted()) return;
  groups.shown = { source, step, group };
  const again = guarded(() => openGroup(source, step, group));
  const shade = el("input", { type: "checkbox", checked: shading, onchange: (event) => { shading = event.target.checked; again(); } });
  const canShade = data.completions.some((completion) => completion.tokens) || !embedded;
  const ranked = [...data.completions].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
  const largest = Math.max(1e-9, ...ranked.map((completion) => Math.abs(completion.advantage ?? 0)));
  const text = $("filters").elements.text.value.trim();
  $("detail").replaceChildren(
    el("div", { class: "head" }, el("h2", {}, `step ${data.step}, group ${data.group}`), el("span", { class: "soft" }, data.prompt_id),
      canShade ? el("label", { class: "push" }, shade, "shade tokens by log-probability") : null, shading && canShade ? scale(data) : null),
    el("div", { class: "prompt" },
      el("div", {}, el("div", { class: "soft" }, "prompt"), pre(data.prompt, text)),
      el("div", {}, el("div", { class: "soft" }, "reference"), pre(data.reference, ""))),
    ...(data.left_out ? [el("p", { class: "soft" }, `${count(data.left_out, "completion")} between the best and the worst are not in this file.`)] : []),
    el("div", { class: "completions" }, ...ranked.map((completion) => drawCompletion(completion, largest, text))));
  $("detail").scrollTop = 0;
}

function scale(data) {
  const steps = [["p0", "90 %"], ["p1", "50 %"], ["p2", "20 %"], ["p3", "5 %"], ["p4", "less"]];
  return el("span", { class: "scale" }, "probability of at least", ...steps.map(([style, limit]) => el("i", { class: style }, limit)),
    data.has_tokenizer ? null : "the run has no tokenizer: tokens by number");
}

function pre(text, sought) {
  return el("pre", { tabindex: 0 }, ...marked(text, sought));
}

// Return the text, with the searched text marked.
function marked(text, sought) {
  if (!sought) return [text];
  const parts = [], lower = text.toLowerCase(), needle = sought.toLowerCase();
  // Some letters change their length in lower case. The positions then differ, so nothing is marked.
  if (lower.length !== text.length) return [text];
  let from = 0;
  for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, from)) {
    parts.push(text.slice(from, at), el("mark", {}, text.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  return [...parts, text.slice(from)];
}

function drawCompletion(completion, largest, text) {
  const { advantage, versions } = completion, policy = versions.length > 1 ? `${versions[0]} to ${versions.at(-1)}` : versions[0];
  const ended = { stop: "ended by itself", length: "cut at the limit" }[completion.finish_reason] ?? completion.finish_reason;
  const gauge = el("i", { class: advantage > 0 ? "up" : "down" });
  const share = Math.abs(advantage ?? 0) / largest * 50;
  gauge.style.width = `${share}%`;
  gauge.style.left = advantage > 0 ? "50%" : `${50 - share}%`;
  return el("article", { class: "card completion", "aria-label": `completion ${completion.sample}` },
    el("p", { class: "score" }, el("span", {}, "reward ", el("b", {}, completion.reward === null ? "none" : short(completion.reward))),
      el("span", {}, "advantage ", el("b", { class: advantage > 0 ? "up" : advantage < 0 ? "down" : "" }, advantage === null ? "none" : signed(advantage)))),
    el("div", { class: "gauge", "aria-hidden": "true" }, gauge),
    el("p", { class: "soft" }, `${count(completion.completion_tokens, "token")}, ${ended}, policy ${policy}`),
    completion.turns ? el("p", { class: "soft" }, conversationFacts(completion)) : null,
    ...(shading && completion.tokens ? [shadedTokens(completion)] : completion.turns ? drawTurns(completion.turns, text) : [pre(completion.completion, text)]),
    verdictList(completion.verdicts));
}

function conversationFacts({ turns, calls, call_failures, ended, waited_s }) {
  const spoken = turns.filter((turn) => turn.role === "assistant").length;
  return [count(spoken, "turn"), count(calls, "tool call") + (call_failures ? ` (failed: ${call_failures})` : ""),
    `ended: ${ended}`, `${short(waited_s)} s for tools and environment`].join(", ");
}

// What the policy said, and what answered it, each under the name of the speaker.
function drawTurns(turns, text) {
  return turns.flatMap(({ role, name, content }) => {
    const speaker = role === "assistant" ? "policy" : role === "tool" ? `result of ${name || "a tool"}` : role;
    const said = pre(content, text);
    if (role !== "assistant") said.classList.add("given");
    return [el("p", { class: "speaker soft" }, speaker), said];
  });
}

function shadedTokens(completion) {
  const made = el("pre", { tabindex: 0, class: "tokens" });
  let before = completion.tokens[0]?.[2];
  for (const [text, logprob, policy] of completion.tokens) {
    if (logprob === null) {
      made.append(el("span", { class: "given", title: "given by a tool, an environment or the chat template; carries no loss" }, text));
      continue;
    }
    const chance = Math.exp(logprob);
    const level = [0.9, 0.5, 0.2, 0.05].filter((limit) => chance < limit).length;
    made.append(el("span", { class: `p${level}${policy !== before ? " version" : ""}`,
      title: `log-probability ${fixed(logprob, 3)} (${(chance * 100).toPrecision(3)} %), policy ${policy}` }, text));
    before = policy;
  }
  if (completion.tokens.length < completion.completion_tokens) made.append(`\n[... ${count(completion.completion_tokens - completion.tokens.length, "token")} more, not shaded ...]`);
  return made;
}

// `✓ 1.0`, `✗ 0.0 wrong`: the mark, the score with its point, and the status unless the mark says it.
function verdictText({ status, score }) {
  const number = score === null ? [] : [Number.isInteger(score) ? score.toFixed(1) : short(score)];
  return [MARKS[status] ?? "·", ...number, ...(status === "correct" ? [] : [status])].join(" ");
}

function verdictList(verdicts) {
  return el("ul", { class: "verdicts" }, ...verdicts.map((verdict) => el("li", {},
    `${verdict.verifier} `, el("span", { class: `status status-${verdict.status}`, title: verdict.status }, verdictText(verdict)),
    verdict.reason ? el("span", { class: "soft" }, ` · ${verdict.reason}`) : null,
    verdict.parts.length ? el("span", { class: "soft" }, ` (${verdict.parts.map((part) => `${part.name} ${short(part.value)}`).join(", ")})`) : null)));
}

// --- learned ---------------------------------------------------------------------------------------------------

function offerSteps() {
  const { stored, evaluated, timed } = overview.runs[run];
  const steps = evaluated.length > 1 ? evaluated : stored;
  const offered = embedded ? (embedded.runs[run].learned ? [embedded.runs[run].learned.before, embedded.runs[run].learned.after] : []) : steps;
  const keep = (id, fallback) => (offered.includes(Number($(id).value)) && $(id).value !== "" ? Number($(id).value) : fallback);
  const [before, after] = [keep("before", offered[0]), keep("after", offered.at(-1))];
  $("before").replaceChildren(...offered.slice(0, -1).map((step) => option(step, undefined, step === before)));
  $("after").replaceChildren(...offered.slice(1).map((step) => option(step, undefined, step === after)));
  const known = embedded ? Object.keys(embedded.runs[run].timeline).map(Number) : timed;
  const step = $("step").value === "" ? known.at(-1) : Number($("step").value);
  $("step").replaceChildren(...known.map((number) => option(number, undefined, number === step)));
}

const showLearned = guarded(async () => {
  if ($("before").value === "" || $("after").value === "") {
    $("learned-body").replaceChildren(el("p", { class: "soft" }, "A comparison needs two steps with stored completions."));
    return;
  }
  const data = await ask("learned", { run, before: $("before").value, after: $("after").value });
  const { higher, lower, same, unknown } = data.reward_changes, of = higher + lower + same + unknown;
  const { more, fewer } = data.correct_changes;
  $("learned-counts").textContent = of ? (data.source === "held-out" ? count(of, "held-out prompt") : `${count(of, "training prompt")} that came again`)
    + (data.completions > 1 ? `: ${more} more often correct, ${fewer} less often correct` : `: ${more} newly correct, ${fewer} no longer correct`)
    + `; the reward is higher for ${higher}, lower for ${lower}, the same for ${same}${unknown ? `, unknown for ${unknown}` : ""}`
    : "no prompt has stored completions at both";
  if (embedded) $("learned-counts").append(`. This file compares the first and the last step. Other steps: ${overview.runs[run].command}`);
  const [change, kind] = $("kind").value.split(" ");
  const shown = data.prompts.filter((prompt) => !change || prompt[change] === kind);
  const side = (answer) => el("div", {}, el("p", { class: "soft" }, `step ${answer.step}: `,
    el("span", { class: `status status-${answer.status}` }, `${MARKS[answer.status] ?? "·"} ${answer.status}`), ` reward ${answer.reward === null ? "unknown" : short(answer.reward)}`
      + `${answer.of > 1 ? ` (mean of ${answer.known})` : ""}, ${count(answer.completion_tokens, "token")}`), pre(answer.completion, ""), el("p", { class: "soft" }, answer.reason));
  const prompts = el("div", {}, ...shown.map((prompt) => el("article", { class: "card compared" },
    el("div", {}, el("b", {}, prompt.prompt), el("span", { class: "soft" }, `  reference ${prompt.reference}`)),
    el("div", { class: "sides" }, side(prompt.before), side(prompt.after)))));
  if (shown.length < of && !$("kind").value) prompts.append(el("p", { class: "soft" }, `The ${shown.length} prompts that changed most.`));
  const rows = data.metrics.map((metric) => el("tr", {}, el("th", { scope: "row" }, metric.name), el("td", {}, short(metric.before)), el("td", {}, short(metric.after)),
    el("td", {}, `${metric.difference > 0 ? "+" : ""}${short(metric.difference)}`)));
  $("learned-body").replaceChildren(prompts, el("div", { class: "card metrics", tabindex: 0, "aria-label": "metrics" }, el("table", { class: "numbers" },
    el("thead", {}, el("tr", {}, ...["last value up to", `step ${data.before}`, `step ${data.after}`, "difference"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows))));
});

// --- flags, mismatch, time line, config ------------------------------------------------------------------------

const showFlags = guarded(async () => {
  const data = await ask("flags", { run });
  $("flag-count").textContent = data.length ? String(data.length) : "";
  $("flag-list").replaceChildren(...data.map((flag) => el("article", { class: "card flag" }, el("h2", {}, flag.title), el("p", {}, flag.evidence),
    ...flag.metrics.map((name) => el("button", { type: "button", onclick: () => showMetric(name) }, `curve of ${name}`)),
    ...flag.groups.map(([step, group]) => el("button", { type: "button", onclick: () => visit(step, group) }, `step ${step}, group ${group}`)))));
  if (data.length) return;
  const { made, not_made: notMade } = overview.runs[run].checks;
  const list = (checks) => el("ul", {}, ...checks.map((check) => el("li", {}, check)));
  if (made.length) $("flag-list").append(el("p", {}, "Nothing stands out in what this run has recorded so far. Looked at:"), list(made));
  if (notMade.length) $("flag-list").append(el("p", {}, "Not looked at:"), list(notMade));
});

function showMetric(name) {
  $("metric-text").value = name;
  location.hash = "curves";
  showAllCharts();
  $("metric-text").focus();
  setTimeout(() => $("metric-text").scrollIntoView(), 100);
}

const visit = guarded(async (step, group) => {
  $("filters").reset();
  Object.assign($("filters").elements.step_low, { value: step });
  Object.assign($("filters").elements.step_high, { value: step });
  groups.shown = null;
  location.hash = "groups";
  await filterGroups();
  const at = (await rowsOf(0)).findIndex((row) => row.group === group);
  if (at >= 0) await choose(at);
  else await openGroup("training", step, group);
  $("detail").focus();
});

const showMismatch = guarded(async () => {
  const data = await ask("mismatch", { run });
  const alarm = data.alarm === null ? "no alarm is set" : `the alarm (report.mismatch_alarm) is at ${short(data.alarm)}`;
  $("mismatch-text").textContent = data.last === null ? "This run has no learner/mismatch_kl_first."
    : `Divergence of learner and generators before the policy moves: ${short(data.last)} nats at last, ${short(data.worst)} at worst (step ${data.worst_step}); ${alarm}`
      + (data.above.length ? `, and ${count(data.above.length, "step is", "steps are")} above it, the first ${data.above[0]}.` : ".");
  $("mismatch-text").className = data.above.length ? "down" : "";
  $("mismatch-charts").replaceChildren(...data.charts.map(drawChart));
});

const showTimeLine = guarded(async () => {
  if ($("step").value === "") {
    $("lanes").replaceChildren(el("p", { class: "soft" }, "No step was timed yet."));
    return;
  }
  const data = await ask("timeline", { run, step: $("step").value });
  const at = (seconds) => `${seconds / data.end * 100}%`;
  const lanes = data.lanes.map((lane) => {
    const track = el("div", { class: "track" });
    for (const span of lane.spans) {
      const text = `${span.phase} ${fixed(span.to - span.from)} s`;
      const bar = el("div", { class: `part-${span.phase} phase-${span.phase}`, title: `${text}, from ${fixed(span.from)} to ${fixed(span.to)} s` });
      bar.style.left = at(span.from);
      bar.style.width = at(span.to - span.from);
      track.append(bar);
    }
    const edge = el("div", { class: "edge" });
    edge.style.left = at(data.seconds);
    track.append(edge);
    const phases = [...new Set(lane.spans.map((span) => span.phase))];
    const lasted = (phase) => lane.spans.filter((span) => span.phase === phase).reduce((sum, span) => sum + span.to - span.from, 0);
    const labels = phases.flatMap((phase) => [" ", el("span", { class: "soft" }, el("span", { class: `key part-${phase} phase-${phase}`, "aria-hidden": "true" }),
      `${phase} ${fixed(lasted(phase))} s`)]);
    return el("div", { class: "lane" }, el("span", {}, lane.actor, ...labels), track);
  });
  const axis = el("div", { class: "axis" }, ...[0, 0.25, 0.5, 0.75, 1].map((share) => {
    const label = el("span", {}, `${fixed(share * data.end)} s`);
    label.style.left = `${share * 100}%`;
    return label;
  }));
  $("lanes").replaceChildren(...lanes, el("div", { class: "lane" }, el("span"), axis));
  const late = [...new Set(data.lanes.flatMap((lane) => lane.spans).filter((span) => span.to > data.seconds).map((span) => span.phase))];
  const after = fixed(data.end) === fixed(data.seconds) ? "" : `; with the work after the step (${late.join(", ")}), the time line ends at ${fixed(data.end)} s`;
  $("timeline-text").textContent = `The step took ${fixed(data.seconds)} s${after}`
    + (data.compute ? `; the learner's ranks computed for ${fixed(data.compute)} s` : "")
    + (data.recorded ? "" : "; this run did not record when phases began, so they are drawn one after the other")
    + (data.by_actor ? ". An actor measures its lane by its own clock; the driver's lane shows its work and its waiting."
      : ". This run did not record single actors: the lanes show what the loop waited for; verify is the wait after the last completion.")
    + (data.complete ? "" : " This is the newest step: the work of an actor after its last message comes with its next message.")
    + ($("step").length < overview.runs[run].timed.length ? ` This file holds ${$("step").length} of ${count(overview.runs[run].timed.length, "step")}; all: ${overview.runs[run].command}` : "");
  $("timeline-chart").replaceChildren(...(data.chart ? [drawChart(data.chart)] : []));
});

const showConfig = guarded(async () => { $("config-text").textContent = overview.runs[run].config || "The run's folder has no config.yaml."; });

function moveStep(by) {
  const select = $("step"), at = select.selectedIndex + by;
  if (at >= 0 && at < select.options.length) { select.selectedIndex = at; showTimeLine(); }
}

// --- the page --------------------------------------------------------------------------------------------------

const SECTIONS = { curves: showAllCharts, groups: () => filterGroups(groups.query !== null), learned: showLearned, flags: showFlags,
  mismatch: showMismatch, timeline: showTimeLine, config: showConfig };
const isOffered = (name) => name in SECTIONS && !overview?.runs[run].without.includes(name);
const section = () => (isOffered(location.hash.slice(1)) ? location.hash.slice(1) : "curves");

async function showSection() {
  for (const name of Object.keys(SECTIONS)) {
    $(`section-${name}`).hidden = name !== section();
    const link = document.querySelector(`nav a[href="#${name}"]`);
    link.parentElement.hidden = !isOffered(name);
    if (name === section()) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  await SECTIONS[section()]();
}

const refresh = guarded(async () => {
  overview = await ask("overview");
  showRuns();
  showOutcomes();
  offerSteps();
  await showSection();
  if (section() !== "flags") await showFlags();
});

async function poll() {
  try {
    const state = document.hidden ? null : await ask("state");
    if (state && state.version !== version) {
      version = state.version;
      await refresh();
    }
    $("live").textContent = state?.unread ? `reading ${count(state.unread, "step")}` : "";
  } catch (failure) {
    $("live").textContent = "the server does not answer";
  }
  setTimeout(poll, POLL_MS);
}

function changeTheme() {
  const order = ["", "light", "dark"], names = { "": "system", light: "light", dark: "dark" };
  const root = document.documentElement, next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % 3];
  root.dataset.theme = next;
  $("theme").textContent = `theme: ${names[next]}`;
}

function soon(action, wait) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, wait); };
}

function begin() {
  $("theme").addEventListener("click", changeTheme);
  addEventListener("hashchange", showSection);
  $("run").addEventListener("change", () => {
    run = Number($("run").value);
    groups.query = groups.shown = null;
    for (const id of ["before", "after", "step"]) $(id).replaceChildren();
    offerSteps();
    showSection().then(showFlags);
  });
  $("statuses").append(...Object.keys(MARKS).map((status) => el("label", {}, el("input", { type: "checkbox", name: "status", value: status }),
    el("span", { class: `status-${status}` }, status))));
  $("filters").addEventListener("input", soon(() => filterGroups(), 80));
  $("filters").addEventListener("reset", () => setTimeout(() => filterGroups()));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("list").addEventListener("scroll", guarded(showRows));
  $("list").addEventListener("keydown", (event) => {
    const many = Math.floor($("list").clientHeight / ROW);
    const moves = { ArrowDown: groups.chosen + 1, ArrowUp: groups.chosen - 1, PageDown: groups.chosen + many, PageUp: groups.chosen - many,
      Home: 0, End: groups.total - 1 };
    if (event.key in moves) { choose(moves[event.key]); event.preventDefault(); }
    if (event.key === "Enter") $("detail").focus();
  });
  $("detail").addEventListener("keydown", (event) => { if (event.key === "Escape") $("list").focus(); });
  $("metric-text").addEventListener("input", soon(showAllCharts, 120));
  for (const id of ["before", "after", "kind"]) $(id).addEventListener("change", showLearned);
  $("step").addEventListener("change", showTimeLine);
  $("step-back").addEventListener("click", () => moveStep(-1));
  $("step-on").addEventListener("click", () => moveStep(1));
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || /^(input|select|textarea)$/i.test(event.target.tagName)) return;
    event.preventDefault();
    if (!isOffered("groups")) return;
    location.hash = "groups";
    showSection();
    $("filters").elements.text.focus();
  });
  if (embedded) refresh();
  else poll();
}

begin();
