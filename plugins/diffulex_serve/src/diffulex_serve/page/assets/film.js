// An answer that was seen, forward by forward: looked at again, and saved.

import { NOTHING, fold } from "./fold.js";

const LONGEST = 150; // milliseconds for a forward of a replay
const SHORTEST = 25;
const WHOLE = 20_000; // milliseconds for a replay, where forwards are not shorter than that
const KEPT = 10_000; // milliseconds in which a browser takes what is saved
const COUNTS = ["completion_tokens", "nfe", "tpf", "decode_time"]; // of an answer, in its last event

/** The events of an answer, and its state after each of its forwards; states share what did not change. */
export class Recording {
  events = [];
  states = [NOTHING];

  get last() {
    return this.states.at(-1);
  }

  /** Take in an event; the state after it. */
  add(event) {
    const state = fold(this.last, event);
    this.events.push(event);
    if (state.nfe === this.last.nfe) this.states.pop();
    this.states.push(state);
    return state;
  }
}

/** A recording as lines of JSON, or as a stream was saved by another program. Throws where it is none. */
export function recorded(text) {
  const recording = new Recording();
  text.split("\n").forEach((line, at) => {
    const data = line.replace(/^data: /, "").trim();
    if (data === "" || data === "[DONE]") return;
    try {
      recording.add(JSON.parse(data));
    } catch (error) {
      throw new Error(`Line ${at + 1} is no event of a stream that was saved: ${error.message}`);
    }
  });
  const { start, end } = recording.last;
  if (!start) throw new Error("These are no events of a stream: the first one is missing.");
  if (end && !COUNTS.every((name) => Number.isFinite(end.usage?.[name]))) {
    throw new Error("The last event does not tell what the answer cost.");
  }
  return recording;
}

/** The controls below a canvas. */
export class Film {
  #parts; // elements: all, replay, scrub, at, save
  #draw;
  #recording = new Recording();
  #timer = null;

  /** `parts`: the elements; `draw`: what shows a state. */
  constructor(parts, draw) {
    this.#parts = parts;
    this.#draw = draw;
    parts.scrub.addEventListener("input", () => {
      this.halt();
      this.#show();
    });
    parts.replay.addEventListener("click", () => (this.#timer === null ? this.replay() : this.halt()));
    parts.save.addEventListener("click", () => this.#save());
    this.hold(this.#recording);
  }

  /** Hold a recording; one with nothing to look at switches the controls off. */
  hold(recording) {
    this.halt();
    this.#recording = recording;
    const last = recording.states.length - 1;
    this.#parts.all.classList.toggle("off", last < 1);
    for (const name of ["replay", "scrub", "save"]) this.#parts[name].disabled = last < 1;
    this.#parts.scrub.max = String(last);
    this.#parts.scrub.value = String(last);
    this.#label();
  }

  /** End a replay. */
  halt() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.#parts.replay.textContent = "Replay";
  }

  /** Show all forwards one after the other. */
  replay() {
    const { scrub, replay } = this.#parts;
    const every = Math.max(SHORTEST, Math.min(LONGEST, WHOLE / this.#recording.states.length));
    const pace = Math.max(1, Math.round((this.#recording.states.length * every) / WHOLE));
    replay.textContent = "Halt";
    scrub.value = "0";
    this.#show();
    this.#timer = setInterval(() => {
      scrub.value = String(scrub.valueAsNumber + pace);
      this.#show();
      if (scrub.value === scrub.max) this.halt();
    }, every);
  }

  #show() {
    this.#draw(this.#recording.states[this.#parts.scrub.valueAsNumber]);
    this.#label();
  }

  #label() {
    const state = this.#recording.states[this.#parts.scrub.valueAsNumber];
    const text = `${state.nfe} of ${this.#recording.last.nfe}`;
    this.#parts.at.textContent = text;
    this.#parts.scrub.setAttribute("aria-valuetext", `forward ${text}`);
  }

  #save() {
    const lines = this.#recording.events.map((event) => `${JSON.stringify(event)}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = `${this.#recording.events[0].id}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), KEPT);
  }
}
