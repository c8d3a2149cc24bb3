// From the form to the body of a request.

const WHOLE = ["max_tokens", "top_k", "seed", "max_nfe"];
const NUMBERS = ["temperature", "top_p", "min_p"];

/** The body of `/generate` that a form asks for; empty fields are left to the checkpoint. */
export function requested(form, prompt) {
  const value = (name) => form.elements[name].value.trim();
  const body = { stream: true, stream_mode: "events", detail: "tokens+confidence" };
  if (form.elements.as_message.checked) body.messages = [{ role: "user", content: prompt }];
  else body.prompt = prompt;
  for (const name of [...WHOLE, ...NUMBERS]) {
    if (value(name) !== "") body[name] = Number(value(name));
  }
  if (value("accept_threshold") !== "") body.thresholds = { accept_threshold: Number(value("accept_threshold")) };
  if (value("stop") !== "") body.stop = form.elements.stop.value;
  if (form.elements.ignore_eos.checked) body.ignore_eos = true;
  return body;
}
