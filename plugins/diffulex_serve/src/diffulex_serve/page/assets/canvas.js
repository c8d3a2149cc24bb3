// Draws the cells of a state into an element; only those that changed are touched.

const PERCENT = 100;

export class Canvas {
  #root;
  #blocks = []; // {node, shown}
  #cells = []; // {node, shown}

  constructor(root) {
    this.#root = root;
  }

  draw(state) {
    this.#fit(state);
    const symbol = state.start?.mask_symbol ?? "▨";
    state.blocks.forEach((block, at) => {
      const drawn = this.#blocks[at];
      if (drawn.shown === block) return;
      drawn.shown = block;
      drawn.node.classList.toggle("complete", block.complete);
    });
    this.#cells.forEach((drawn, at) => {
      const cell = state.cells[at];
      if (drawn.shown === cell) return;
      drawn.shown = cell;
      drawCell(drawn.node, cell, at, symbol);
    });
  }

  /** As many blocks and cells as the state has; those that are too many come from a later state or another answer. */
  #fit(state) {
    const shared = state.blocks.findIndex((block, at) => this.#blocks[at]?.shown.start !== block.start
      || this.#blocks[at]?.shown.len !== block.len);
    const keep = shared < 0 ? state.blocks.length : shared;
    this.#blocks.splice(keep).forEach(({ node }) => node.remove());
    this.#cells.length = this.#blocks.reduce((count, { shown }) => count + shown.len, 0);
    for (const block of state.blocks.slice(keep)) {
      const node = document.createElement("span");
      node.className = "block";
      for (let at = 0; at < block.len; at += 1) {
        const cell = node.appendChild(document.createElement("span"));
        this.#cells.push({ node: cell, shown: null });
      }
      this.#root.append(node);
      this.#blocks.push({ node, shown: { ...block } });
    }
  }
}

/** An element as a cell looks. */
export function drawCell(node, cell, position, symbol) {
  const masked = cell.token === null;
  node.className = ["cell", masked ? "mask" : cell.final ? "final" : "provisional",
    ...(cell.confidence === null ? [] : ["known"]), ...(cell.edits ? ["edited"] : []),
    ...(cell.beyond ? ["beyond"] : [])].join(" ");
  node.textContent = masked ? symbol : visible(cell.text);
  node.title = described(cell, position);
  tint(node, cell.confidence ?? 0);
}

/** Colour an element by a confidence in [0, 1]. */
export function tint(node, confidence) {
  node.style.setProperty("--confidence", `${Math.round(confidence * PERCENT)}%`);
}

/** A token's text so that it can be seen: ends of lines, and parts of characters, which have none. */
function visible(text) {
  return text === "" ? "·" : text.replaceAll("\n", "↵\n");
}

function described({ token, confidence, edits, final, beyond }, position) {
  const parts = [`position ${position}`];
  if (token !== null) parts.push(`token ${token}`);
  if (confidence !== null) parts.push(`confidence ${confidence.toFixed(3)}`);
  if (edits) parts.push(edits === 1 ? "edited once" : `edited ${edits} times`);
  parts.push(beyond ? "beyond the end" : final ? "final" : token === null ? "not decided" : "may change");
  return parts.join(", ");
}
