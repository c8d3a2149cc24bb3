// From the controls to the body of a request, and from what a server says of itself to the controls.

const WHOLE = ["max_tokens", "top_k", "seed", "max_nfe", "max_repetition_run", "gen_length", "steps", "block_length"];
const NUMBERS = ["temperature", "top_p", "min_p", "cfg_scale", "alg_temp", "eps"];
const CHOICES = ["confidence", "remasking", "alg"];
const FLAGS = ["ignore_eos", "suppress_eos", "defer_eos"];
const SHOWING = ["min_interval_ms"];
const THRESHOLD = "_threshold";
const UNSET = { seed: "random" }; // what stands where a server sets nothing

/** Where messages begin: with the system prompt, where there is one. */
export function opening(form) {
  const content = form.elements.system.value.trim();
  return content === "" ? [] : [{ role: "system", content }];
}

/** The part of a body of `/generate` that a form asks for; empty fields are left to the server. */
export function sampling(form) {
  const value = (name) => form.elements[name].value.trim();
  const body = { stream: true, stream_mode: "events", detail: "tokens+confidence" };
  for (const name of [...WHOLE, ...NUMBERS, ...SHOWING]) {
    if (value(name) !== "") body[name] = Number(value(name));
  }
  for (const name of CHOICES) {
    if (value(name) !== "") body[name] = value(name);
  }
  for (const name of FLAGS) {
    if (form.elements[name].checked) body[name] = true;
  }
  const thresholds = {};
  for (const { name, value: text } of form.elements) {
    if (name.endsWith(THRESHOLD) && text.trim() !== "") thresholds[name] = Number(text);
  }
  if (Object.keys(thresholds).length) body.thresholds = thresholds;
  const stop = form.elements.stop.value.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop.map((line) => line.replaceAll("\\n", "\n"));
  if (form.elements.special.checked) body.skip_special_tokens = false;
  if (form.elements.mask_symbol.value !== "") body.mask_symbol = form.elements.mask_symbol.value;
  return body;
}

/** Show in empty fields what a server would use. */
export function suggest(form, { sampling_defaults: defaults = {}, chat_template: template }) {
  for (const control of form.elements) {
    const { name } = control;
    if (control instanceof HTMLSelectElement && name in defaults) {
      control.options[0].textContent = defaults[name] ? `${defaults[name]} (as it is)` : "as it is";
    } else if (FLAGS.includes(name)) {
      control.checked ||= defaults[name] === true;
    } else if (name in defaults && control.type === "number") {
      control.placeholder = String(defaults[name] ?? UNSET[name] ?? "none");
    } else if (name === "stop" && defaults.stop) {
      control.placeholder = defaults.stop.join("\n");
    }
  }
  form.elements.remember.checked = template === true;
}

/** Show the thresholds of a strategy, by name with their values, and take away all others. */
export function restrict(form, thresholds) {
  for (const control of form.elements) {
    if (!control.name.endsWith(THRESHOLD)) continue;
    control.closest("label").hidden = !(control.name in thresholds);
    control.placeholder = String(thresholds[control.name] ?? "");
  }
}
