// The page: what is typed, what the server answers, and what is seen of it.

import { Canvas, tint } from "./canvas.js";
import { requested } from "./controls.js";
import { ending, figures, spelled } from "./figures.js";
import { Film } from "./film.js";
import { NOTHING, fold } from "./fold.js";
import { ServerError, ask, events, key } from "./server.js";

const DRAW_EVERY = 40; // milliseconds
const LOOK_EVERY = 1000; // at a server that loads
const STOP_PATIENCE = 3000; // until an answer that was stopped is given up

const at = (id) => document.getElementById(id);
const canvas = new Canvas(at("canvas"));
const film = new Film(
  { all: at("film"), replay: at("replay"), scrub: at("scrub"), at: at("scrub-at"), save: at("save") },
  (state) => canvas.draw(state),
);
let running = null; // {id, stopped, leave} of the answer that is being made

function say(text) {
  at("status").textContent = text;
}

function complain(text) {
  at("error").textContent = text;
  at("error").hidden = text === "";
}

function show(state, seconds) {
  canvas.draw(state);
  for (const [name, text] of Object.entries(spelled(figures(state, seconds)))) at(`figure-${name}`).textContent = text;
  // What is new is added, so that a screen reader says that alone.
  const fresh = state.text.slice(at("answer").textContent.length);
  if (fresh) at("answer").append(fresh);
}

function enable(busy) {
  at("send").disabled = busy;
  at("halt").disabled = !busy;
}

/** Ask for an answer and show it while it comes. */
async function generate() {
  if (running) return;
  const leaving = new AbortController();
  const run = { id: null, stopped: false, leave: () => leaving.abort() };
  const seen = [];
  let state = NOTHING;
  let began = null;
  let drawing = null;
  const draw = () => {
    drawing = null;
    show(state, began === null ? 0 : (performance.now() - began) / 1000);
  };
  running = run;
  film.hold([]);
  at("answer").replaceChildren();
  complain("");
  enable(true);
  say("Generating…");
  draw();
  try {
    const body = requested(at("ask"), at("prompt").value);
    const response = await ask("generate", { method: "POST", body, signal: leaving.signal });
    for await (const event of events(response)) {
      seen.push(event);
      state = fold(state, event);
      if (state.error) throw new ServerError(response.status, state.error.message);
      if (event.event === "start") {
        run.id = event.id;
        if (run.stopped) end(run);
      } else {
        began ??= performance.now();
      }
      drawing ??= setTimeout(draw, DRAW_EVERY);
    }
    if (!state.end) throw new ServerError(0, "The stream ended before the answer did.");
    say(ending(state));
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else failed(error);
  } finally {
    clearTimeout(drawing);
    draw();
    running = null;
    enable(false);
    film.hold(seen);
  }
}

function failed(error) {
  say("It failed.");
  complain(error.message);
  if (error.status === 401) wantKey();
}

/** Stop the answer: the server ends it and tells what is final. Where it does not, the page leaves. */
function stop() {
  film.halt();
  if (!running || running.stopped) return;
  running.stopped = true;
  say("Stopping…");
  if (running.id !== null) end(running);
  setTimeout(running.leave, STOP_PATIENCE);
}

function end(run) {
  ask(`v1/requests/${encodeURIComponent(run.id)}`, { method: "DELETE" }).catch(run.leave);
}

function wantKey() {
  key.forget();
  at("key-form").hidden = false;
  say("This server wants an API key.");
  at("key").focus();
}

/** Show what answers, once it does. */
async function meet() {
  try {
    const served = await (await ask("version")).json();
    at("served-model").textContent = served.model;
    at("served-strategy").textContent = `${served.strategy} (${served.family})`;
    at("served-block").textContent = String(served.block_size);
    at("served-context").textContent = `${served.max_model_len} tokens`;
    document.title = `${served.model} · diffulex`;
    complain("");
    say("Ready.");
  } catch (error) {
    if (error.status === 401) {
      if (key.get() !== null) complain("This key is wrong.");
      wantKey();
      return;
    }
    say(error.status === 503 ? "The engine is not ready yet…" : "The server does not answer.");
    complain(error.status === 503 ? "" : error.message);
    setTimeout(meet, LOOK_EVERY);
  }
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  at("key").value = "";
  at("key-form").hidden = true;
  complain("");
  at("prompt").focus();
  meet();
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
at("halt").addEventListener("click", () => {
  stop();
  at("prompt").focus();
});
for (const cell of document.querySelectorAll(".legend [data-confidence]")) tint(cell, cell.dataset.confidence / 100);
at("prompt").focus();
meet();
