// The API: one request, and the live stream. Nothing here touches the page.

export const session = { token: sessionStorage.getItem("token") || "", me: null };

export class Refused extends Error {}

// JSON of an answer; null when it has no body.
export async function ask(path, options) {
  const answer = await answered(path, options);
  return answer.status === 204 ? null : answer.json();
}

// A file.
export const file = async (path) => (await answered(path)).blob();

// `sent` makes it a POST unless another method is given.
async function answered(path, { method, sent, signal } = {}) {
  const headers = { Authorization: "Bearer " + session.token };
  if (sent !== undefined) headers["Content-Type"] = "application/json";
  const body = sent === undefined ? undefined : JSON.stringify(sent);
  const answer = await fetch("/api/v1" + path, { method: method || (body ? "POST" : "GET"), headers, body, signal });
  if (answer.status === 401) throw new Refused("this token is not accepted");
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error((problem.detail || "the server answered " + answer.status) + (problem.hint ? ": " + problem.hint : ""));
  }
  return answer;
}

export const may = (role) => ["viewer", "analyst", "admin"].indexOf(session.me?.role) >= ["viewer", "analyst", "admin"].indexOf(role);

// EventSource cannot send the token, so the stream is read by hand. `opened` runs before the first event is taken: what
// it asks for and what comes afterwards leave no gap.
export async function follow(signal, opened, take) {
  const headers = { Authorization: "Bearer " + session.token };
  const answer = await fetch("/api/v1/stream", { headers, signal });
  if (answer.status === 401) throw new Refused("this token is not accepted");
  if (!answer.ok) throw new Error("the server answered " + answer.status);
  await opened();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      let name = "", data = "";
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data = line.slice(6);
      }
      if (name) take(name, JSON.parse(data));
    }
  }
}
