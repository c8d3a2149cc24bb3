// How fast an answer comes, from a state of its stream.

/** Tokens per forward, tokens per second, and counts. While it runs: of final tokens, by this browser's clock. */
export function figures(state, seconds) {
  const { committed: tokens, nfe, edits, end } = state;
  const spent = end ? end.usage.decode_time : seconds;
  return {
    tpf: end ? end.usage.tpf : nfe ? tokens / nfe : null,
    tps: spent > 0 ? tokens / spent : null,
    tokens,
    nfe,
    edits,
  };
}

/** Figures as they are shown. */
export function spelled({ tpf, tps, tokens, nfe, edits }) {
  return {
    tpf: tpf === null ? "–" : tpf.toFixed(2),
    tps: tps === null ? "–" : tps < 100 ? tps.toFixed(1) : tps.toFixed(0),
    tokens: String(tokens),
    nfe: String(nfe),
    edits: String(edits),
  };
}

const ENDS = {
  stop_eos: "the model ended it",
  stop_token: "a stop token came",
  stop_string: "a stop text came",
  length_tokens: "it has as many tokens as were asked for",
  length_context: "the context is full",
  nfe_limit: "no more forwards were allowed",
  repetition: "it repeated itself",
  aborted: "it was stopped",
};

/** Why an answer ended. */
export function ending({ end }) {
  const count = end.usage.completion_tokens;
  const tokens = count === 1 ? "1 token" : `${count} tokens`;
  const word = end.finish_reason === "abort" ? "Stopped" : "Done";
  return `${word}: ${tokens} in ${end.usage.nfe} forwards; ${ENDS[end.stop_detail] ?? end.stop_detail}.`;
}
