// The page of `grpo label`. Prompts and answers are hostile: they are inserted as text only, never as HTML.
"use strict";

const byId = (name) => document.getElementById(name);
let state = null; // what the server said last
let places = []; // numbers of answers in each place, the best place first
let ties = false; // whether the next number joins the last place
let busy = false; // whether a request is under way

function show() {
  const item = state.item;
  byId("progress").textContent = `${state.done} of ${state.total} by ${state.labeller}`;
  byId("item").hidden = !item;
  byId("over").hidden = Boolean(item);
  byId("prompt").textContent = item ? item.prompt : "";
  byId("answers").replaceChildren(...(item ? item.answers : []).map((text, at) => card(text, at + 1)));
  byId("agreement").replaceChildren(...state.agreement.map((line) => {
    const row = document.createElement("li");
    row.textContent = line;
    return row;
  }));
  showRanking();
}

function card(text, number) {
  const box = document.createElement("article");
  const title = document.createElement("h2");
  const body = document.createElement("pre");
  title.textContent = `Answer ${number}`;
  body.textContent = text;
  body.tabIndex = 0;
  box.append(title, body);
  return box;
}

function showRanking() {
  const placed = new Set(places.flat());
  [...byId("answers").children].forEach((box, at) => box.classList.toggle("placed", placed.has(at + 1)));
  byId("ranking").textContent = places.map((place) => place.join(" = ")).join(" > ") + (ties ? " = ..." : "");
}

async function send(path, body) {
  if (busy) return;
  busy = true;
  try {
    const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, options || {});
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.detail || `HTTP ${answer.status}`);
    state = data;
    places = [];
    ties = false;
    byId("problem").hidden = true;
    show();
  } catch (problem) {
    byId("problem").textContent = `Not kept: ${problem.message}`;
    byId("problem").hidden = false;
  } finally {
    busy = false;
  }
}

function choose(number, count) {
  if (number < 1 || number > count || places.flat().includes(number)) return;
  if (ties && places.length) places[places.length - 1].push(number);
  else places.push([number]);
  ties = false;
  // The last answer has no choice, unless it may tie: with two answers the first choice decides.
  if (count === 2 && places.length === 1 && places[0].length === 1) finish(count);
  else if (places.flat().length === count) finish(count);
  else showRanking();
}

function finish(count) {
  if (!places.length) return;
  const placed = new Set(places.flat());
  const rest = Array.from({ length: count }, (_, at) => at + 1).filter((number) => !placed.has(number));
  send("/api/label", { id: state.item.id, places: rest.length ? [...places, rest] : places });
}

function back() {
  if (!places.length && !ties) return send("/api/back", {});
  if (ties) ties = false;
  else if (places[places.length - 1].length > 1) places[places.length - 1].pop();
  else places.pop();
  showRanking();
}

document.addEventListener("keydown", (event) => {
  if (!state || busy || event.ctrlKey || event.metaKey || event.altKey) return;
  const count = state.item ? state.item.answers.length : 0;
  if (event.key === "Backspace") back();
  else if (!state.item) return;
  else if (/^[1-9]$/.test(event.key)) choose(Number(event.key), count);
  else if (event.key === "=" && places.length) { ties = true; showRanking(); }
  else if (event.key === "Enter") finish(count);
  else if (event.key === "t") send("/api/label", { id: state.item.id, places: [Array.from({ length: count }, (_, at) => at + 1)] });
  else if (event.key === "s") send("/api/label", { id: state.item.id, places: [] });
  else return;
  event.preventDefault();
});

send("/api/state");
