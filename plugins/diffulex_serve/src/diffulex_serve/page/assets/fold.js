// The diffusion stream protocol, version 1, as a fold: a state and an event make the next state.
// Pure: states are never changed, and what an event leaves alone is shared with the state before. An event costs time
// for the block that it changes and for the list of blocks, whatever the answer's length.

const MOST = 1 << 17; // positions of an answer; more is no answer, and no page could show it

/** The state before the first event. */
export const NOTHING = Object.freeze({
  seq: -1,
  nfe: 0,
  start: null, // the event
  blocks: [], // {start, cells, complete}; cells: one for each position, see MASKED
  committed: 0, // tokens that are final
  text: "", // their text
  edits: 0, // rewrites and remasks
  metrics: null, // the latest event
  end: null, // the event
  error: null, // the event
});

const MASKED = Object.freeze({
  token: null, // id, or null where none is shown
  text: "",
  confidence: null, // in (0, 1], or null where it is not known
  born: 0, // the forward that gave this token
  edits: 0,
  final: false,
  beyond: false, // behind the answer's last token
});

/** The state after an event. Throws where events are missing: what follows would be drawn wrong. */
export function fold(state, event) {
  if (event.seq !== state.seq + 1) {
    throw new Error(`Event ${state.seq + 1} of the stream is missing; ${event.seq} came.`);
  }
  const change = CHANGES.get(event.event);
  return { ...state, ...(change ? change(state, event) : {}), seq: event.seq, nfe: event.nfe };
}

/** Positions of the blocks that are open or final. */
export function length({ blocks }) {
  const last = blocks.at(-1);
  return last ? last.start + last.cells.length : 0;
}

const CHANGES = new Map(Object.entries({
  start: (_, event) => ({ start: event }),

  block_open: (state, { start, len }) => ({ blocks: opened(state.blocks, start, start + len) }),

  fill: (state, { pos, token_ids, text, confidence, nfe }) => ({
    blocks: written(state.blocks, pos, (cell, at) => ({
      ...cell, token: token_ids[at], text: String(text[at] ?? ""), confidence: known(confidence, at), born: nfe,
    })),
  }),

  rewrite: (state, { pos, new: token_ids, text, confidence, nfe }) => ({
    edits: state.edits + pos.length,
    blocks: written(state.blocks, pos, (cell, at) => ({
      ...cell, token: token_ids[at], text: String(text[at] ?? ""), confidence: known(confidence, at), born: nfe,
      edits: cell.edits + 1,
    })),
  }),

  remask: (state, { pos }) => ({
    edits: state.edits + pos.length,
    blocks: written(state.blocks, pos, (cell) => ({ ...MASKED, edits: cell.edits + 1 })),
  }),

  block_commit: (state, { start, token_ids, text, complete, nfe }) => {
    const blocks = written(state.blocks, from(start, token_ids), (cell, at) => ({
      ...shown(cell, token_ids[at], nfe), final: true,
    }));
    const last = holder(blocks, start);
    if (complete && last >= 0) blocks[last] = { ...blocks[last], complete };
    return { committed: start + token_ids.length, text: state.text + text, blocks };
  },

  snapshot: (state, { start, token_ids, nfe }) => ({
    blocks: written(state.blocks, from(start, token_ids), (cell, at) => shown(cell, token_ids[at], nfe)),
  }),

  metrics: (_, event) => ({ metrics: event }),

  end: (state, event) => ({
    end: event,
    blocks: state.blocks.map((block) => (block.start + block.cells.length <= event.token_ids.length ? block : {
      ...block,
      cells: block.cells.map((cell, at) => (block.start + at < event.token_ids.length ? cell : { ...cell, beyond: true })),
    })),
  }),

  error: (_, event) => ({ error: event }),
}));

/** Blocks and one more that ends at `end`. */
function opened(blocks, start, end) {
  if (!Number.isInteger(start) || !Number.isInteger(end) || end < start || end > MOST) {
    throw new Error(`A block from position ${start} to ${end} is no block.`);
  }
  return [...blocks, { start, cells: Array(end - start).fill(MASKED), complete: false }];
}

/** Blocks of which the cells at some positions are replaced. */
function written(blocks, positions, replace) {
  let next = [...blocks];
  const own = new Set(); // indices of blocks that are copies already
  positions.forEach((position, at) => {
    const end = length({ blocks: next });
    if (position >= end) next = opened(next, end, position + 1); // a stream that does not tell of blocks
    const index = holder(next, position);
    if (index < 0) throw new Error(`Position ${position} lies in no block.`);
    if (!own.has(index)) {
      own.add(index);
      next[index] = { ...next[index], cells: [...next[index].cells] };
    }
    const { start, cells } = next[index];
    cells[position - start] = replace(cells[position - start], at);
  });
  return next;
}

/** Index of the block that holds a position, -1 for none. */
function holder(blocks, position) {
  let low = 0;
  let high = blocks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (blocks[middle].start <= position) low = middle + 1;
    else high = middle;
  }
  const block = blocks[low - 1];
  return block && position - block.start < block.cells.length ? low - 1 : -1;
}

function from(start, tokens) {
  return tokens.map((_, at) => start + at);
}

/** A cell that shows a token; its text is known only where it showed that one before. */
function shown(cell, token, nfe) {
  return cell.token === token ? cell : { ...cell, token, text: "", confidence: null, born: nfe };
}

/** A confidence; the engine says 0 where it has none. */
function known(confidence, at) {
  return typeof confidence?.[at] === "number" && confidence[at] > 0 ? confidence[at] : null;
}
