// Draws the blocks of a state into an element; only what changed is touched.

const PERCENT = 100;
const OLDEST = 6; // steps of age, each twice as long as the one before: 0, 1, 3, 7, 15, 31, 63 forwards

export class Canvas {
  #root;
  #blocks = []; // {node, cells: [{node, shown, heat}], shown, nfe, settled}
  #look = null;

  constructor(root) {
    this.#root = root;
  }

  /** `look`: {colour: "confidence" | "age" | "none", symbol: of masks, or "" for the server's}. */
  draw(state, look) {
    const symbol = look.symbol || state.start?.mask_symbol || "▨";
    const colour = look.colour;
    const all = this.#look?.symbol !== symbol || this.#look?.colour !== colour;
    this.#look = { symbol, colour };
    this.#blocks.splice(state.blocks.length).forEach(({ node }) => node.remove());
    state.blocks.forEach((block, at) => {
      const drawn = this.#blocks[at] ?? this.#open();
      const ageing = colour === "age" && drawn.nfe !== state.nfe && !(drawn.settled && drawn.nfe < state.nfe);
      if (all || ageing || drawn.shown !== block) drawBlock(drawn, block, at, state.nfe, this.#look);
    });
  }

  /** Where the answer grows: the first block that is not final, or the last one. */
  get frontier() {
    return (this.#blocks.find(({ shown }) => !shown.complete) ?? this.#blocks.at(-1))?.node ?? null;
  }

  #open() {
    const drawn = { node: element("block"), cells: [], shown: null, nfe: -1, settled: false };
    this.#root.append(drawn.node);
    this.#blocks.push(drawn);
    return drawn;
  }
}

function drawBlock(drawn, block, index, nfe, look) {
  drawn.cells.splice(block.cells.length).forEach(({ node }) => node.remove());
  while (drawn.cells.length < block.cells.length) {
    const node = drawn.node.appendChild(element("cell"));
    drawn.cells.push({ node, shown: null, heat: null, symbol: null });
  }
  let decided = 0;
  let youngest = OLDEST;
  block.cells.forEach((cell, at) => {
    const each = drawn.cells[at];
    if (each.shown !== cell || each.symbol !== look.symbol) {
      drawCell(each.node, cell, block.start + at, look.symbol);
      each.shown = cell;
      each.symbol = look.symbol;
      each.heat = undefined; // a class that went with the others
    }
    const heat = heatOf(cell, nfe, look.colour);
    if (heat !== each.heat) {
      tint(each.node, heat);
      each.heat = heat;
    }
    if (cell.token !== null) {
      decided += 1;
      youngest = Math.min(youngest, stepOf(cell, nfe));
    }
  });
  if (drawn.shown !== block) {
    const state = block.complete ? "complete" : decided === block.cells.length ? "full" : decided ? "filling" : "waiting";
    drawn.node.dataset.state = state;
    drawn.node.dataset.parity = index % 2 ? "odd" : "even";
    drawn.node.style.setProperty("--done", `${Math.round((decided / block.cells.length) * PERCENT)}%`);
  }
  Object.assign(drawn, { shown: block, nfe, settled: youngest === OLDEST });
}

/** An element as a cell looks, but for its colour. */
export function drawCell(node, cell, position, symbol) {
  const masked = cell.token === null;
  node.className = ["cell", masked ? "mask" : cell.final ? "final" : "provisional",
    ...(cell.edits ? ["edited", cell.edits % 2 ? "odd" : "even"] : []), ...(cell.beyond ? ["beyond"] : [])].join(" ");
  node.textContent = masked ? symbol : visible(cell.text);
  node.title = described(cell, position);
}

/** Colour an element, from 0 (cold) to 1 (hot); null = no colour. */
export function tint(node, heat) {
  node.classList.toggle("known", heat !== null);
  // Chromium writes the attribute when somebody asks for it, and removes only one that is written.
  if (heat === null && node.hasAttribute("style")) node.removeAttribute("style");
  if (heat !== null) node.style.setProperty("--heat", `${Math.round(heat * PERCENT)}%`);
}

function heatOf(cell, nfe, colour) {
  if (cell.token === null || cell.beyond || colour === "none") return null;
  if (colour === "age") return 1 - stepOf(cell, nfe) / OLDEST;
  return cell.confidence === null ? null : heatOfConfidence(cell.confidence);
}

/** The colour of a confidence: most are close to 1, and there they must be told apart. */
export function heatOfConfidence(confidence) {
  return confidence ** 4;
}

function stepOf(cell, nfe) {
  return Math.min(OLDEST, Math.floor(Math.log2(Math.max(0, nfe - cell.born) + 1)));
}

/** A token's text so that it can be seen: ends of lines, and parts of characters, which have none. */
function visible(text) {
  return text === "" ? "·" : text.replaceAll("\n", "↵\n");
}

function described({ token, confidence, born, edits, final, beyond }, position) {
  const parts = [`position ${position}`];
  if (token !== null) parts.push(`token ${token}`, `forward ${born}`);
  if (confidence !== null) parts.push(`confidence ${confidence.toFixed(3)}`);
  if (edits) parts.push(edits === 1 ? "edited once" : `edited ${edits} times`);
  parts.push(beyond ? "beyond the end" : final ? "final" : token === null ? "not decided" : "may change");
  return parts.join(", ");
}

function element(name) {
  const node = document.createElement("span");
  node.className = name;
  return node;
}
