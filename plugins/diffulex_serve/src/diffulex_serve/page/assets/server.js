// Requests to a server, and its streams of events.

const KEPT = "diffulex-api-key";

/** An answer of a server that is an error, or none at all (status 0). */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A server by its base URL. Its key is kept by this tab until it is closed, and sent to this server only. */
export class Server {
  #base;
  #kept;

  /** `base`: ends in a slash; `own`: whether it is the one that this page came from. */
  constructor(base, own) {
    this.#base = base;
    this.#kept = own ? KEPT : `${KEPT} ${base}`;
    this.own = own;
  }

  get host() {
    return new URL(this.#base).host;
  }

  get key() {
    return sessionStorage.getItem(this.#kept);
  }

  set key(value) {
    if (value === null) sessionStorage.removeItem(this.#kept);
    else sessionStorage.setItem(this.#kept, value);
  }

  /** The response to a request, which is not an error. Throws ServerError, and AbortError when the signal fires. */
  async ask(path, { method = "GET", body, signal } = {}) {
    const headers = {};
    if (this.key !== null) headers.Authorization = `Bearer ${this.key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, this.#base), { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, this.own ? "The server cannot be reached. Is it running?" : this.#stranger());
    }
    if (!response.ok) throw new ServerError(response.status, await complaint(response));
    return response;
  }

  #stranger() {
    return `The server at ${this.host} cannot be reached, or does not allow this page: start it with `
      + `--cors-origins ${location.origin}`;
  }
}

async function complaint(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return `The server answers with status ${response.status}.`;
  }
}

/** The events of a stream. Throws ServerError where it breaks off or the server fails with it. */
export async function* events(response) {
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for await (const bytes of chunks(response.body)) {
      const parts = (rest + decoder.decode(bytes, { stream: true })).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(response.status, event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError(0, "The connection to the server broke.");
  }
  throw new ServerError(0, "The connection ended before the answer did.");
}

async function* chunks(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // an answer nobody reads on is ended by the server
  }
}
