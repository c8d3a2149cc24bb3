// How fast an answer comes, from a state of its stream.

/** What is shown of a state: counts of final tokens, and times by this browser's clock until the engine tells its own.
 *
 * `clock`: {first, now}, seconds since the question was sent: when the first token was seen, and of this moment; null
 * for each that is not known.
 */
export function figures(state, clock) {
  const { committed: tokens, nfe, edits, end, metrics } = state;
  const since = clock.first === null || clock.now === null ? 0 : clock.now - clock.first;
  const spent = end ? end.usage.decode_time : since;
  return {
    tpf: end ? end.usage.tpf : nfe ? tokens / nfe : null,
    tps: spent > 0 ? tokens / spent : metrics ? metrics.decode_tps : null,
    ttft: end ? end.usage.ttft ?? null : clock.first,
    tokens,
    nfe,
    edits,
  };
}

/** Figures as they are shown. */
export function spelled({ tpf, tps, ttft, tokens, nfe, edits }) {
  return {
    tpf: tpf === null ? "–" : tpf.toFixed(2),
    tps: tps === null ? "–" : tps < 100 ? tps.toFixed(1) : tps.toFixed(0),
    ttft: ttft === null ? "–" : ttft < 1 ? `${Math.round(ttft * 1000)} ms` : `${ttft.toFixed(2)} s`,
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
};

/** Why an answer ended. */
export function ending({ end }) {
  const tokens = counted(end.usage.completion_tokens, "token");
  const forwards = counted(end.usage.nfe, "forward");
  if (end.finish_reason === "abort") return `Stopped: ${tokens} in ${forwards}.`;
  return `Done: ${tokens} in ${forwards}; ${ENDS[end.stop_detail] ?? end.stop_detail}.`;
}

function counted(count, thing) {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}
