// A second server beside this one. The page's policy lets a browser talk to it only where the address of the page names
// it, and the page does so only where somebody said so in this tab: a link alone sends nothing anywhere.

const NAME = "with"; // in the page's address
const AGREED = "diffulex-compare";
const PROMPT = "diffulex-prompt"; // kept while the page loads again

/** The base URL of a server as a text names it, or null where it names none. */
export function baseOf(text) {
  let url;
  try {
    url = new URL(text.includes("://") ? text : `http://${text}`);
  } catch {
    return null;
  }
  if (!["http:", "https:"].includes(url.protocol) || url.username || url.password) return null;
  url.search = "";
  url.hash = "";
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url.href;
}

/** The server that the page's address names, and whether somebody in this tab wants it asked. */
export function named() {
  const base = baseOf(new URLSearchParams(location.search).get(NAME) ?? "");
  return { base, agreed: base !== null && sessionStorage.getItem(AGREED) === base };
}

/** Load the page again, beside that server, or alone for null. */
export function compareWith(base, prompt) {
  sessionStorage.setItem(PROMPT, prompt);
  if (base === null) sessionStorage.removeItem(AGREED);
  else sessionStorage.setItem(AGREED, base);
  const address = new URL(location.pathname, location.href);
  if (base !== null) address.searchParams.set(NAME, base);
  location.assign(address);
}

/** The prompt that was typed before the page was loaded again. */
export function keptPrompt() {
  const prompt = sessionStorage.getItem(PROMPT) ?? "";
  sessionStorage.removeItem(PROMPT);
  return prompt;
}
