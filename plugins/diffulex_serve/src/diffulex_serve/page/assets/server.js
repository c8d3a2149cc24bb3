// Requests to the server, and its streams of events.

const KEPT = "diffulex-api-key";

/** An answer of the server that is an error, or none at all (status 0). */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEPT),
  set: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

/** The response to a request, which is not an error. Throws ServerError, and AbortError when the signal fires. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key.get() !== null) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw new ServerError(response.status, await complaint(response));
  return response;
}

async function complaint(response) {
  try {
    return (await response.json()).error.message;
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
