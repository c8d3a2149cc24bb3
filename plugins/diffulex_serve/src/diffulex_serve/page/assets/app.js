// The page: what is typed, whom it is sent to, and how answers are drawn.

import { heatOfConfidence, tint } from "./canvas.js";
import { baseOf, compareWith, keptPrompt, named } from "./compare.js";
import { opening, restrict, sampling, suggest } from "./controls.js";
import { recorded } from "./film.js";
import { Server } from "./server.js";
import { Side } from "./side.js";

const WIDE = "(min-width: 64rem)";

const at = (id) => document.getElementById(id);
const settings = at("settings");
const other = named();
const sides = [];

function look() {
  return { colour: at("view").elements.colour.value, symbol: settings.elements.mask_symbol.value };
}

function complain(text) {
  at("error").textContent = text;
  at("error").hidden = text === "";
}

function open(server) {
  const side = new Side({
    template: at("side"),
    into: at("sides"),
    server,
    look,
    met: (served) => {
      if (document.activeElement === document.body) at("prompt").focus();
      if (!server.own) return;
      document.title = `${served.model} · diffulex`;
      suggest(settings, served);
      askForThresholds(server);
    },
  });
  sides.push(side);
  side.meet();
}

/** Show the thresholds that a server's strategy consumes, where the server tells. */
async function askForThresholds(server) {
  try {
    const { keys } = await (await server.ask("v1/config")).json();
    const told = keys.filter(({ key, unused }) => key.endsWith("_threshold") && !unused);
    restrict(settings, Object.fromEntries(told.map(({ key, value }) => [key, value])));
  } catch {
    // The page does without.
  }
}

function enable(busy) {
  at("send").disabled = busy;
  at("halt").disabled = !busy;
  for (const id of ["fresh", "open", "compare", "alone"]) at(id).disabled = busy;
}

/** Ask all servers and show what they answer. */
async function generate() {
  if (sides.some((side) => side.busy)) return;
  const wrong = settings.querySelector("input:invalid");
  if (wrong) {
    wrong.closest("details").open = true; // what is folded away cannot be pointed at
    wrong.reportValidity();
    return;
  }
  const { as_message: chat, remember } = settings.elements;
  const wanted = {
    body: sampling(settings),
    chat: chat.checked,
    remember: remember.checked,
    opening: opening(settings),
  };
  const prompt = at("prompt").value;
  complain("");
  enable(true);
  try {
    await Promise.all(sides.map((side) => side.ask(prompt, wanted)));
  } finally {
    enable(false);
  }
}

function stop() {
  for (const side of sides) side.stop();
}

/** Show a prompt as the model reads it. */
async function render() {
  const { server } = sides[0];
  const prompt = at("prompt").value;
  const { as_message: chat, remember } = settings.elements;
  const before = remember.checked ? sides[0].turns : [];
  const body = chat.checked
    ? { messages: [...opening(settings), ...before, { role: "user", content: prompt }] }
    : { prompt };
  at("rendered").hidden = false;
  try {
    const { tokens, count, max_model_len: most } = await (await server.ask("tokenize", { method: "POST", body })).json();
    const spelled = await (await server.ask("detokenize", { method: "POST", body: { tokens } })).json();
    at("rendered-text").textContent = spelled.prompt;
    at("rendered-count").textContent = `${count} tokens; prompt and answer together may have ${most}.`;
  } catch (error) {
    at("rendered-text").textContent = "";
    at("rendered-count").textContent = error.message;
  }
}

/** Show the events of a file, beside each other where there are two. */
async function show(files) {
  complain("");
  for (const [index, file] of [...files].slice(0, sides.length).entries()) {
    try {
      sides[index].play(recorded(await file.text()), file.name);
    } catch (error) {
      complain(`${file.name} cannot be shown. ${error.message}`);
    }
  }
}

function compare() {
  const base = baseOf(at("other").value.trim());
  if (base === null) complain("This is no address of a server; one looks like http://127.0.0.1:8001.");
  else compareWith(base, at("prompt").value);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
settings.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || !event.target.matches("input")) return;
  event.preventDefault();
  if (event.target === at("other")) compare();
  else at("ask").requestSubmit();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
at("halt").addEventListener("click", () => {
  stop();
  at("prompt").focus();
});
at("fresh").addEventListener("click", () => {
  for (const side of sides) side.clear();
  complain("");
  at("prompt").focus();
});
at("render").addEventListener("click", render);
at("open").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async () => {
  await show(at("file").files);
  at("file").value = ""; // the same file may be chosen again
});
at("compare").addEventListener("click", compare);
at("alone").addEventListener("click", () => compareWith(null, at("prompt").value));
at("view").addEventListener("change", () => {
  for (const name of ["colour", "layout"]) at("stage").dataset[name] = at("view").elements[name].value;
  for (const side of sides) side.draw();
});
settings.elements.mask_symbol.addEventListener("input", () => {
  for (const side of sides) side.draw();
});

for (const cell of document.querySelectorAll(".legend [data-confidence]")) {
  tint(cell, heatOfConfidence(cell.dataset.confidence));
}
for (const cell of document.querySelectorAll(".legend [data-heat]")) tint(cell, cell.dataset.heat / 100);
for (const group of settings.querySelectorAll("details[data-wide]")) group.open = matchMedia(WIDE).matches;
for (const name of ["colour", "layout"]) at("stage").dataset[name] = at("view").elements[name].value;
at("origin").textContent = location.origin;
at("prompt").value ||= keptPrompt();
open(new Server(new URL(".", location.href).href, true));
if (other.base) {
  at("other").value = other.base;
  at("compare-group").open = true;
  if (other.agreed) {
    open(new Server(other.base, false));
    at("alone").hidden = false;
    at("sides").dataset.count = "2";
  } else {
    complain(`This page's address names a second server, ${other.base}. Choose Compare if prompts shall go there too.`);
  }
}
at("prompt").focus();
