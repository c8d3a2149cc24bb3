// One server's side of the page: what it is, the answer that it makes, and the conversation so far.

import { Canvas } from "./canvas.js";
import { ending, figures, spelled } from "./figures.js";
import { Film, Recording } from "./film.js";
import { ServerError, events } from "./server.js";
import { Speech } from "./speech.js";

const DRAW_EVERY = 40; // milliseconds
const REST = 3; // times as long as drawing takes, before it is drawn again: long answers are drawn less often
const LOOK_EVERY = 1000; // at a server that loads
const MARGIN = 6; // pixels below what a canvas scrolls to
const STOP_PATIENCE = 3000; // until an answer that was stopped is given up

export class Side {
  #server;
  #look;
  #met;
  #parts; // elements by the value of data-part
  #canvas;
  #film;
  #speech;
  #recording = new Recording();
  #clock = { first: null, now: null };
  #shown = null; // the state that is drawn
  #running = null; // {id, stopped, leave} of the answer that is being made
  #turns = []; // messages of the conversation before the answer that is shown
  #asked = null; // the message that it answers
  #written = 0; // characters of the answer that stand on the page
  #following = true; // whether the canvas scrolls to where the answer grows

  /** `look()`: how to draw; `met(served)`: told what answers, once it is known. */
  constructor({ template, into, server, look, met }) {
    const root = template.content.firstElementChild.cloneNode(true);
    this.#server = server;
    this.#look = look;
    this.#met = met;
    this.#parts = Object.fromEntries([...root.querySelectorAll("[data-part]")].map((node) => [node.dataset.part, node]));
    const parts = this.#parts;
    this.#canvas = new Canvas(parts.canvas);
    this.#speech = new Speech(parts.speech);
    const film = { all: parts.film, replay: parts.replay, scrub: parts.scrub, at: parts.at, save: parts.save };
    this.#film = new Film(film, (state) => this.#show(state));
    for (const what of ["wheel", "touchmove", "keydown"]) {
      parts.scroller.addEventListener(what, () => (this.#following = false), { passive: true });
    }
    parts["key-form"].addEventListener("submit", (event) => {
      event.preventDefault();
      this.#useKey(parts.key.value.trim());
    });
    parts.host.textContent = server.host;
    parts["key-host"].textContent = server.host;
    root.setAttribute("aria-label", server.own ? "This server" : `Server ${server.host}`);
    into.append(root);
  }

  get busy() {
    return this.#running !== null;
  }

  get server() {
    return this.#server;
  }

  /** The conversation with the answer that is shown. */
  get turns() {
    const { text } = this.#recording.last;
    return this.#asked && text ? [...this.#turns, this.#asked, { role: "assistant", content: text }] : this.#turns;
  }

  /** Show what answers, once it does. */
  async meet() {
    try {
      const served = await (await this.#server.ask("version")).json();
      this.#parts.model.textContent = served.model;
      this.#parts.strategy.textContent = `${served.strategy} (${served.family})`;
      this.#parts.block.textContent = String(served.block_size);
      this.#parts.context.textContent = `${served.max_model_len} tokens`;
      if (!this.busy) {
        this.#complain("");
        this.#say("Ready.");
      }
      this.#met(served);
    } catch (error) {
      if (this.busy) {
        setTimeout(() => this.meet(), LOOK_EVERY);
        return;
      }
      if (error.status === 401) {
        if (this.#server.key !== null) this.#complain("This key is wrong.");
        this.#wantKey();
        return;
      }
      this.#say(error.status === 503 ? "The engine is not ready yet…" : "The server does not answer.");
      this.#complain(error.status === 503 ? "" : error.message);
      setTimeout(() => this.meet(), LOOK_EVERY);
    }
  }

  /** Ask for an answer and show it while it comes. `remember`: go on with the conversation; `opening`: before it. */
  async ask(prompt, { body, chat, remember, opening }) {
    this.#turn(remember && chat);
    this.#asked = chat ? { role: "user", content: prompt } : null;
    const messages = [...opening, ...this.#turns, this.#asked];
    await this.#run(chat ? { ...body, messages } : { ...body, prompt });
  }

  /** Stop the answer: the server ends it and tells what is final. Where it does not, the page leaves. */
  stop() {
    this.#film.halt();
    const run = this.#running;
    if (!run || run.stopped) return;
    run.stopped = true;
    this.#say("Stopping…");
    if (run.id !== null) this.#end(run);
    setTimeout(run.leave, STOP_PATIENCE);
  }

  /** Forget the conversation and the answer. */
  clear() {
    this.#asked = null;
    this.#turn(false);
    this.#begin(new Recording());
    this.#complain("");
    this.#say("Ready.");
  }

  /** Show a recording. */
  play(recording, name) {
    this.#asked = null;
    this.#turn(false);
    this.#begin(recording);
    this.#complain("");
    this.#say(`${name}: ${recording.last.end ? ending(recording.last) : "an answer without an end."}`);
    this.#parts.answer.textContent = recording.last.text;
    this.#film.replay();
  }

  /** Draw again, as the look changed. */
  draw() {
    if (this.#shown) this.#canvas.draw(this.#shown, this.#look());
  }

  async #run(body) {
    const leaving = new AbortController();
    const run = { id: null, stopped: false, leave: () => leaving.abort() };
    const recording = new Recording();
    const began = performance.now();
    const since = () => (performance.now() - began) / 1000;
    let drawing = null;
    let pause = DRAW_EVERY;
    const draw = () => {
      drawing = null;
      this.#clock.now = since();
      this.#grow(recording.last);
      pause = Math.max(DRAW_EVERY, REST * (since() - this.#clock.now) * 1000);
    };
    this.#running = run;
    this.#begin(recording);
    this.#complain("");
    this.#say("Generating…");
    try {
      const response = await this.#server.ask("generate", { method: "POST", body, signal: leaving.signal });
      for await (const event of events(response)) {
        const state = recording.add(event);
        if (state.error) throw new ServerError(response.status, state.error.message);
        if (event.event === "start") {
          run.id = event.id;
          if (run.stopped) this.#end(run);
        }
        if (event.event === "fill" || event.event === "block_commit") this.#clock.first ??= since();
        drawing ??= setTimeout(draw, pause);
      }
      if (!recording.last.end) throw new ServerError(0, "The stream ended before the answer did.");
      this.#say(ending(recording.last));
    } catch (error) {
      if (error.name === "AbortError") this.#say("Stopped.");
      else this.#failed(error);
    } finally {
      clearTimeout(drawing);
      draw();
      this.#running = null;
      this.#speech.end();
      this.#film.hold(recording);
    }
  }

  #end(run) {
    this.#server.ask(`v1/requests/${encodeURIComponent(run.id)}`, { method: "DELETE" }).catch(run.leave);
  }

  /** An answer's canvas, empty as yet, or that of a recording. */
  #begin(recording) {
    this.#recording = recording;
    this.#clock = { first: null, now: null };
    this.#following = true;
    this.#film.hold(recording);
    this.#film.halt();
    this.#speech.begin();
    this.#parts.answer.replaceChildren();
    this.#written = 0;
    this.#show(recording.last);
  }

  #show(state) {
    this.#shown = state;
    this.#canvas.draw(state, this.#look());
    const last = this.#recording.last;
    const known = figures(state, this.#clock);
    // Looked at again, an answer is as fast as it was.
    const { tps, ttft } = state === last ? known : figures(last, this.#clock);
    for (const [name, text] of Object.entries(spelled({ ...known, tps, ttft }))) {
      this.#parts[`figure-${name}`].textContent = text;
    }
    if (this.#following) this.#follow();
  }

  #grow(state) {
    this.#show(state);
    const fresh = state.text.slice(this.#written);
    if (!fresh) return;
    this.#written = state.text.length;
    this.#parts.answer.append(fresh);
    this.#speech.grow(state.text);
  }

  #follow() {
    const { scroller } = this.#parts;
    const node = this.#canvas.frontier;
    if (!node) return;
    scroller.scrollTop = Math.max(0, node.offsetTop + node.offsetHeight + MARGIN - scroller.clientHeight);
  }

  /** What was asked and answered becomes part of the conversation, which is forgotten unless it is to be kept. */
  #turn(keep) {
    this.#turns = keep ? this.turns : [];
    this.#parts.turns.replaceChildren(...this.#turns.map(said));
    this.#parts.turns.hidden = this.#turns.length === 0;
    this.#parts.turns.scrollTop = this.#parts.turns.scrollHeight;
  }

  #failed(error) {
    this.#say("It failed.");
    this.#complain(error.message);
    if (error.status === 401) this.#wantKey();
  }

  #wantKey() {
    this.#server.key = null;
    this.#parts["key-form"].hidden = false;
    this.#say("This server wants an API key.");
    this.#parts.key.focus();
  }

  #useKey(key) {
    this.#server.key = key;
    this.#parts.key.value = "";
    this.#parts["key-form"].hidden = true;
    this.#complain("");
    this.meet();
  }

  #say(text) {
    this.#parts.status.textContent = text;
  }

  #complain(text) {
    this.#parts.error.textContent = text;
    this.#parts.error.hidden = text === "";
  }
}

function said({ role, content }) {
  const item = document.createElement("li");
  item.className = role;
  const who = document.createElement("strong");
  who.textContent = role === "user" ? "You" : "Model";
  const text = document.createElement("span");
  text.textContent = content;
  item.append(who, text);
  return item;
}
