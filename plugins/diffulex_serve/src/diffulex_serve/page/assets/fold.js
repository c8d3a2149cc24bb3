// The diffusion stream protocol, version 1, as a fold: a state and an event make the next state.
// Pure: states are never changed, and what an event leaves alone is shared with the state before.

/** The state before the first event. */
export const NOTHING = Object.freeze({
  seq: -1,
  nfe: 0,
  start: null, // the event
  blocks: [], // {start, len, complete}
  cells: [], // one for each position, see MASKED
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
  edits: 0,
  final: false,
  beyond: false, // behind the answer's last token
});

/** The state after an event. Throws where events are missing: what follows would be drawn wrong. */
export function fold(state, event) {
  if (event.seq !== state.seq + 1) {
    throw new Error(`Event ${state.seq + 1} of the stream is missing; ${event.seq} came.`);
  }
  const change = CHANGES[event.event];
  return { ...state, ...(change ? change(state, event) : {}), seq: event.seq, nfe: event.nfe };
}

const CHANGES = {
  start: (_, event) => ({ start: event }),

  block_open: (state, { start, len }) => ({
    blocks: [...state.blocks, { start, len, complete: false }],
    cells: [...state.cells, ...Array(Math.max(0, start + len - state.cells.length)).fill(MASKED)],
  }),

  fill: (state, { pos, token_ids, text, confidence }) => ({
    cells: written(state.cells, pos, (cell, at) => ({
      ...cell, token: token_ids[at], text: text[at], confidence: known(confidence, at),
    })),
  }),

  rewrite: (state, { pos, new: token_ids, text, confidence }) => ({
    edits: state.edits + pos.length,
    cells: written(state.cells, pos, (cell, at) => ({
      ...cell, token: token_ids[at], text: text[at], confidence: known(confidence, at), edits: cell.edits + 1,
    })),
  }),

  remask: (state, { pos }) => ({
    edits: state.edits + pos.length,
    cells: written(state.cells, pos, (cell) => ({ ...MASKED, edits: cell.edits + 1 })),
  }),

  block_commit: (state, { block, start, token_ids, text, complete }) => ({
    committed: start + token_ids.length,
    text: state.text + text,
    blocks: state.blocks.map((each, at) => (at === block && complete ? { ...each, complete } : each)),
    cells: written(state.cells, token_ids.map((_, at) => start + at), (cell, at) => ({
      ...shown(cell, token_ids[at]), final: true,
    })),
  }),

  snapshot: (state, { start, token_ids }) => ({
    cells: written(state.cells, token_ids.map((_, at) => start + at), (cell, at) => shown(cell, token_ids[at])),
  }),

  metrics: (_, event) => ({ metrics: event }),

  end: (state, event) => ({
    end: event,
    cells: state.cells.map((cell, at) => (at < event.token_ids.length ? cell : { ...cell, beyond: true })),
  }),

  error: (_, event) => ({ error: event }),
};

/** Cells of which those at some positions are replaced. */
function written(cells, positions, replace) {
  const next = [...cells];
  positions.forEach((position, at) => {
    while (next.length <= position) next.push(MASKED);
    next[position] = replace(next[position], at);
  });
  return next;
}

/** A cell that shows a token; its text is known only where it showed that one before. */
function shown(cell, token) {
  return cell.token === token ? cell : { ...cell, token, text: "", confidence: null };
}

/** A confidence; the engine says 0 where it has none. */
function known(confidence, at) {
  return confidence && confidence[at] > 0 ? confidence[at] : null;
}
