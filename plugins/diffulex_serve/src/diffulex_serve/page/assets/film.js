// An answer that was seen, forward by forward: looked at again, and saved.

import { NOTHING, fold } from "./fold.js";

const EVERY = 150; // milliseconds for a forward
const KEPT = 10_000; // milliseconds in which a browser takes what is saved

export class Film {
  #parts; // elements: all, replay, scrub, at, save
  #draw;
  #events = [];
  #marks = []; // index of the last event of each forward
  #timer = null;

  /** `parts`: the elements; `draw`: what shows a state. */
  constructor(parts, draw) {
    this.#parts = parts;
    this.#draw = draw;
    parts.scrub.addEventListener("input", () => {
      this.halt();
      this.#show();
    });
    parts.replay.addEventListener("click", () => (this.#timer === null ? this.#replay() : this.halt()));
    parts.save.addEventListener("click", () => this.#save());
  }

  /** Hold these events; none hides the film. */
  hold(events) {
    this.halt();
    this.#events = events;
    this.#marks = events.flatMap((event, index) => (events[index + 1]?.nfe === event.nfe ? [] : [index]));
    this.#parts.all.hidden = this.#marks.length < 2;
    this.#parts.scrub.max = String(Math.max(0, this.#marks.length - 1));
    this.#parts.scrub.value = this.#parts.scrub.max;
    this.#label();
  }

  /** End a replay. */
  halt() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.#parts.replay.textContent = "Replay";
  }

  #replay() {
    const { scrub, replay } = this.#parts;
    replay.textContent = "Halt";
    scrub.value = "0";
    this.#show();
    this.#timer = setInterval(() => {
      scrub.value = String(scrub.valueAsNumber + 1);
      this.#show();
      if (scrub.value === scrub.max) this.halt();
    }, EVERY);
  }

  #show() {
    const seen = this.#events.slice(0, this.#marks[this.#parts.scrub.valueAsNumber] + 1);
    this.#draw(seen.reduce(fold, NOTHING));
    this.#label();
  }

  #label() {
    const event = this.#events[this.#marks[this.#parts.scrub.valueAsNumber]];
    const text = event ? `${event.nfe} of ${this.#events.at(-1).nfe}` : "";
    this.#parts.at.textContent = text;
    this.#parts.scrub.setAttribute("aria-valuetext", `forward ${text}`);
  }

  #save() {
    const lines = this.#events.map((event) => `${JSON.stringify(event)}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = `${this.#events[0].id}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), KEPT);
  }
}
