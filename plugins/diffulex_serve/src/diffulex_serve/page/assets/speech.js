// What a screen reader is told of an answer: new text in pieces that it can follow, and not each token.

const EVERY = 2000; // milliseconds between two pieces

export class Speech {
  #root;
  #said = 0; // characters
  #text = "";
  #timer = null;

  /** `root`: an element with aria-live. */
  constructor(root) {
    this.#root = root;
  }

  /** An answer begins. */
  begin() {
    this.#stop();
    this.#root.replaceChildren();
    this.#said = 0;
    this.#text = "";
  }

  /** Its text grew. */
  grow(text) {
    this.#text = text;
    this.#timer ??= setTimeout(() => this.#say(), EVERY);
  }

  /** It ended: the rest is told at once. */
  end() {
    this.#stop();
    this.#say();
  }

  #say() {
    this.#timer = null;
    const fresh = this.#text.slice(this.#said);
    this.#said = this.#text.length;
    if (fresh.trim() === "") return;
    const piece = document.createElement("p");
    piece.textContent = fresh;
    this.#root.append(piece);
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }
}
